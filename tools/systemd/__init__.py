"""memscaler as a service of a real systemd, in an emulated machine: `make test-systemd`."""
