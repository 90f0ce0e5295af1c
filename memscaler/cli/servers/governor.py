"""What the governor that runs does about the servers of supervisors."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from typing import Any

PATIENCE_S = 3.0  # a list must not wait for a governor that hangs


def nobody_watches(reports: Iterable[Mapping[str, Any]]) -> list[str]:
    """A sentence for each of these servers that runs and whose port it does not watch; [] where none answers."""
    from memscaler.cli.client import Client
    from memscaler.cli.output import plain
    from memscaler.core.errors import MemscalerError
    from memscaler.servers import beside

    os.environ.pop("RUNTIME_DIRECTORY", None)  # of the supervisor's unit, as its ExecReload
    try:
        document = Client(None, PATIENCE_S).status()
    except MemscalerError:
        return []
    left = beside.unwatched(document, reports)
    return [plain(beside.nobody_watches(each, beside.whose(document["pid"]))) for each in left]
