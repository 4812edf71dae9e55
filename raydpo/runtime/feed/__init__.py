"""The rows of training, from the plan to a rank's batch."""
