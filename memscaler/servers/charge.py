"""One server that is kept as it is described: carries out what `decide` says, and tells it what has happened."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import structlog

from memscaler.config.servers import Server
from memscaler.core.servers import ServerReport, ServerState
from memscaler.planner import visible
from memscaler.servers import child, comparing, decide, health, logs, marks, telling
from memscaler.servers.aside import aside, aside_within
from memscaler.servers.child import CannotStart, How, Process
from memscaler.servers.decide import Answered, Standing, Verdict
from memscaler.servers.hooks import PATIENCE_S, Hooks
from memscaler.servers.loading import Loading
from memscaler.servers.places import Places
from memscaler.servers.ports import stranger, taken_by
from memscaler.servers.preparing import Prepared, base_environment, model_of, prepare
from memscaler.servers.state import Given, Ran, Record

ASK_S = 5.0  # for whose the listening socket is
PREPARE_S = 120.0  # for the driver's answer and the model's header, which may lie on another machine

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What all servers of a supervisor share. changed: something is to be reported. saved: it must be on disk now."""

    places: Places
    rotation: logs.Rotation
    changed: Callable[[], None]
    save: Callable[[], None]
    turn: asyncio.Lock  # for those whose GPUs are planned: one after the other
    others_loaded: Callable[[str], Coroutine[Any, Any, None]]
    stream: Path = logs.STREAM


