"""One run's directory: its paths, its lock, its outcome, and what everything in it was made from."""
