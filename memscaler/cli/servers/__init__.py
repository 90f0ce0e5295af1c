"""`memscaler servers`: model servers that are described once, and steered by name."""
