"""Runs: puts the parts together, and the event loop between them."""
