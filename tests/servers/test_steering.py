"""What operators do with a supervisor, in this process."""

import asyncio
import contextlib
import json

import pytest

from memscaler.config.servers import Hook, Server
from memscaler.core.errors import MemscalerError, UsageError
from memscaler.core.servers import ServerState
from memscaler.servers.places import Places
from memscaler.servers.supervisor import Supervisor
from tests.asked import short_folder
from tests.patience import patience
from tests.servers.bench import PYTHON

SLEEPER = (PYTHON, "-c", "import time; time.sleep(1000)")


@contextlib.asynccontextmanager
async def supervising(folder, *servers):
    places = Places(folder / "run", folder / "state", folder / "logs")
    for path in (places.runtime, places.state):
        path.mkdir(exist_ok=True)
    made = Supervisor(places, stream=folder / "no-journal")
    made.open(servers)
    try:
        yield made
    finally:
        await made.close()


async def until(supervisor, name, state):
    async with asyncio.timeout(30 * patience()):
        while True:
            found = next((each for each in supervisor.report().servers if each.name == name), None)
            if found is not None and found.state is state:
                return found
            await asyncio.sleep(0.01)


def in_folder(steps):
    with short_folder() as folder:
        asyncio.run(asyncio.wait_for(steps(folder), 100 * patience()))


def test_switches_outlive_the_supervisor():
    """An operator's word goes before the description's, until he takes it back or nobody describes the server."""

    async def steps(folder):
        on, off = Server(name="on", command=SLEEPER), Server(name="off", command=SLEEPER, enabled=False)
        async with supervising(folder, on, off) as supervisor:
            await until(supervisor, "on", ServerState.READY)
            await until(supervisor, "off", ServerState.DISABLED)
            supervisor.disable("on")
            supervisor.enable("off")
            assert "by an operator" in (await until(supervisor, "on", ServerState.DISABLED)).reason
            await until(supervisor, "off", ServerState.READY)
            with pytest.raises(UsageError, match="server on is disabled"):
                supervisor.start("on")
            with pytest.raises(UsageError, match="there is no server other"):
                supervisor.disable("other")
        async with supervising(folder, on, off) as supervisor:
            await until(supervisor, "on", ServerState.DISABLED)
            await until(supervisor, "off", ServerState.READY)
            supervisor.enable("on")
            supervisor.disable("off")
            await until(supervisor, "on", ServerState.READY)
            await until(supervisor, "off", ServerState.DISABLED)
        assert json.loads((folder / "state/switches.json").read_text())["enabled"] == {}

    in_folder(steps)


def test_left_servers_are_adopted_by_the_next_supervisor():
    """What a restart of the unit does: the same processes, one report after the other."""

    async def steps(folder):
        server = Server(name="a", command=SLEEPER, hooks=(Hook(name="h", command=SLEEPER),))
        places = Places(folder / "run", folder / "state", folder / "logs")
        for path in (places.runtime, places.state):
            path.mkdir()
        first = Supervisor(places, stream=folder / "no-journal")
        first.open([server])
        before = await until(first, "a", ServerState.READY)
        first.leave()
        assert json.loads((places.runtime / "servers.json").read_text())["servers"][0]["pid"] == before.pid
        async with supervising(folder, server) as second:
            after = second.report().servers[0]
            assert (after.pid, after.state) == (before.pid, ServerState.READY)
            closing = asyncio.ensure_future(second.close())
            await asyncio.sleep(0)
            with pytest.raises(MemscalerError, match="the supervisor is ending"):
                second.apply([server])
            await closing

    in_folder(steps)


def test_stop_start_and_restart():
    """Each gives another process; a stopped one stays so when the same is applied again."""

    async def steps(folder):
        server = Server(name="a", command=SLEEPER)
        async with supervising(folder, server) as supervisor:
            pids = [(await until(supervisor, "a", ServerState.READY)).pid]
            supervisor.stop("a")
            await until(supervisor, "a", ServerState.STOPPED)
            assert supervisor.apply([server]).unchanged == ("a",)
            assert supervisor.report().servers[0].state is ServerState.STOPPED
            supervisor.start("a")
            pids.append((await until(supervisor, "a", ServerState.READY)).pid)
            supervisor.restart("a")
            supervisor.restart("a")  # one is enough
            await until(supervisor, "a", ServerState.STOPPING)
            pids.append((await until(supervisor, "a", ServerState.READY)).pid)
            assert len(set(pids)) == 3
            assert supervisor.report().servers[0].restarts == 0

    in_folder(steps)


def test_apply_touches_what_differs_and_says_so():
    """A dry run says the same and does nothing."""

    async def steps(folder):
        same, other, gone = (Server(name=name, command=SLEEPER) for name in ("same", "other", "gone"))
        async with supervising(folder, same, other, gone) as supervisor:
            before = {
                name: (await until(supervisor, name, ServerState.READY)).pid for name in ("same", "other", "gone")
            }
            wanted = (
                Server(name="same", command=SLEEPER, restart_limit=9),
                Server(name="other", command=SLEEPER, environment=(("A", "1"),)),
                Server(name="new", command=SLEEPER),
            )
            told = supervisor.apply(wanted, dry_run=True)
            assert (told.added, told.removed, told.restarted) == (("new",), ("gone",), ("other",))
            assert told.changed == {"same": ("restart_limit",), "other": ("environment",)}
            assert {each.name: each.pid for each in supervisor.report().servers} == before
            assert supervisor.apply(wanted) == told
            await until(supervisor, "new", ServerState.READY)
            while supervisor.report().servers[-2].pid in (None, before["other"]):
                assert supervisor.report().servers[-2].name == "other"
                await asyncio.sleep(0.01)
            assert (await until(supervisor, "same", ServerState.READY)).pid == before["same"]
            while "gone" in [each.name for each in supervisor.report().servers]:  # noqa: ASYNC110  # a state of ours
                await asyncio.sleep(0.01)
            assert supervisor.apply(wanted).unchanged == ("same", "other", "new")
            assert supervisor.pending("other") == ()
            supervisor.apply(())
            supervisor.apply(wanted)  # before they are gone
            for name in ("same", "other", "new"):
                assert (await until(supervisor, name, ServerState.READY)).pid not in before.values()

    in_folder(steps)


def test_one_that_failed_is_tried_again_when_its_description_changes():
    """And left alone otherwise."""

    async def steps(folder):
        bad = Server(name="a", command=("/no/such",))
        async with supervising(folder, bad) as supervisor:
            await until(supervisor, "a", ServerState.FAILED)
            supervisor.apply([bad])
            assert supervisor.report().servers[0].state is ServerState.FAILED
            supervisor.apply([Server(name="a", command=SLEEPER)])
            await until(supervisor, "a", ServerState.READY)

    in_folder(steps)
