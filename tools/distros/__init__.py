"""The kernels and bcc versions of several Debian releases, booted in an emulator: `make test-distros`."""
