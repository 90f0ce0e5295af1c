"""Sees: loads the BPF program, reads its counters, hears its doorbell, and compares its set with sock_diag."""
