"""Healthy trainings drawn from a seed: another one for each, and the same one again."""
