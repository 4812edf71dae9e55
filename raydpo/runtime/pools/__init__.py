"""Actors that outlive a task: scorers, samplers, reward functions."""
