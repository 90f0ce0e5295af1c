"""Clocks that jump, and a time namespace: only CLOCK_MONOTONIC is used, and it is not the kernel's everywhere.

bpf_ktime_get_ns() is the machine's CLOCK_MONOTONIC; in a time namespace (a restored container, some sandboxes)
time.monotonic_ns() is shifted against it, so memscaler does not run there. Neither moves while the machine is suspended: an idle time goes on after it.
"""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.kernel.worlds import ROOT, namespace

# In a process of its own: a connection is seeded, one is counted, a close is lost, and what comes of it is told.
PROBE = """
import json, sys, time
from tests.kernel.worlds import Port, World, reset
world = World(sys.argv[2], sys.argv[1])
port = Port(world, watched=False)
server = port.listen()
seeded = port.pair(server)
wall = [time.time()]
port.begin()
first = port.pair(server)
port.settles(2)
apart_s = (time.monotonic_ns() - world.ledger.reading(port.watch).last_activity_ns) / 1e9
corrections = [world.ledger.reconcile(port.watch) for _ in range(3)]
key = next(key for key, value in world.ledger._connections.entries() if any(value[:8]))  # seen by a hook
entry = world.ledger._connections.get(key)
for end in first:
    reset(end)
port.settles(1)
world.ledger._connections.put(key, entry)
port.watch.seeded += 1
removed = [world.ledger.reconcile(port.watch).removed for _ in range(3)]
live = world.ledger.reading(port.watch).live
wall.append(time.time())
port.close()
world.ledger.reconcile(port.watch)
end = world.ledger.reading(port.watch).live
world.close()
print(json.dumps({"apart_s": apart_s, "corrections": sum(one.added + one.removed for one in corrections),
                  "removed": removed, "live": live, "end": end, "wall": wall}))
"""

JUMPING_WALL_CLOCK = """
#define _GNU_SOURCE
#include <dlfcn.h>
#include <time.h>

int clock_gettime(clockid_t clock, struct timespec *at)
{
    static int (*real)(clockid_t, struct timespec *);
    static long calls;

    if (!real)
        real = dlsym(RTLD_NEXT, "clock_gettime");
    int result = real(clock, at);
    if (clock == CLOCK_REALTIME)
        at->tv_sec += (++calls % 2 ? 1 : -1) * 315360000L;
    return result;
}
"""


def probe(hooks: str, *prefix: str, **environment: str) -> dict:
    with namespace() as netns:
        done = subprocess.run(
            [*prefix, sys.executable, "-c", PROBE, netns, hooks],
            cwd=ROOT,
            env={"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "PYTHONPATH": str(ROOT), **environment},
            capture_output=True,
            text=True,
            timeout=100,
            check=False,
        )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def is_right(said: dict) -> bool:
    return (said["corrections"], said["removed"], said["live"], said["end"]) == (0, [1, 0, 0], 1, 0)


@pytest.mark.parametrize("hooks", ["both", "tracepoint"])
def test_wall_clock_jumps(tmp_path: Path, hooks):
    """Ten years forth and back at every look: seeding, counting and healing do not notice."""
    source, library = tmp_path / "clock.c", tmp_path / "clock.so"
    source.write_text(JUMPING_WALL_CLOCK)
    subprocess.run(["gcc", "-shared", "-fPIC", "-O1", "-o", library, source, "-ldl"], check=True)
    said = probe(hooks, LD_PRELOAD=str(library))
    assert abs(said["wall"][1] - said["wall"][0]) > 1e8  # it did jump
    assert is_right(said), said
    assert 0 <= said["apart_s"] < 10


needs_time_namespaces = pytest.mark.skipif(
    not Path("/proc/self/ns/time").exists() or shutil.which("unshare") is None, reason="no time namespaces"
)


def test_same_clock_outside_of_time_namespaces():
    """The probe itself."""
    said = probe("both")
    assert is_right(said), said
    assert 0 <= said["apart_s"] < 10


LOAD = """
from pathlib import Path
from memscaler.core.errors import KernelUnavailable
from memscaler.kernel import attachment
try:
    attachment.load(Path("bpf"))
except KernelUnavailable as error:
    print(error, error.hint)
"""


@needs_time_namespaces
@pytest.mark.parametrize("offset_s", [100_000, -60], ids=["ahead", "behind"])
def test_time_namespace(offset_s):
    """Where the kernel's stamps are of another clock than ours, nothing may be decided by them: refused, with the reason."""
    command = ["unshare", "--time", f"--monotonic={offset_s}", "--fork", sys.executable, "-c", LOAD]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=True)
    assert f"shifted by {offset_s} s" in done.stdout
