"""Runs inside the emulated machine (tools/deb): the package from its installation to its purge.

python -m tests.deb.guest RESULTS_FILE [SCENARIO...]
"""

import sys

from tests.deb.scenarios import SCENARIOS
from tests.systemd.guest import main

if __name__ == "__main__":
    main(sys.argv[1:], SCENARIOS, "tests.deb.guest")
