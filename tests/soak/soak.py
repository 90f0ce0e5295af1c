"""The soak: everything at once, from one seed, for as long as wanted; and what it costs the daemon."""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import random
import re
import signal
import statistics
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from bench.processes import resident_mb
from memscaler.cli.client import Client
from memscaler.core.errors import MemscalerError
from memscaler.kernel.bpf import HashMap, map_sizes
from tests.governor import REPOSITORY, Governor, eventually, listener, port_of
from tests.soak.load import Load
from tests.soak.world import BOARDS, IDLE_S, SPARED, WATCHES, Watched, configuration, watches

SYMBOLS = (
    "nvmlDeviceSetMemoryLockedClocks",
    "nvmlDeviceResetMemoryLockedClocks",
    "nvmlDeviceSetGpuLockedClocks",
    "nvmlDeviceResetGpuLockedClocks",
    "nvmlDeviceGetClockInfo",
    "nvmlDeviceGetUtilizationRates",
    "NvAPI_GPU_SetForcePstate",
)
CODES = (999, 15, 10, 3, 4, 2, 1234)
CALM = 0.5  # this part of the time, at the end, the daemon is not killed: leaks need time to show
WARM_S = 6.0
LONG_S = 120.0  # in less, chance may have it that a board is never left alone
HASH = "1"  # BPF_MAP_TYPE_HASH
FAIR_SHARE = 0.35  # of the time in which nobody is there; reloads and new guardians keep boards awake for a while
QUIET_ENOUGH_MS = 5000  # to be judged: every reload and every start costs a second or two
PIDFD_GETFD = 438  # on every architecture


class Size(NamedTuple):
    """What a process has."""

    resident_mb: float
    descriptors: int
    threads: int


# Beyond the median of the first quarter: allocators keep some, a hung driver call has a thread for its time, and the
# filters of packets, scrapes and clients have descriptors. In half an hour there are hundreds of whatever may leak one.
MOST_MORE = Size(6.0, 10, 3)


