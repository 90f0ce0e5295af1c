"""The wheel on every python there is."""
