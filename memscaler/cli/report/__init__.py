"""`memscaler report`: what was used and saved, and what other idle times would have saved."""