class Soak:
    """One run. `violations` is what was found."""

    def __init__(self, folder: Path, seconds: float, seed: str) -> None:
        self.folder, self.seconds, self.seed = folder, seconds, seed
        self.random = random.Random(f"{seed}:acts")
        self.violations: list[str] = []
        self.done: Counter[str] = Counter()
        self.account: dict[str, Any] = {}
        self.sizes: dict[str, list[Size]] = {"daemon": [], "guardian": []}
        self.kinds: list[Counter[str]] = []  # of the daemon's descriptors
        self.logs: list[Path] = []
        self._lock = threading.Lock()
        self._over = threading.Event()
        self._held: list[tuple[float, str]] = []
        self.config = folder / "config.toml"

    # ---- from outside ---------------------------------------------------------------------------------------------

    def run(self) -> None:
        """Everything. Raise AssertionError with what was found."""
        self.folder.chmod(0o755)
        with contextlib.ExitStack() as stack:
            listeners = [stack.enter_context(listener()) for _ in range(WATCHES)]
            self.watched = watches(map(port_of, listeners))
            self._write(configuration(self.watched))
            self.governor = self._begin()
            stack.callback(self._end_all)
            self.driver = self.governor.driver
            for board in self.driver.boards:  # a server's context: its clocks are to be up, which proves a wake
                board.add_process(os.getpid())
            self._start_checker()
            self._tell_watches(self.watched)
            self._mode("up", new=True)
            self.load = Load(listeners, self.watched, self.seed, self._tell)
            self.load.start()
            threads = [threading.Thread(target=target, daemon=True) for target in (self._faults, self._scrapes)]
            for thread in threads:
                thread.start()
            self._acts()
            self._over.set()
            for thread in threads:
                thread.join(30)
            self._settle()
        self._judge()

    def report(self) -> str:
        """The figures."""
        parks, wakes = (sum(self.account.get(name, {}).values()) for name in ("parks", "wakes"))
        quiet, parked = (self.account.get(name, {}) for name in ("quiet_ms", "parked_ms"))
        shares = ", ".join(
            f"gpu{board} {parked.get(board, 0) / quiet[board]:.0%} of {quiet[board] / 1000:.0f} s"
            for board in sorted(quiet)
        )
        sizes = ", ".join(
            f"{who} {self._median(who, first=True)} -> {self._median(who, first=False)}"
            for who in self.sizes
            if len(self.sizes[who]) >= 8
        )
        return (
            f"soak: seed {self.seed}, {self.seconds:g} s: {parks} parks, {wakes} wakes; {dict(self.done)}; "
            f"connections {dict(self.load.done)}\nparked in the quiet: {shares}\nsizes: {sizes}"
        )

    # ---- the daemon -----------------------------------------------------------------------------------------------

    def _begin(self) -> Governor:
        governor = Governor(
            self.folder / "run",
            ",".join(BOARDS),
            "--config",
            str(self.config),
            "--metrics",
            "127.0.0.1:0",
            by_connections=False,
        )
        self.logs.append(governor.log_path)
        governor.wait_started(60)
        eventually(lambda: governor.events("guardian.started"), within_s=30)
        return governor

    def _again(self, how: str) -> None:
        """After its end, or the end that this brings about."""
        governor, guardian = self.governor, self.governor.guardian_pid
        self.done[how] += 1
        if how == "restart":
            self._mode("starting")
            self._ended(governor.stop(within_s=30))
        else:
            self._mode("orphaned" if how == "kill both" else "dead")
            pids = [guardian, governor.pid] if how == "kill both" else [governor.pid]
            for number in (signal.SIGSTOP, signal.SIGKILL):
                for pid in pids if number == signal.SIGKILL or how == "kill both" else []:
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(pid, number)
            governor.process.wait()
            time.sleep(self.random.uniform(0, 3))
        self._mode("starting" if how == "kill both" else "dead")
        try:
            self.governor = self._begin()
        except AssertionError as error:
            self._violated(f"it does not start after {how}: {error}")
            return
        self.sizes, self.kinds = {"daemon": [], "guardian": []}, []
        self._mode("up", new=True)

    def _ended(self, status: int) -> None:
        if status not in (0, 1):
            self._violated(f"exit status {status} at a stop")
        if status == 1 and not self.done["fault"]:
            self._violated("exit status 1 although every driver call works")

    def _end_all(self) -> None:
        self._over.set()
        with contextlib.suppress(AttributeError):
            self.load.stop()
        with contextlib.suppress(AttributeError):
            self.driver.clear_faults()
        if not self.governor.ended():
            self.governor.process.kill()
        self.governor.process.wait()
        with contextlib.suppress(AttributeError):
            self.checker.kill()
            self.checker.wait()

    def _client(self) -> Client:
        return Client(str(self.folder / "run"))

    def _write(self, text: str) -> None:
        draft = self.config.with_suffix(".new")
        draft.write_text(text)
        draft.chmod(0o644)
        draft.replace(self.config)

    # ---- the checker ----------------------------------------------------------------------------------------------

    def _start_checker(self) -> None:
        command = [sys.executable, "-m", "tests.soak.checker", str(self.driver.state_path)]
        self.checker = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=REPOSITORY)
        assert self.checker.stdout is not None
        assert b"ready" in self.checker.stdout.readline()
        self.listener = threading.Thread(target=self._listen, daemon=True)
        self.listener.start()

    def _listen(self) -> None:
        assert self.checker.stdout is not None
        for line in self.checker.stdout:
            said = json.loads(line)
            if "violation" in said:
                self._violated(json.dumps(said, indent=1))
            else:
                self.account = said["account"]
                self.done["looks"] = said["samples"]
                self.done["driver calls"] = sum(said["calls"].values())

    def _tell(self, what: str, **more: object) -> None:
        assert self.checker.stdin is not None
        with self._lock, contextlib.suppress(BrokenPipeError, ValueError):
            self.checker.stdin.write(json.dumps({"what": what, **more}).encode() + b"\n")
            self.checker.stdin.flush()

    def _mode(self, mode: str, *, new: bool = False) -> None:
        self._tell("mode", mode=mode, new=new)

    def _tell_watches(self, watched: tuple[Watched, ...]) -> None:
        self._tell("watches", watches=[[each.port, each.gpus, each.by_connections] for each in watched])

    def _violated(self, what: str) -> None:
        self.violations.append(what)
        self._over.set()

    # ---- what is done ---------------------------------------------------------------------------------------------

    def _acts(self) -> None:
        """One after the other, from the seed."""
        begun = time.monotonic()
        while (gone := time.monotonic() - begun) < self.seconds:
            if self._over.wait(self.random.uniform(0.3, 2.5)):
                return
            rough = gone < self.seconds * (1 - CALM)
            kinds = {"hold": 4, "pause": 1, "park": 2, "reload": 3, "invalid": 3, "stop": 2, "kill guardian": 1}
            if rough:
                kinds |= {"kill": 2, "kill both": 1, "restart": 1}
            what = self.random.choices([*kinds], [*kinds.values()])[0]
            self._act(what)
            self._unhold()
            self._check_alive()

    def _act(self, what: str) -> None:
        try:
            match what:
                case "hold" | "pause":
                    self._hold(what)
                case "park":
                    board = self.random.randrange(len(BOARDS))
                    threading.Thread(target=self._park, args=(board,), daemon=True).start()
                case "reload":
                    self._reload()
                case "invalid":
                    self._refused()
                case "stop":
                    self._standstill(self.random.uniform(0.2, 4))
                case "kill guardian":
                    self.done[what] += 1
                    self._tell("disturbed")
                    with contextlib.suppress(ProcessLookupError):  # the last one's successor is not there yet
                        os.kill(self.governor.guardian_pid, signal.SIGKILL)
                case _:
                    self._again(what)
        except MemscalerError as error:
            self.done["refused"] += 1
            if "Traceback" in str(error) or "mistake" in str(error):
                self._violated(f"{what}: {error}")

    def _hold(self, what: str) -> None:
        boards = [self.random.randrange(len(BOARDS)) for _ in range(self.random.randint(1, 3))]
        until = time.monotonic() + self.random.uniform(1, 5)
        self.done[what] += 1
        if what == "pause":
            lease = self._client().change("pause", reason="soak")
            boards = [*range(len(BOARDS))]
        else:
            lease = self._client().change("hold", gpus=[f"gpu{board}" for board in boards], for_s=600, reason="soak")
        self._tell("hold", id=f"{what} {lease['id']}", boards=boards)
        self._held.append((until, f"{what} {lease['id']}"))

    def _unhold(self, *, all_of_them: bool = False) -> None:
        for until, name in [*self._held]:
            if all_of_them or time.monotonic() > until:
                with contextlib.suppress(ValueError):  # a restart has ended it meanwhile
                    self._held.remove((until, name))
                self._tell("unhold", id=name)
                what, lease = name.split()
                with contextlib.suppress(MemscalerError):
                    if what == "pause":  # ends every pause
                        for each in [each for each in self._held if each[1].startswith("pause")]:
                            self._held.remove(each)
                            self._tell("unhold", id=each[1])
                        self._client().change("resume")
                    else:
                        self._client().change("unhold", id=lease)

    def _park(self, board: int) -> None:
        self.done["park"] += 1
        with contextlib.suppress(MemscalerError):
            self._client().change("park", gpus=[f"gpu{board}"])

    def _reload(self) -> None:
        """Other idle times, fewer watches, the other kind of quiet for some."""
        chance = self.random
        left_out = set(chance.sample(range(WATCHES), chance.choice((0, 0, 8))))
        turned = set(chance.sample(range(WATCHES), chance.choice((0, 0, 8))))
        after = tuple(
            Watched(each.port, each.gpus, each.by_connections != (nth in turned))
            for nth, each in enumerate(watches(each.port for each in self.watched_ports()))
            if nth not in left_out
        )
        before = self.watched
        self._tell("disturbed")
        self._tell_watches(tuple(each for each in before if each in after))
        self._write(configuration(after, idle_s=chance.choice((IDLE_S, 0.2, 0.6))))
        if chance.random() < 0.3:
            count = len(self.governor.events("config.reloaded"))
            os.kill(self.governor.pid, signal.SIGHUP)
            eventually(
                lambda: len(self.governor.events("config.reloaded")) > count or self.governor.ended(), within_s=30
            )
        else:
            self._client().change("reload")
        self.done["reload"] += 1
        self.watched = after
        self._tell_watches(after)

    def watched_ports(self) -> Iterator[Watched]:
        """All of them, in the order in which they were made."""
        return iter(self.load._listeners)

    def _refused(self) -> None:
        good = self.config.read_text()
        wrong = self.random.choice(
            [
                "[[watch",
                'idle_afte = "1s"\n' + good,
                'log_level = "debug"\n' + good,
                "",
                good + '[gpu.gpu0]\nlever = "x"\n',
            ]
        )
        self._write(wrong)
        try:
            self._client().change("reload")
            self._violated(f"a wrong configuration was accepted: {wrong[:200]}")
        except MemscalerError:
            self.done["invalid"] += 1
        finally:
            self._write(good)

    def _standstill(self, for_s: float) -> None:
        self.done["stop"] += 1
        self._mode("stopped")
        os.kill(self.governor.pid, signal.SIGSTOP)
        time.sleep(for_s)
        os.kill(self.governor.pid, signal.SIGCONT)
        self._mode("up")

    def _faults(self) -> None:
        """Boards fail in many ways, and recover."""
        chance = random.Random(f"{self.seed}:faults")
        sound = [board for board in range(len(BOARDS)) if board not in SPARED]
        while not self._over.wait(chance.uniform(0.3, 4)):
            board = self.driver.boards[chance.choice(sound)]
            how: dict[str, Any] = chance.choice(
                [
                    {"code": chance.choice(CODES)},
                    {"delay_ms": chance.choice((50, 400, 1500))},
                    {"hang": True},
                    {"ignore": True},
                    {},
                ]
            )
            symbols = chance.sample(SYMBOLS, chance.randint(1, 3))
            self.done["fault"] += 1
            self._tell("fault", board=board.index)
            if how:
                for symbol in symbols:
                    board.inject(symbol, **how)
            else:
                board.lose()
            self._over.wait(chance.uniform(0.2, 3))
            board.clear_faults()
            board.restore()
            self._tell("cleared", board=board.index)

    def _scrapes(self) -> None:
        """Metrics, and the sizes of the processes."""
        warm = time.monotonic()
        pid = 0
        while not self._over.wait(0.5):
            if self.governor.pid != pid:
                pid, warm = self.governor.pid, time.monotonic() + WARM_S
            with contextlib.suppress(OSError, ValueError, IndexError, AssertionError):
                self.governor.metrics()
                self.done["scrape"] += 1
                if time.monotonic() > warm:
                    self.kinds.append(kinds(pid))
                    daemon = size(pid)  # one descriptor is each watch's, and there are more or fewer after a reload
                    self.sizes["daemon"].append(daemon._replace(descriptors=daemon.descriptors - len(self.watched)))
                    self.sizes["guardian"].append(size(self.governor.guardian_pid))

    def _check_alive(self) -> None:
        if self.governor.ended():
            self._violated(f"the daemon ended by itself, with {self.governor.process.returncode}")
        if self.load.error is not None:
            self._violated(f"the load: {self.load.error!r}")

    # ---- the end --------------------------------------------------------------------------------------------------

    def _settle(self) -> None:
        """Nobody is there, no driver fails, nothing is held: nothing may be left over."""
        if self.violations:
            self._finish_checker()
            return
        self._unhold(all_of_them=True)
        self.load.stop()
        self.driver.clear_faults()
        self._expect(
            lambda: not self._counted(), "connections that are counted although nobody is connected", self._counted
        )
        self._expect(lambda: not any(self._entries().values()), "entries of BPF maps", self._entries)
        self._expect(
            lambda: all(self.driver.boards[board].locks for board in SPARED), "the spared boards are parked", str
        )
        self._finish_checker()
        self._ended(self.governor.stop(within_s=30))
        self._expect(
            lambda: not any(board.locks for board in self.driver.boards), "everything is awake after the stop", str
        )

    def _expect(self, holds: Callable[[], bool], what: str, else_tell: Callable[[], object]) -> None:
        try:
            eventually(holds, within_s=30, what=what)
        except (AssertionError, OSError) as error:
            self._violated(f"at the end: {what}: {error} {else_tell()}")

    def _counted(self) -> list[str]:
        return [
            line
            for line in self.governor.metrics().splitlines()
            if re.match(r"memscaler_port_(silent_)?connections\{", line) and float(line.split()[-1])
        ]

    def _entries(self) -> dict[int, int]:
        """Of the daemon's set of connections; the list of silent ones is put right only at the next park."""
        return map_entries(self.governor.pid, more_than=1024, value_bytes=4)

    def _finish_checker(self) -> None:
        assert self.checker.stdin is not None
        with self._lock:
            self.checker.stdin.close()
        self.checker.wait(30)
        self.listener.join(30)

    def _judge(self) -> None:
        for path in self.logs:
            if "Traceback" in (text := path.read_text(errors="replace")):
                self.violations.append(f"{path}: {text[text.index('Traceback') :][:3000]}")
        if not self.violations:
            self._judge_shares()
            self._judge_sizes()
        if self.violations:
            tail = "\n".join(self.logs[-1].read_text(errors="replace").splitlines()[-200:])
            raise AssertionError(f"{tail}\n\n{self.report()}\n\n" + "\n\n".join(self.violations[:5]))

    def _judge_shares(self) -> None:
        quiet, parked = self.account.get("quiet_ms", {}), self.account.get("parked_ms", {})
        if not any(parked.values()):
            self.violations.append("nothing was ever parked in the quiet")
        for board in map(str, SPARED):
            if quiet.get(board, 0) < 1000 and self.seconds >= LONG_S:
                self.violations.append(f"gpu{board} was hardly ever quiet: {quiet.get(board, 0)} ms")
        for board, quiet_ms in {**quiet, "s together": sum(quiet.values())}.items():
            parked_ms = parked.get(board, 0) if board in quiet else sum(parked.values())
            enough_ms = QUIET_ENOUGH_MS * (1 if board in quiet else len(quiet))
            if quiet_ms >= enough_ms and parked_ms < FAIR_SHARE * quiet_ms:
                self.violations.append(
                    f"gpu{board} parked for {parked_ms} of {quiet_ms} ms in which nothing kept them awake"
                )

    def _judge_sizes(self) -> None:
        for who, sizes in self.sizes.items():
            if len(sizes) >= 8:
                first, last = self._median(who, first=True), self._median(who, first=False)
                if any(after > before + more for before, after, more in zip(first, last, MOST_MORE, strict=True)):
                    self.violations.append(f"the {who} grows: {first} -> {last} ({self.kinds[0]} -> {self.kinds[-1]})")

    def _median(self, who: str, *, first: bool) -> Size:
        sizes = self.sizes[who]
        quarter = sizes[: len(sizes) // 4] if first else sizes[-(len(sizes) // 4) :]
        return Size(*(statistics.median(column) for column in zip(*quarter, strict=True)))  # type: ignore[arg-type]


def size(pid: int) -> Size:
    folder = Path(f"/proc/{pid}")
    return Size(resident_mb(pid), len([*(folder / "fd").iterdir()]), len([*(folder / "task").iterdir()]))


def kinds(pid: int) -> Counter[str]:
    """What the descriptors of a process are, and how many of each."""
    found: Counter[str] = Counter()
    for path in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):
            found[str(path.readlink()).partition(":[")[0]] += 1
    return found


def map_entries(pid: int, *, more_than: int, value_bytes: int) -> dict[int, int]:
    """Descriptor of each BPF hash map with larger tables and values of this process -> how many are in it."""
    found = {}
    pidfd = os.pidfd_open(pid)
    try:
        for path in Path(f"/proc/{pid}/fdinfo").iterdir():
            with contextlib.suppress(FileNotFoundError):
                info = dict(line.split(":\t", 1) for line in path.read_text().splitlines() if ":\t" in line)
                if info.get("map_type", "").strip() == HASH and int(info["max_entries"]) > more_than:
                    fd = ctypes.CDLL(None).syscall(PIDFD_GETFD, pidfd, int(path.name), 0)
                    try:
                        key, value, _ = map_sizes(fd)
                        if value > value_bytes:
                            found[int(path.name)] = len({key for key, _ in HashMap(fd, key, value).entries()})
                    finally:
                        os.close(fd)
    finally:
        os.close(pidfd)
    return found
