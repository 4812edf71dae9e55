"""What a run has found, in words and pictures."""
