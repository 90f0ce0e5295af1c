"""Shell completion, written out: one module per shell."""
