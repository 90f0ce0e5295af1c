"""`memscaler setup`: the service of an installation that no package manager knows, and its removal."""
