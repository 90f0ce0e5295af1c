"""Measures what parking is worth on this machine: `memscaler calibrate`."""
