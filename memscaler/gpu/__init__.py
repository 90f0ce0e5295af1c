"""Acts: finds the GPUs, chooses how each can be parked, and does and undoes it."""
