"""Peers of the ingest benchmark."""
