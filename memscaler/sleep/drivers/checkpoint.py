"""The stage checkpoint: by cuda-checkpoint a process's memory of the GPU goes to host memory, and it leaves the GPU.

    enter   running -lock-> locked -checkpoint-> checkpointed      lock fails, or somebody came: unlock
    leave   checkpointed -restore-> locked -unlock-> running       from wherever it is

The state is read before and after each step, and nothing is ever toggled. `failed` is the end of that process. While it
is checkpointed its CPU threads go on: it listens, and answers /health; only what needs the GPU waits.
"""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from memscaler.config.gpuctl import Gvm
from memscaler.config.stages import StageRule
from memscaler.core.stages import Stage
from memscaler.kernel.processes import Processes, start_time
from memscaler.sleep.drivers import checkpoint_gates, cuda, gpus, room
from memscaler.sleep.drivers.checkpoint_gates import Facts
from memscaler.sleep.drivers.cuda import Busy, Calls, State, ToolError, ToolHangs
from memscaler.sleep.drivers.managers import Managers
from memscaler.sleep.drivers.protocol import (
    Broken,
    Call,
    Gone,
    Later,
    Look,
    Memo,
    Stuck,
    Target,
    Undone,
    Where,
)

LOCK_S = 10.0  # for work on the GPU to end; there should be none
UNDO_S = 60.0  # of an enter's time, for bringing it back; or half of it
AGAIN_S = 1.0
MOST_TRIES = 3
HINT = "start the server anew; then see docs/stages.md"
_WHERE = {
    State.RUNNING: Where.UP,
    State.LOCKED: Where.BETWEEN,
    State.CHECKPOINTED: Where.DOWN,
    State.CHECKPOINTING: Where.BETWEEN,
    State.RESTORING: Where.BETWEEN,
    State.FAILED: Where.FAILED,
    State.UNKNOWN: Where.UNKNOWN,
}
_BACK = {State.CHECKPOINTED: "restore", State.LOCKED: "unlock"}
_MOVING = (State.CHECKPOINTING, State.RESTORING)


