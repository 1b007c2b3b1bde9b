"""The server of trainsanity."""
