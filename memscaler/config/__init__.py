"""Configuration: one schema, four sources, and every value knows where it came from."""
