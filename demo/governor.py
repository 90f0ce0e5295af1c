"""`memscaler run` as a process, and what it says about itself: its log and its metrics."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from prometheus_client.parser import text_string_to_metric_families

ROOT = Path(__file__).resolve().parent.parent
START_S = 60.0
END_S = 10.0


class Metrics:
    """One scrape."""

    def __init__(self, text: str) -> None:
        self._samples = [sample for family in text_string_to_metric_families(text) for sample in family.samples]

    def value(self, name: str, **labels: str) -> float:
        """The sum of the series that have these labels; 0 if there are none."""
        return sum(each.value for each in self._samples if each.name == name and labels.items() <= each.labels.items())

    def values(self, name: str) -> list[float]:
        """Each series of this name."""
        return [each.value for each in self._samples if each.name == name]


class Governor:
    """One daemon. Two of them may follow each other in the same runtime directory."""

    def __init__(self, runtime_dir: Path, log: Path, arguments: Sequence[str]) -> None:
        command = [sys.executable, "-P", "-m", "memscaler", "run", *arguments]
        command += ["--runtime-dir", str(runtime_dir), "--metrics", "127.0.0.1:0", "--log-format", "json"]
        if shutil.which("setpriv"):  # should this demo be killed, the governor is told to stop and wakes everything
            command = ["setpriv", "--pdeathsig", "TERM", *command]
        self._log = log
        self._read = 0
        self._process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=log.open("wb"), stderr=subprocess.STDOUT, env=_environment()
        )
        self._address = ""

    @property
    def pid(self) -> int:
        """Of the daemon itself."""
        return self._process.pid

    def news(self) -> list[dict[str, Any]]:
        """What it logged since the last call."""
        with self._log.open("rb") as log:
            log.seek(self._read)
            *lines, rest = log.read().split(b"\n")
            self._read = log.tell() - len(rest)
        events = []
        for line in lines:
            try:
                events.append(json.loads(line))
            except ValueError:
                events.append({"event": "said", "text": line.decode(errors="replace")})
        for event in events:
            if event["event"] == "metrics.served":
                self._address = event["address"]
        return events

    def wait_started(self) -> list[dict[str, Any]]:
        """Its log up to there. Raise RuntimeError with that log if it does not start."""
        seen: list[dict[str, Any]] = []
        end = time.monotonic() + START_S
        while not any(event["event"] == "memscaler.started" for event in seen):
            ended = self._process.poll() is not None
            seen += self.news()
            if ended or time.monotonic() > end:
                raise RuntimeError("the governor does not start:\n" + self._log.read_text(errors="replace")[-2000:])
            time.sleep(0.02)
        return seen

    def metrics(self) -> Metrics | None:
        """One scrape; None if it does not answer."""
        try:
            with urllib.request.urlopen(f"http://{self._address}/metrics", timeout=2) as answer:
                return Metrics(answer.read().decode())
        except (OSError, urllib.error.URLError):
            return None

    def kill(self) -> int:
        """SIGKILL. Returns the time of it."""
        at_ns = time.monotonic_ns()
        self._process.kill()
        self._process.wait()
        return at_ns

    def stop(self) -> tuple[int | None, float]:
        """SIGTERM. Returns the exit status (None: it does not end) and the seconds it took."""
        start = time.monotonic()
        self._process.send_signal(signal.SIGTERM)
        try:
            status = self._process.wait(END_S)
        except subprocess.TimeoutExpired:
            return None, END_S
        return status, time.monotonic() - start

    def clean_up(self) -> None:
        """Whatever happened: it is gone afterwards, and had the chance to wake everything."""
        if self._process.poll() is None and self.stop()[0] is None:
            self.kill()


def _environment() -> dict[str, str]:
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("MEMSCALER_")}
    kept = {name: value for name, value in os.environ.items() if name in ("MEMSCALER_SIM_CACHE", "MEMSCALER_NVML_H")}
    return {**inherited, **kept, "PYTHONPATH": str(ROOT)}