class Charge:
    """server: as described now. launched: as it was when its process was started. leaving: it is described no more.

    note: what an operator should know of it, beside its state. given: what its process got.
    """

    def __init__(self, server: Server, around: Surroundings) -> None:
        self.server = server
        self.launched: Server | None = None
        self.standing = Standing(since_s=_now_s())
        self.leaving = False
        self.note = ""
        self.at_rest = asyncio.Event()
        self.at_rest.set()
        self._around = around
        self._since_unix_s = time.time()
        self._process: Process | None = None
        self._hooks = Hooks(server.name, self._open, around.changed, partial(marks.new, around.places.state))
        self._loading: Loading | None = None
        self.given = Given()
        self._output: logs.Output | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._task: asyncio.Task[None] | None = None  # launches or clears
        self._probe: asyncio.Task[None] | None = None

    # ---- what others ask for ------------------------------------------------------------------------------------

    def post(self, event: decide.Event) -> None:
        """It has happened, or is wanted."""
        now_s, before = _now_s(), self.standing
        if isinstance(event, decide.Tick) and before.due_s is not None:
            now_s = max(now_s, before.due_s)  # a timer may be a little early
        done = decide.step(before, event, now_s, self.server)
        self.standing = done.standing
        if done.standing.state is not before.state or done.standing.since_s != before.since_s:
            self._since_unix_s = time.time()
            place = self._output.place.words if self._output is not None else ""
            telling.say(self.server.name, self.standing, self._process.pid if self._process else None, place)
        for action in done.actions:
            self._do(action)
        self._set_timer()
        if self.standing.state in decide.RESTING:
            self.at_rest.set()
        else:
            self.at_rest.clear()
        if done.standing != before:
            self._around.changed()

    @property
    def running(self) -> bool:
        """Whether there is a process, or is about to be."""
        return self.standing.state not in decide.RESTING

    @property
    def loads(self) -> bool:
        """Whether it is about to take memory of GPUs. One whose GPUs are planned does not, until it is its turn."""
        return self.standing.state is ServerState.STARTING and (self._process is not None or not self.server.placed)

    @property
    def log_place(self) -> logs.Place:
        """Where its output is, or will be."""
        if self._output is not None:
            return self._output.place
        name = self.server.name
        journal = self.server.log == "journal" or (self.server.log == "auto" and self._around.stream.exists())
        return logs.Place(identifier=logs.PREFIX + name) if journal else logs.Place(path=str(self._file(name)))

    @property
    def report(self) -> ServerReport:
        at = self.standing
        server = self.launched or self.server
        waits = at.state is ServerState.WAITING and at.due_s is not None
        starts_unix_s = self._since_unix_s + at.due_s - at.since_s if waits and at.due_s is not None else None
        return ServerReport(
            name=server.name,
            state=at.state,
            since_unix_s=self._since_unix_s,
            pid=self._process.pid if self._process is not None else None,
            port=server.port,
            gpus=self.given.gpus,
            names=self.given.names or server.gpus or (("auto",) if server.placed else ()),
            user=server.user,
            model=model_of(server),
            restarts=at.restarts,
            reason="; ".join(filter(None, (at.reason, self.note))),
            ended=at.ended,
            starts_unix_s=starts_unix_s,
        )

    @property
    def record(self) -> Record | None:
        """What an other supervisor must know to adopt it; None if there is no process."""
        if self._process is None or self.launched is None:
            return None
        return Record(
            server=self.launched,
            process=Ran(self._process.pid, self._process.started, mark=self._process.mark),
            state=self.standing.state,
            since_unix_s=self._since_unix_s,
            hooks=self._hooks.ran,
            given=self.given,
            log=self._output.place.path if self._output is not None else "",
            log_begins=self._output.begins if self._output is not None else 0,
            restarts=self.standing.restarts,
            failures=self.standing.failures,
        )

    def adopt(self, record: Record) -> bool:
        """Go on with a process that an earlier supervisor started. False if it is gone."""
        process = Process.adopt(record.process.pid, record.process.started, record.process.mark)
        self._hooks.adopt(record.hooks, record.server.hooks)
        if process is None:
            return False
        away_s = max(time.time() - record.since_unix_s, 0.0)
        since_s = _now_s() - away_s
        self._take(process, record.server, record.given)
        place = logs.Place(path=record.log) if record.log else logs.Place(identifier=logs.PREFIX + record.server.name)
        self._placed(logs.Output(-1, place, record.log_begins))
        self._since_unix_s = record.since_unix_s
        was_ready = record.state is ServerState.READY
        state = ServerState.READY if was_ready else ServerState.STARTING
        self.standing = Standing(
            state, since_s, restarts=record.restarts, failures=record.failures, ready_s=since_s if was_ready else None
        )
        self.at_rest.clear()
        log.info("server.adopted", server=self.server.name, pid=process.pid, state=state.value)
        if not was_ready:
            self.post(decide.Launched())
        elif self.server.health_every_s and self.server.port is not None:
            self._do(decide.Probe(0.0))
        if record.state is ServerState.STOPPING:
            self.post(decide.Restart("the supervisor ended while it was being stopped"))
        return True

    async def sweep(self, record: Record) -> None:
        """End what a process that is gone has left behind."""
        await self._hooks.end()
        for each in (*record.hooks, record.process):
            await child.clear(each.pid, each.started, decide.STRAGGLERS_S, each.mark)

    def differs(self, server: Server) -> tuple[str, ...]:
        """The fields in which a description is another one than that of what runs, or would run."""
        return comparing.differences(self.launched or self.server, server)

    def needs_restart(self, server: Server) -> bool:
        """Whether only another process can be as that description says."""
        return comparing.needs_restart(self.launched or self.server, server)

    def adjust(self) -> None:
        """It is described otherwise now, and its process goes on."""
        if self.launched is not None:
            self.launched = self.server
        if self.standing.state is ServerState.READY:
            self._launch_hooks()
            if self.server.health_every_s:
                self._do(decide.Probe(self.server.health_every_s))

    def kill(self) -> None:
        """What is being ended anyway."""
        if self._process is not None:
            child.send(self._process.pid, self._process.started, signal.SIGKILL)
        self._hooks.kill()

    def forget(self) -> None:
        """Let everything live on, and do nothing any more."""
        for task in (self._task, self._probe):
            if task is not None:
                task.cancel()
        if self._timer is not None:
            self._timer.cancel()
        if self._process is not None:
            self._process.forget()
        self._hooks.forget()

    # ---- what is to be done -------------------------------------------------------------------------------------

    def _do(self, action: decide.Action) -> None:
        match action:
            case decide.Launch():
                self._task = _begin(self._launch(self.server))
            case decide.Clear(patience_s):
                self._task = _begin(self._clear(self._task, patience_s))
            case decide.Probe(after_s):
                self._stop_probing()
                self._probe = _begin(self._look(after_s))
            case decide.LaunchHooks():
                self._launch_hooks()

    def _set_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self.standing.due_s is not None:
            loop = asyncio.get_running_loop()
            self._timer = loop.call_at(self.standing.due_s, self.post, decide.Tick())

    async def _launch(self, server: Server) -> None:
        if not server.placed:
            await self._launch_now(server)
            return
        self.note = "waits until others have loaded, to see how much memory is left for it"
        self._around.changed()
        try:
            async with self._around.turn:
                await self._around.others_loaded(server.name)
                await self._launch_now(server)
        finally:
            self.note = ""

    async def _launch_now(self, server: Server) -> None:
        try:
            async with asyncio.timeout(PREPARE_S):
                prepared, taken = await aside(partial(_prepared, server, self._around.places.state))
        except TimeoutError:
            self.post(decide.Hindered(f"the driver or the model's file did not answer within {PREPARE_S:g} s"))
            return
        except CannotStart as error:
            self.post(decide.Hindered(str(error)) if error.later else decide.Refused(str(error)))
            return
        except Exception as error:
            log.exception("server.prepare_failed", server=server.name)
            self.post(decide.Refused(f"cannot be started: {type(error).__name__}: {error}"))
            return
        if taken:
            self.post(decide.Hindered(f"port {server.port} is taken by {taken}"))
            return
        self._start(server, prepared)

    def _start(self, server: Server, prepared: Prepared) -> None:
        """Without a pause in between: what is started is known, also if we are killed now."""
        try:
            output = self._open(server.name)
        except OSError as error:
            why = f"cannot be started: its log cannot be opened: {error.strerror or error}"
            self.post(decide.Hindered(why) if child.passes(error) else decide.Refused(why))
            return
        try:
            mark = marks.new(self._around.places.state, server.name)
            process = Process.start(prepared.argv, prepared.environment, prepared.directory, output.fd, mark)
        except CannotStart as error:
            self.post(decide.Hindered(str(error)) if error.later else decide.Refused(str(error)))
            return
        finally:
            os.close(output.fd)
        self._take(process, server, prepared.given)
        self._placed(output)
        self._around.save()
        log.info("server.started", server=server.name, pid=process.pid, port=server.port, log=output.place.words)
        self.post(decide.Launched())

    def _take(self, process: Process, server: Server, given: Given) -> None:
        self._process, self.launched, self.given = process, server, given
        self._loading = Loading(process.pid, self._directory(server) / model_of(server))
        self.note = ""
        process.ended.add_done_callback(lambda ended: self._over(process, ended.result()))

    def _placed(self, output: logs.Output) -> None:
        self._output = output
        if output.place.path:
            self._around.rotation.watch(Path(output.place.path))

    def _over(self, process: Process, how: How) -> None:
        if self._process is not process:
            return
        output = self._output
        hint = logs.last_words(output.place, output.begins, killed=how.killed) if output is not None else ""
        wanted = self.standing.state is ServerState.STOPPING
        say = log.info if wanted or how.well else log.warning
        say("server.ended", server=self.server.name, pid=process.pid, how=how.text, wanted=wanted)
        self.post(decide.Ended(how.text, how.well, hint))

    async def _clear(self, before: asyncio.Task[None] | None, patience_s: float) -> None:
        self._stop_probing()
        if before is not None and not before.done():
            before.cancel()
            await asyncio.wait({before})
        await self._hooks.end(min(PATIENCE_S, patience_s))
        process = self._process
        if process is not None:
            while not await process.clear(patience_s):
                self.note = "it does not end, not even by SIGKILL: perhaps a device does not answer"
                log.error("server.stuck", server=self.server.name, pid=process.pid, hint="see dmesg")
                self._around.changed()
            await asyncio.shield(process.ended)
            await asyncio.sleep(0)  # how it ended is told first
        self._process, self.launched, self.given, self.note = None, None, Given(), ""
        self._around.save()
        self.post(decide.Cleared())

    async def _look(self, after_s: float) -> None:
        await asyncio.sleep(after_s)
        server = self.launched
        if server is None or server.port is None:
            return
        door, process = health.door_of(server), self._process
        answer = await health.look(door)
        if answer.verdict is Verdict.READY and self.standing.state is ServerState.STARTING and process is not None:
            ask = partial(stranger, door.port, door.host, process.everything, process.started)
            other = await aside_within(ASK_S, ask, "")
            if other:
                answer = Answered(Verdict.SILENT, f"{other} listens on port {door.port}")
        if self.standing.state is ServerState.STARTING and answer.verdict is not Verdict.READY and self._loading:
            answer = Answered(answer.verdict, self._loading.told(answer.text))
        self._probe = None
        self.post(answer)

    def _stop_probing(self) -> None:
        if self._probe is not None:
            self._probe.cancel()
            self._probe = None

    def _launch_hooks(self) -> None:
        """In the surroundings of the server, and with its name."""
        server = self.server
        environment = base_environment(os.environ)
        if self.given.gpus:
            environment.update(visible.environment(self.given.gpus))
        environment.update(server.environment)
        environment.update(SERVER_NAME=server.name, SERVER_PORT=str(server.port or ""))
        if self._process is not None:
            environment.update(SERVER_PID=str(self._process.pid))
        self._hooks.launch(server.hooks, environment, str(self._directory(server)))

    def _open(self, name: str) -> logs.Output:
        output = logs.opened(name, self.server.log, self._around.places.logs, self._around.stream)
        if output.place.path:
            self._around.rotation.watch(Path(output.place.path))
        return output

    def _directory(self, server: Server) -> Path:
        return Path(server.directory) if server.directory else self._around.places.state

    def _file(self, name: str) -> Path:
        return self._around.places.logs / f"{name}.log"


def _prepared(server: Server, home: Path) -> tuple[Prepared, str]:
    """And who has its port."""
    found = prepare(server, os.environ, home)
    host = health.host_of(found.argv, found.environment)
    return found, "" if server.port is None else taken_by(server.port, host)


def _begin(work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
    return asyncio.get_running_loop().create_task(work)


def _now_s() -> float:
    return asyncio.get_running_loop().time()