class Checkpoint:
    """Driver of the stage. runtime: where locks are kept. root: where the system is; gvm: where in it GVM is."""

    stage = Stage.CHECKPOINT

    def __init__(
        self,
        runtime: Path,
        managers: Managers,
        machine: room.Room,
        root: Path = Path("/"),
        gvm: Callable[[], Gvm] = Gvm,
    ) -> None:
        self._folder = runtime
        self._managers = managers
        self._room = machine
        self._root, self._gvm = root, gvm

    def possible(self, server: Target, rule: StageRule, call: Call) -> str:
        if not rule.force and (owner := self._managers.owner(server, call)):
            return owner
        idle_s = "" if rule.force else self._managers.own_sleep(server)
        if idle_s and not self._managers.asleep_by(server, call):
            raise Later(f"llama.cpp puts {server} to sleep by itself after {idle_s} s, and has not yet")
        facts, tool = self._facts(server, rule)
        if reason := checkpoint_gates.refusal(facts):
            return reason
        ((pid, boards),) = facts.users.items()
        if reason := self._room.refusal(sum(each or 0 for each in boards.values()), pid, str(server)):
            return reason
        assert tool is not None  # noqa: S101  # else refused
        try:
            with cuda.locked(tool.path, pid, self._folder, call.until_s, kill=False) as calls:
                state = calls.state(call.until_s)
        except ToolError as error:
            raise Later(f"{server}: {error}") from error
        return "" if state is State.RUNNING else f"its CUDA state is {state} already, which is not our doing"

    def prepare(self, server: Target, rule: StageRule, call: Call) -> Memo:
        _ = call
        facts, tool = self._facts(server, rule)
        if tool is None or len(facts.users) != 1:
            raise Later(f"{server} has changed: {facts.tool_problem or 'not one of its processes has a CUDA context'}")
        ((pid, boards),) = facts.users.items()
        started = start_time(pid)
        if started is None:
            raise Later(f"{server} has just ended")
        return {"driver": self.stage.value, "server": str(server), "pid": pid, "started": started,
                "program": str(tool.path), "gpus": list(boards)}  # fmt: skip

    def enter(self, memo: Memo, call: Call) -> None:
        try:
            with self._calls(memo, call) as calls:
                self._enter(memo, call, calls)
        except Busy as error:
            raise Later(f"{memo['server']}: {error}") from error

    def leave(self, memo: Memo, call: Call) -> None:
        try:
            with self._calls(memo, call, kill=True) as calls:
                self._back(memo, calls, call.until_s)
        except Busy as error:
            raise Stuck(f"{memo['server']}: {error}") from error

    def look(self, memo: Memo, call: Call) -> Look:
        if _is_gone(memo):
            return Look(Where.GONE, "its process has ended")
        brief_s = min(call.until_s, time.monotonic() + cuda.STATE_S)
        try:
            with cuda.locked(Path(memo["program"]), int(memo["pid"]), self._folder, brief_s, kill=False) as calls:
                state = calls.state(brief_s)
        except Busy as error:
            return Look(Where.BETWEEN, str(error))
        except ToolError as error:
            return Look(Where.GONE, "its process has ended") if _is_gone(memo) else Look(Where.UNKNOWN, str(error))
        return Look(_WHERE[state], f"its CUDA state is {state}")

    # ---- what is known -----------------------------------------------------------------------------------------------

    def _facts(self, server: Target, rule: StageRule) -> tuple[Facts, cuda.Tool | None]:
        processes = Processes.look()
        boards = gpus.look()
        users = boards.users(gpus.family(server.pids, processes))
        pids = frozenset(users)
        problem, tool = "", None
        try:
            tool = cuda.find(rule.program)
        except ToolError as error:
            problem = str(error)
        return Facts(
            machine=platform.machine(),
            root=os.geteuid() == 0,
            driver=boards.driver,
            users=users,
            persistence={uuid: board.persistence for uuid, board in boards.boards.items()},
            unified=checkpoint_gates.unified(pids, processes),
            managed=checkpoint_gates.managed(pids, self._root, self._gvm()),
            tool_problem=problem,
            tool_version=tool.version if tool else "",
            tool_actions=tool.actions if tool else False,
        ), tool

    @contextmanager
    def _calls(self, memo: Memo, call: Call, *, kill: bool = False) -> Iterator[Calls]:
        """Nobody else of ours touches the process meanwhile. Raise Gone, Busy."""
        if _is_gone(memo):
            raise Gone(f"{memo['server']} (pid {memo['pid']}) has ended")
        with cuda.locked(Path(memo["program"]), int(memo["pid"]), self._folder, call.until_s, kill=kill) as calls:
            yield calls

    # ---- down --------------------------------------------------------------------------------------------------------

    def _enter(self, memo: Memo, call: Call, calls: Calls) -> None:
        act_until_s = call.until_s - min(UNDO_S, call.left_s / 2)
        if self._state_before(memo, calls, act_until_s) is State.CHECKPOINTED:
            return
        because = "somebody came before it was checkpointed"
        if call.abandoned():
            raise Undone(f"{memo['server']}: {because}")
        try:
            lock_s = min(LOCK_S, act_until_s - time.monotonic())
            calls.act("lock", act_until_s, "--timeout", str(max(1, int(lock_s * 1000))))
            if not call.abandoned():
                calls.act("checkpoint", act_until_s)
                because = "cuda-checkpoint says that it is done, and it is not"
        except ToolHangs as error:
            raise Stuck(f"{memo['server']}: {error}; it is left to finish") from error
        except ToolError as error:
            because = str(error)
        if self._state_after(memo, calls, call.until_s) is not State.CHECKPOINTED:
            self._back(memo, calls, call.until_s)
            raise Undone(f"{memo['server']}: {because}")

    def _state_before(self, memo: Memo, calls: Calls, until_s: float) -> State:
        """Running, or checkpointed already. Raise Later, Broken, Gone."""
        try:
            state = calls.state(until_s)
        except ToolError as error:
            raise (Gone if _is_gone(memo) else Later)(f"{memo['server']}: {error}") from error
        if state is State.FAILED:
            raise _broken(memo, "its CUDA state is failed")
        if state not in (State.RUNNING, State.CHECKPOINTED):
            raise Later(f"{memo['server']}: its CUDA state is {state}, which is not our doing")
        return state

    def _state_after(self, memo: Memo, calls: Calls, until_s: float) -> State:
        """Once it is one that can be told. Raise Broken, Gone, Stuck."""
        tries = 0
        while tries < MOST_TRIES and time.monotonic() < until_s:
            try:
                state = calls.state(until_s)
            except ToolError:
                state = State.UNKNOWN
            if _is_gone(memo):
                raise _ended(memo)
            if state is State.FAILED:
                raise _broken(memo, "its checkpoint failed")
            if state not in (State.UNKNOWN, *_MOVING):
                return state
            tries += state is State.UNKNOWN
            _pause(until_s)
        raise Stuck(f"{memo['server']}: its CUDA state cannot be told")

    # ---- back --------------------------------------------------------------------------------------------------------

    def _back(self, memo: Memo, calls: Calls, until_s: float) -> None:
        """To `running`, from wherever it is. Raise Broken, Gone, Stuck."""
        tries, problem, done = 0, "", State.UNKNOWN
        while tries < MOST_TRIES:
            try:
                state = calls.state(until_s)
                if state is State.RUNNING:
                    return
                if state is State.FAILED:
                    raise _broken(memo, "its CUDA state is failed" + (f" ({problem})" if problem else ""))
                if (action := _BACK.get(state)) is not None and state is not done:
                    calls.act(action, until_s)
                    done = state
                    continue
                if action is not None:
                    tries, problem, done = tries + 1, f"it is {state} also after {action}", State.UNKNOWN
                elif state is State.UNKNOWN:
                    tries, problem = tries + 1, "its CUDA state is none that we know"
            except ToolError as error:
                if _is_gone(memo):
                    raise _ended(memo) from error
                if isinstance(error, ToolHangs):
                    raise Stuck(f"{memo['server']}: {error}") from error
                tries, problem = tries + 1, str(error)
            _pause(until_s)
        raise Stuck(f"{memo['server']} does not come back: {problem}", hint=HINT)


def _pause(until_s: float) -> None:
    time.sleep(max(0.0, min(AGAIN_S, until_s - time.monotonic())))


def _is_gone(memo: Memo) -> bool:
    return start_time(int(memo["pid"])) != int(memo["started"])


def _ended(memo: Memo) -> Gone:
    return Gone(f"{memo['server']} (pid {memo['pid']}) ended while it was checkpointed", hint=HINT)


def _broken(memo: Memo, why: str) -> Broken:
    return Broken(f"{memo['server']} (pid {memo['pid']}) will not come back: {why}", hint=HINT)
