"""Where numbers and lines for the user go."""
