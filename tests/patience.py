"""How much longer than usual a test waits for what must happen: more in an emulated machine (tests/distros/guest.py)."""

import os


def patience() -> float:
    """The factor; 1 on a real machine."""
    return float(os.environ.get("MEMSCALER_TEST_PATIENCE", "1"))
