"""What is saved of a training, and how it comes back."""
