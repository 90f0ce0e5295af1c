"""Decides: pure functions and frozen data. Nothing here does I/O or reads a clock."""
