"""Numbers for completions."""
