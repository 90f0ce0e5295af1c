"""Checks of the running daemon: what it says itself, its guardian, and its metrics."""

from __future__ import annotations

import http.client
from collections.abc import Iterator
from pathlib import Path

from memscaler import __version__
from memscaler.core.errors import DaemonNotRunning, PermissionMissing
from memscaler.daemon import systemd
from memscaler.daemon.doctor import units
from memscaler.daemon.doctor.context import Context
from memscaler.daemon.doctor.model import Verdict, failed, passed, unknown, warned
from memscaler.daemon.requests import Document

NOT_RUNNING = "no daemon runs"
JOIN = "sudo usermod -aG memscaler $USER, then log in anew; or: sudo memscaler doctor"
METRICS_S = 2.0
OURS = b"memscaler_"
MOST_BYTES = 1 << 16


def runs(context: Context) -> Verdict:
    """A daemon answers, of this version, and governs."""
    status = _status(context)
    if status is None:
        holder = context.daemon()
        if holder:
            return failed(f"a daemon runs (pid {holder}), but its control socket is not there", "see its log")
        return warned(NOT_RUNNING, _start(context))
    if status["version"] != __version__:
        seen = f"version {status['version']} runs, {__version__} is installed"
        return warned(seen, "sudo systemctl restart memscaler")
    if status["mode"] != "governing":
        return warned(f"it is {status['mode']} (pid {status['pid']})", "memscaler resume")
    dry = ", dry run: no GPU is touched" if status["dry_run"] else ""
    count = len(status["gpus"])
    return passed(f"pid {status['pid']} governs {count} GPU{'s' * (count != 1)}{dry}")


def _start(context: Context) -> str:
    """As this machine starts services."""
    by_hand = "sudo memscaler run --port 8080:gpu0"
    if not systemd.is_running(context.root):
        return by_hand
    service = "sudo systemctl start memscaler" if units.find(context.root) else "sudo memscaler setup"
    return f"{service}, or {by_hand}"


def states(context: Context) -> Iterator[Verdict]:
    """GPUs that it has given up, and conflicts with others."""
    status = _status(context)
    if status is None:
        yield unknown(NOT_RUNNING, "see MS-DAEMON-01")
        return
    for gpu in status["gpus"]:
        if gpu["state"] == "unmanaged":
            yield warned(f"left alone: {gpu['reason']}", gpu["remedy"] or "see `memscaler status`", gpu["gpu"])
        elif gpu["conflict"]:
            yield warned(gpu["conflict"], "end the other program, see MS-RIVAL-01", gpu["gpu"])
        else:
            yield passed("governed", gpu["gpu"])
    if not status["gpus"]:
        yield passed("it governs no GPU just now")


def remarks(context: Context) -> Iterator[Verdict]:
    """What it waits for, and what it has to say."""
    status = _status(context)
    if status is None:
        yield unknown(NOT_RUNNING, "see MS-DAEMON-01")
        return
    for each in status["waiting"]:
        yield warned(
            f"waits: {each['reason']}", "start that server, or correct the watch; see `memscaler ports`", each["watch"]
        )
    for notice in status["notices"]:
        yield warned(str(notice), "see its log: journalctl -u memscaler")
    asleep = list(_asleep(status))
    yield from asleep
    if not status["waiting"] and not status["notices"] and not asleep:
        yield passed("it waits for nothing and has nothing to remark")


def _asleep(status: Document) -> Iterator[Verdict]:
    """What is wrong with deeper sleep."""
    told = status.get("sleep")
    if not told:
        return
    if told["problem"]:
        yield warned(f"the sleeper: {told['problem']}", "see its log: journalctl -u memscaler")
    for each in told["servers"]:
        if each["rung"] == "stuck":
            seen = f"{each['standing']}: {each['note'] or 'it does not come back'}"
            yield warned(seen, "mend what it says: it is tried again and again", each["name"])
        elif each.get("missing"):  # one of an earlier version does not tell
            yield warned(f"is not there: {each['why_not']}", "memscaler servers list", each["name"])
    if told["machine"]["rung"] == "stuck":
        why = "; ".join(told["machine"]["why_not"]) or "it could not be suspended"
        yield warned(f"the machine is not suspended: {why}", "memscaler suspend status")


def guardian(context: Context) -> Verdict:
    """The process that wakes every GPU if the daemon is killed."""
    status = _status(context)
    if status is None:
        return unknown(NOT_RUNNING, "see MS-DAEMON-01")
    if status["dry_run"] or status["mode"] == "released":
        return passed("none is needed: no GPU is touched")
    processes, parent = context.processes(), int(status["pid"])
    for pid in sorted(processes.pids):
        called = {Path(word).name for word in processes.argv(pid)[:4]}
        if processes.parent(pid) == parent and "guardian.py" in called:
            return passed(f"pid {pid} watches over pid {parent}")
    return warned(
        f"pid {parent} has no guardian: it keeps every GPU awake until it has", "see its log for guardian.died"
    )


def metrics(context: Context) -> Verdict:
    """They answer, and are memscaler's."""
    address = context.settings.metrics
    if address is None:
        return passed("off by the configuration")
    if address.port == 0:
        return unknown("the system chooses their port", "the daemon's log names it: metrics.served")
    answer = _scrape(address.host, address.port)
    if answer is None:
        return _silence(context, f"nobody answers on {address}")
    if OURS in answer:
        return passed(f"{address} answers")
    return warned(f"another program answers on {address}", 'give memscaler another port: metrics = "127.0.0.1:9824"')


def _silence(context: Context, seen: str) -> Verdict:
    try:
        running = _status(context)
    except PermissionMissing:
        return unknown(f"{seen}, and whether a daemon runs cannot be told")
    if running is None:
        return passed(f"{seen}, and no daemon runs")
    return warned(f"{seen}, but the daemon runs", "see its log for metrics.failed; was it started with --metrics?")


def _status(context: Context) -> Document | None:
    """None: no daemon runs. Raise PermissionMissing, with how to get the permission."""
    try:
        return context.status()
    except DaemonNotRunning:
        return None
    except PermissionMissing as error:
        raise PermissionMissing(str(error), hint=JOIN) from error


def _scrape(host: str, port: int) -> bytes | None:
    """The beginning of what is served there; None: nobody answers."""
    wildcard = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104  # where such a listener can be asked
    connection = http.client.HTTPConnection(wildcard.get(host, host), port, timeout=METRICS_S)
    try:
        connection.request("GET", "/metrics")
        return connection.getresponse().read(MOST_BYTES)
    except http.client.HTTPException:
        return b""
    except OSError:
        return None
    finally:
        connection.close()
