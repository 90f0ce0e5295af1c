"""The doctor: whether this machine has what memscaler needs, asked of the same objects that the daemon uses."""
