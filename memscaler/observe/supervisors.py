"""The supervisors of model servers, as the governor sees them while it runs: none makes it wait, or its metrics grow.

A folder may be on a file system of that user's own making, which answers when it likes, and looking up a user may go to
the network. So each look has a thread of its own, which is given up when it takes too long; where it waits, no other
looks until it is back. A server and its port are labels of metrics, so a supervisor has few of them in a day.
"""

from __future__ import annotations

import time
from pathlib import Path
from threading import Lock, Thread

from memscaler.core.servers import Supervised, SupervisorReport
from memscaler.observe.servers import MOST_SERVERS, Look, does_not_answer

WAIT_S = 0.5
MOST_LABELS = 2 * MOST_SERVERS
DAY_S = 86400.0

Label = tuple[str, int | None]


class Supervisors:
    """Of one runtime directory. Used by any thread."""

    def __init__(self, root: Path) -> None:
        """root: where the supervisors' runtime directories are."""
        self._root = root
        self._lock = Lock()
        self._stuck: dict[Path, Thread] = {}
        self._labels: dict[Path, dict[Label, float]] = {}

    def look(self) -> Supervised:
        """What they say now, within WAIT_S. Never raises."""
        with self._lock:
            self._stuck = {folder: thread for folder, thread in self._stuck.items() if thread.is_alive()}
            look = Look(self._root, frozenset(self._stuck), self._admit)
            thread = Thread(target=look.run, name="supervisors", daemon=True)
            thread.start()
            thread.join(WAIT_S)
            at = look.at
            if thread.is_alive() and at is not None:
                look.given_up = True
                self._stuck[at] = thread
                seen = look.seen()
                return Supervised(seen.supervisors, seen.gone, (*seen.notices, does_not_answer(at)))
            return look.seen()

    def _admit(self, folder: Path, report: SupervisorReport) -> str:
        """Why it is not shown, "" if it is. In the thread of a look, of which one at a time gets here."""
        now_s = time.monotonic()
        known = {label: at_s for label, at_s in self._labels.get(folder, {}).items() if at_s > now_s - DAY_S}
        known |= dict.fromkeys(((server.name, server.port) for server in report.servers), now_s)
        if len(known) > MOST_LABELS:
            return f"has told of more than {MOST_LABELS} servers and ports in a day"
        self._labels[folder] = known
        return ""
