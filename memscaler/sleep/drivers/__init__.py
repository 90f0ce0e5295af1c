"""How each stage of a server is entered, left and looked at: one driver for each, all called the same way."""
