"""The stage server-sleep: vLLM's own sleep mode. Its weights go to host memory (level 1) or away (level 2).

https://docs.vllm.ai/en/latest/features/sleep_mode/ - POST /sleep?level=N, POST /wake_up, GET /is_sleeping, there only
with VLLM_SERVER_DEV_MODE=1 and effective only with --enable-sleep-mode. Before 0.17 a request to a sleeping server ends
it (illegal memory access: vllm-project/vllm #15483, #28714); since #34528 the scheduler is paused first, and a request
that comes too early waits until the server is awake. So older ones are refused.

The order after level 2 is vLLM's own, "Online Serving" in that document: /wake_up?tags=weights, then /collective_rpc
with reload_weights, then /wake_up?tags=kv_cache; /is_sleeping stays true until both are awake. Between the first and
the last no request may run, for there is no cache yet: 0.22 let it, and it ended the server (#44395; mended by #44483,
which was still under review on 2026-06-17, when 0.23 was out; 0.25 is the first release of which we are sure). We wake
because somebody comes, so level 2 is refused before that.
"""

from __future__ import annotations

import re
import time
from contextlib import suppress

from memscaler.config.stages import StageRule
from memscaler.core.stages import Stage
from memscaler.daemon.servers import server_of
from memscaler.kernel.processes import Processes
from memscaler.sleep.drivers import gpus, room
from memscaler.sleep.drivers.managers import Managers
from memscaler.sleep.drivers.protocol import (
    Call,
    Gone,
    Later,
    Look,
    Memo,
    NotAnnounced,
    Stuck,
    Target,
    Undone,
    Where,
)
from memscaler.sleep.drivers.talk import POLL_S, Answer, Door, Talk, door_of, why

FIRST_SAFE = {1: (0, 17), 2: (0, 25)}  # by level
_FREES_AT_LEAST = 0.1  # of what its processes had on the GPUs; vLLM itself says 0.9
_SETTLES_S = 10.0  # the answer to /sleep may come before it sleeps
_ENABLED = ("--enable-sleep-mode", "--enable_sleep_mode")


