"""Ordinary ways to train, of which nothing may be said at `warning` or above."""
