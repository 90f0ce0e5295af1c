"""Keeps: what happened and what was measured, over restarts of the daemon and reboots of the machine."""
