"""`memscaler plan` and `memscaler analyze`."""
