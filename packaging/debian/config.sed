# The configuration of the package: what `memscaler config init` prints, and one setting, so that a fresh installation
# has something to watch.
s/^#discover = false$/discover = true/
