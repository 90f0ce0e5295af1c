"""The governor's own process image. `memscaler run` becomes this after it has understood its command line.

The command line needs typer, which brings pydantic and rich: 15 MB that a governor would hold for good. The process
stays the same one (execv), so its pid, its parent and systemd's notify socket do too.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import NoReturn

ROOT = Path(__file__).resolve().parents[2]
# Processes of their own; their modules are nothing for the governor.
SLEEPER = ROOT / "memscaler" / "sleep" / "run.py"
ARBITER = ROOT / "memscaler" / "gvm" / "run.py"


def become_governor(flags: Mapping[str, object], config: Path | None) -> NoReturn:
    """Replace this process by the governor."""
    told = json.dumps({"flags": flags, "config": None if config is None else str(config)})
    # -P: modules come from where memscaler is installed, never from the folder that it happens to be started in
    os.execv(sys.executable, [sys.executable, "-P", __file__, told])  # noqa: S606  # our own file


def main() -> NoReturn:
    """Govern as told by the only argument."""
    from memscaler.cli.errors import exit_with

    told = json.loads(sys.argv[1])
    with exit_with():
        from memscaler.config.load import load
        from memscaler.daemon.composition import Programs
        from memscaler.daemon.main import run
        from memscaler.observe.log import configure

        config = None if told["config"] is None else Path(told["config"])
        settings = load(told["flags"], os.environ, config)
        configure(settings.log_format, settings.log_level, os.environ)
        ended = run(settings, lambda: load(told["flags"], os.environ, config), Programs(SLEEPER, ARBITER))
        if ended.again:
            os.execv(sys.executable, [sys.executable, "-P", __file__, sys.argv[1]])  # noqa: S606  # as become_governor
        sys.exit(0 if ended.well else 1)


if __name__ == "__main__":
    sys.path.append(str(ROOT))  # a checkout that is not installed; otherwise it is there already
    sys.modules["rich"] = None  # type: ignore[assignment]  # structlog would load it, and nothing here draws with it
    main()
