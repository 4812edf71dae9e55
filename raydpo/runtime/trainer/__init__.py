"""The worker group that trains, and what becomes of it."""
