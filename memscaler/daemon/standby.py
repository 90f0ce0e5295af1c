"""Released: the driver is let go of, so that it can be upgraded, and nothing is governed until an operator resumes.

An open NVML session holds /dev/nvidia*, which keeps the kernel module from being unloaded; and a library that is loaded
already cannot be replaced. So the governor ends, this waits in the same process, and the governor begins anew in its
place. A file says that it waits, so that a restart of the service does not open the driver either.
"""

from __future__ import annotations

import json
import os
import select
import signal
import socket
import time
from concurrent.futures import Future, InvalidStateError
from contextlib import ExitStack, suppress
from dataclasses import asdict
from math import isfinite
from pathlib import Path

import structlog

from memscaler import __version__
from memscaler.config.schema import Settings
from memscaler.core.errors import DaemonRunning, MemscalerError
from memscaler.core.model import SECOND_NS
from memscaler.core.snapshot import KernelSnapshot, Released, Snapshot
from memscaler.daemon import lock
from memscaler.daemon.answers import SnapshotWanted
from memscaler.daemon.ending import Ending
from memscaler.daemon.mailbox import Mailbox
from memscaler.daemon.notify import Notifier
from memscaler.daemon.reload import Reloaded
from memscaler.daemon.requests import Asked, Document, ResumeWanted, Status, Verify
from memscaler.daemon.signals import StopWanted, has_terminal
from memscaler.files import read_own
from memscaler.gpu.journal import BOOT_ID
from memscaler.observe import status

log = structlog.get_logger()

FILE = "released.json"
MOST_BYTES = 4096  # of the file
CALIBRATION_PATIENCE_S = 0.3  # somebody may just look whether it is free


def begin(runtime_dir: Path, stack: ExitStack) -> Released | None:
    """Take the lock of the daemon. Returns what was said by who has released the driver, if somebody has.

    Raise DaemonRunning, or Calibrating. Nobody answers at our socket yet, so who is about to calibrate gives up.
    """
    try:
        stack.callback(os.close, lock.acquire(runtime_dir))
    except DaemonRunning:
        lock.refuse_beside_calibration(runtime_dir)
        raise
    released = Standby.wanted(runtime_dir)
    if released is None:
        os.close(lock.acquire_calibration(runtime_dir, CALIBRATION_PATIENCE_S))
    return released


class Standby:
    """Waits for ResumeWanted or a signal."""

    def __init__(self, settings: Settings, mailbox: Mailbox, notifier: Notifier, released: Released) -> None:
        self._released = released
        self._runtime_dir = settings.runtime_dir
        self._dry_run = settings.dry_run
        self._labels = settings.labels
        self._mailbox = mailbox
        self._notifier = notifier
        self._started_unix_s = time.time()
        self._ending: Ending | None = None
        self._held = -1  # from the resume until this process ends, or becomes the governor that begins anew

    @staticmethod
    def want(runtime_dir: Path, released: Released) -> None:
        """An operator releases the driver: until somebody resumes, or the machine boots anew.

        If that cannot be written down, the release does not outlive a restart.
        """
        draft = runtime_dir / f"{FILE}.tmp"
        try:
            draft.write_text(json.dumps({"boot_id": BOOT_ID.read_text().strip(), **asdict(released)}))
            draft.replace(runtime_dir / FILE)
        except OSError as error:
            hint = "do not restart memscaler before the driver is upgraded: it would open it"
            log.error("driver.release_not_written", err=str(error), hint=hint)

    @staticmethod
    def wanted(runtime_dir: Path) -> Released | None:
        """What an operator has said who released the driver, if nobody has resumed yet."""
        try:
            told = json.loads(read_own(runtime_dir / FILE, MOST_BYTES))
            if told["boot_id"] == BOOT_ID.read_text().strip():
                since_unix_s = float(told["since_unix_s"])
                return Released(
                    str(told["owner"]), str(told["reason"]), since_unix_s if isfinite(since_unix_s) else 0.0
                )
        except (OSError, ValueError, KeyError, TypeError, OverflowError, RecursionError):
            pass
        return None

    def run(self, asker: Future[Document] | None) -> Ending:
        """RESTART: resumed; STOP: a signal. asker: waits for the release."""
        ends = (signal.SIGTERM, signal.SIGINT, *([signal.SIGHUP] if has_terminal() else []))
        for number in ends:
            signal.signal(number, lambda got, _: self._mailbox.put(StopWanted(signal.Signals(got).name)))
        if signal.SIGHUP not in ends:
            signal.signal(signal.SIGHUP, signal.SIG_IGN)  # a reload: there is nothing to reload
        log.warning("driver.released", hint="upgrade it, then run `memscaler resume`")
        self._notifier.ready("the driver is released; `memscaler resume` goes on")
        if asker is not None:
            with suppress(InvalidStateError):  # it has given up
                asker.set_result({})
        poll = select.poll()
        poll.register(self._mailbox.fd, select.POLLIN)
        while self._ending is None:
            beat_ns = self._notifier.heartbeat_ns
            poll.poll(beat_ns / SECOND_NS * 1000 if beat_ns else None)
            self._notifier.alive()
            for message in self._mailbox.drain():
                self._hear(message)
        return self._ending

    def _snapshot(self) -> Snapshot:
        """What there is to tell while nothing is governed."""
        return Snapshot(
            at_ns=time.monotonic_ns(),
            started_unix_s=self._started_unix_s,
            version=__version__,
            driver_version="",
            hostname=socket.gethostname(),
            dry_run=self._dry_run,
            gpus=(),
            watches=(),
            kernel=KernelSnapshot({}, {}, 0),
            released=self._released,
            labels=self._labels,
        )

    def _hear(self, message: object) -> None:
        match message:
            case SnapshotWanted(answer):
                answer.set_result(self._snapshot())
            case Asked(Status(), _, answer):
                answer.set_result(status.document(self._snapshot()))
            case Asked(Verify(), _, answer):
                answer.set_result({"ok": True, "mode": "released", "dry_run": self._dry_run, "gpus": []})
            case Asked(ResumeWanted(), peer, answer):
                self._resume(peer.name, answer)
            case Asked(_, _, answer):
                hint = "memscaler resume"
                answer.set_exception(MemscalerError("the driver is released, and nothing is governed", hint=hint))
            case Reloaded(answer):  # it was planned before the release
                answer.set_exception(MemscalerError("the driver is released, and nothing is governed"))
            case StopWanted(reason):
                log.info("memscaler.stopping", reason=reason)
                self._notifier.stopping()
                self._ending = Ending.STOP

    def _resume(self, owner: str, answer: Future[Document]) -> None:
        """Refused while somebody calibrates: what he measures must not be parked by us, nor ours be woken by him."""
        try:
            if self._held < 0:  # else a second resume at the same moment
                self._held = lock.acquire_calibration(self._runtime_dir, CALIBRATION_PATIENCE_S)
        except (MemscalerError, OSError) as error:
            known = isinstance(error, MemscalerError)
            answer.set_exception(error if known else MemscalerError(f"the lock cannot be taken: {error}"))
            return
        (self._runtime_dir / FILE).unlink(missing_ok=True)
        log.info("driver.resumed", owner=owner)
        answer.set_result({"ended": [{"id": "", "owner": "", "reason": "released"}]})
        self._ending = Ending.RESTART