class ServerSleep:
    """Driver of the stage."""

    stage = Stage.SERVER_SLEEP

    def __init__(self, talk: Talk, managers: Managers, machine: room.Room) -> None:
        self._talk = talk
        self._managers = managers
        self._room = machine

    def possible(self, server: Target, rule: StageRule, call: Call) -> str:
        processes = Processes.look()
        argv = {pid: processes.argv(pid) for pid in server.pids}
        kinds = {found.kind for pid in argv if (found := server_of(argv[pid], processes.comm(pid)))}
        if "vllm" not in kinds:
            return _not_vllm(server, kinds)
        if not rule.force and (owner := self._managers.owner(server, call)):
            return owner
        door = door_of(server)
        if reason := self._version(server, rule.level, door, call):
            return reason
        asleep = self._is_sleeping(door, call)
        if isinstance(asleep, str):
            return asleep
        titled = any(words and words[0].startswith("VLLM::") for words in argv.values())
        words = [word.partition("=")[0] for each in argv.values() for word in each]
        if not titled and "--config" not in words and not set(_ENABLED) & set(words):
            return f"{server} was not started with --enable-sleep-mode"
        return self._memory(server, rule, processes) if not asleep else ""

    def prepare(self, server: Target, rule: StageRule, call: Call) -> Memo:
        _ = call
        return {"driver": self.stage.value, "server": str(server), "level": rule.level, "door": door_of(server).memo(),
                "gpus": list(server.gpus)}  # fmt: skip

    def enter(self, memo: Memo, call: Call) -> None:
        door, level = Door.of(memo), int(memo["level"])
        asleep = self._told(memo, door, call, Later)
        if asleep:
            return
        if call.abandoned():
            raise Undone("somebody came before it slept")
        before = self._used(door)
        try:
            # mode: requests that came in this very moment are answered first
            answer = self._talk.ask(door, "POST", f"/sleep?level={level}&mode=wait", call.until_s)
        except NotAnnounced as error:
            raise Later(f"{memo['server']} was not asked to sleep: {why(error)}") from error
        except OSError as error:
            self._undo(memo, door, call, f"it did not fall asleep: {why(error)}")
        else:
            if not answer.ok:
                self._undo(memo, door, call, f"it refuses to sleep: {_said(answer)}")
        if not self._settled(door, call, asleep=True):
            self._undo(memo, door, call, "it said that it would sleep, and does not")
        after = self._used(door)
        if before and after is not None and after > before * (1 - _FREES_AT_LEAST):
            self._undo(memo, door, call, "its sleep frees no memory of the GPU", for_good=True)

    def leave(self, memo: Memo, call: Call) -> None:
        door = Door.of(memo)
        if not self._told(memo, door, call, Stuck):
            return
        if int(memo["level"]) == 1:
            self._post(memo, door, "/wake_up", call)
        else:
            self._post(memo, door, "/wake_up?tags=weights", call)
            self._post(memo, door, "/collective_rpc", call, {"method": "reload_weights"})
            self._post(memo, door, "/wake_up?tags=kv_cache", call)
        if not self._settled(door, call, asleep=False):
            raise Stuck(f"{memo['server']} said that it would wake, and sleeps still")

    def look(self, memo: Memo, call: Call) -> Look:
        door = Door.of(memo)
        if door.gone:
            return Look(Where.GONE, "its process has ended")
        try:
            asleep = self._is_sleeping(door, call)
        except Later as error:
            return Look(Where.UNKNOWN, str(error))
        if isinstance(asleep, str):
            return Look(Where.UNKNOWN, asleep)
        return Look(Where.DOWN if asleep else Where.UP)

    # ---- asking ------------------------------------------------------------------------------------------------------

    def _version(self, server: Target, level: int, door: Door, call: Call) -> str:
        try:
            text = str(self._talk.get(door, "/version", call.until_s).document().get("version", ""))
        except (OSError, NotAnnounced) as error:
            raise Later(f"{server} does not tell its version: {why(error)}") from error
        found = re.match(r"v?(\d{1,4})\.(\d{1,4})", text)
        if found is None:
            return f"{server} does not tell its version; below vLLM 0.17 a request would end it while it sleeps"
        version = int(found[1]), int(found[2])
        if version < FIRST_SAFE[1]:
            return f"{server} is vLLM {text}: below 0.17 a request that comes while it sleeps ends it"
        if version < FIRST_SAFE[level]:
            return f"{server} is vLLM {text}: below 0.25 a request that comes while it wakes from level 2 may end it"
        return ""

    def _is_sleeping(self, door: Door, call: Call, *, at_any_rate: bool = False) -> bool | str:
        """A sentence if it cannot sleep. Raise Later if it does not tell."""
        try:
            answer = self._talk.get(door, "/is_sleeping", call.until_s, at_any_rate=at_any_rate)
        except (OSError, NotAnnounced) as error:
            raise Later(f"port {door.key} does not tell whether it sleeps: {why(error)}") from error
        if answer.status == 404:  # noqa: PLR2004
            return "it has no sleep mode: it was not started with VLLM_SERVER_DEV_MODE=1"
        told = answer.document().get("is_sleeping")
        if not answer.ok or not isinstance(told, bool):
            raise Later(f"port {door.key} does not tell whether it sleeps: {_said(answer)}")
        return told

    def _told(self, memo: Memo, door: Door, call: Call, doubt: type[Later | Stuck]) -> bool:
        """Does it sleep? Raise Gone, or `doubt`."""
        if door.gone:
            raise Gone(f"{memo['server']} has ended")
        try:
            asleep = self._is_sleeping(door, call, at_any_rate=doubt is Stuck)
        except Later as error:
            if door.is_going():
                raise Gone(f"{memo['server']} has ended") from error
            raise doubt(str(error)) from error
        if isinstance(asleep, str):
            raise doubt(f"{memo['server']}: {asleep}")
        return asleep

    def _settled(self, door: Door, call: Call, *, asleep: bool) -> bool:
        end_s = min(call.until_s, time.monotonic() + _SETTLES_S)
        while True:
            with suppress(Later):
                if self._is_sleeping(door, call, at_any_rate=not asleep) is asleep:
                    return True
            if time.monotonic() + POLL_S > end_s:
                return False
            time.sleep(POLL_S)

    def _post(self, memo: Memo, door: Door, path: str, call: Call, body: dict[str, object] | None = None) -> None:
        """Raise Stuck, or Gone if its process has ended over it."""
        try:
            answer = self._talk.ask(door, "POST", path, call.until_s, body, at_any_rate=True)
        except OSError as error:
            if door.is_going():
                raise Gone(f"{memo['server']} ended when it was woken", hint="see its log; start it anew") from error
            raise Stuck(f"{memo['server']} was not woken by {path}: {why(error)}") from error
        if not answer.ok:
            raise Stuck(f"{memo['server']} was not woken by {path}: {_said(answer)}")

    def _undo(self, memo: Memo, door: Door, call: Call, because: str, *, for_good: bool = False) -> None:
        """Raise Undone if it is up, Gone if it has ended, Stuck if neither."""
        if door.is_going():
            raise Gone(f"{memo['server']} has ended: {because}")
        self.leave(memo, Call(max(call.until_s, time.monotonic() + _SETTLES_S)))
        raise Undone(f"{memo['server']}: {because}", for_good=for_good)

    # ---- memory ------------------------------------------------------------------------------------------------------

    def _memory(self, server: Target, rule: StageRule, processes: Processes) -> str:
        """Whether the host has room for its weights: level 1 keeps them there."""
        if rule.level != 1:
            return ""
        needed = gpus.look().bytes_of(gpus.family(server.pids, processes))
        return self._room.refusal(needed or 0, min(server.pids), str(server))

    def _used(self, door: Door) -> int | None:
        """Of the GPUs, by the server behind this door; None if it cannot be told."""
        if not door.pid:
            return None
        with suppress(Later, OSError):
            return gpus.look().bytes_of(gpus.family([door.pid], Processes.look()))
        return None


def _not_vllm(server: Target, kinds: set[str]) -> str:
    if "llama.cpp" in kinds:
        return f"{server} is llama.cpp: it sleeps by itself, if it is started with --sleep-idle-seconds"
    if "sglang" in kinds:
        return f"{server} is SGLang: it does not tell whether its memory is released, and releasing it twice ends it"
    return f"{server} is no vLLM: nothing else has a sleep that can be asked for"


def _said(answer: Answer) -> str:
    words = " ".join("".join(each if each.isprintable() else " " for each in answer.text).split())
    return f"status {answer.status}" + (f", {words[:120]}" if words else "")
