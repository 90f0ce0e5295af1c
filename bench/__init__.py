"""The figures that memscaler promises, measured on the machine at hand. README.md tells how to read them."""
