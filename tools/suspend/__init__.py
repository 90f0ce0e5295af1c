"""A machine that really sleeps."""
