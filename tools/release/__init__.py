"""Prepares a release: everything but the signing and the upload. `make release`."""
