"""The Debian package: `make deb` builds it, `make test-deb` installs it, in clean roots and in an emulated machine."""
