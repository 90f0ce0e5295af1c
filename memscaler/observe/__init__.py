"""Telling: metrics and log, made from snapshots and events, never from the hardware itself."""
