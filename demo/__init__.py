"""A demonstration that checks itself: real servers, a real governor, simulated GPUs. `python -m demo --help`."""
