"""Keeps described model servers running: an unprivileged supervisor, beside the governor."""
