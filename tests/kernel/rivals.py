"""What else runs on a machine with memscaler: other BPF programs, busy processors, packets handled in interrupts."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from memscaler.kernel.attachment import DISTRIBUTION_PYTHON
from tests.kernel.worlds import BPF, ROOT, Child, connected, inside, listener

LOADER_DIR = ROOT / "memscaler" / "kernel"

TRACER = """
from bcc import BPF
bpf = BPF(text='BPF_ARRAY(runs, u64, 1); TRACEPOINT_PROBE(raw_syscalls, sys_exit) { runs.atomic_increment(0); return 0; }')
print("ready", flush=True)
sys.stdin.read()
"""

SOCKOPS = """
import os
import loader
from bcc import BPF
bpf = BPF(text='int other(struct bpf_sock_ops *ops) { bpf_sock_ops_cb_flags_set(ops, 0); return 1; }')
cgroup = os.open(loader.cgroup2_root(), os.O_RDONLY | os.O_DIRECTORY)
fd = loader.link(bpf.load_func(b"other", loader.BPF_PROG_TYPE_SOCK_OPS).fd, cgroup, loader.BPF_CGROUP_SOCK_OPS)
print("ready", flush=True)
sys.stdin.read()
"""

BUSY = "import os\nwhile True: os.getppid()"


@contextlib.contextmanager
def rival(program: str) -> Iterator[None]:
    """Another BPF user: a process with a program of its own attached."""
    environment = {"PATH": os.defpath, "BCC_KERNEL_SOURCE": str(BPF / "include")}
    prologue = f"import sys\nsys.path.insert(0, {str(LOADER_DIR)!r})\n"
    command = [DISTRIBUTION_PYTHON, "-c", prologue + program]
    process = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment, text=True
    )
    with process:
        try:
            said = process.stdout.readline() if process.stdout else ""
            assert said == "ready\n", process.stderr and process.stderr.read()
            yield
        finally:
            process.kill()


@contextlib.contextmanager
def busy(processes: int = 2) -> Iterator[None]:
    """Processes that do nothing but system calls."""
    started = [subprocess.Popen([sys.executable, "-c", BUSY]) for _ in range(processes)]
    try:
        yield
    finally:
        for process in started:
            process.kill()
            process.wait()


def handle_packets_in_interrupts(netns: str) -> None:
    """Receive packet steering on lo: like with a real network card, another CPU's interrupt handles a packet."""
    mask = f"{(1 << (os.cpu_count() or 1)) - 1:x}"
    own_sys = "mount --make-rprivate /sys; mount -t sysfs none /sys"  # /sys shows the namespace that mounted it
    steer = f"{own_sys}; echo {mask} > /sys/class/net/lo/queues/rx-0/rps_cpus"
    inside(netns, "unshare", "--mount", "--propagation", "unchanged", "sh", "-ec", steer)


def open_and_close(netns: str, port: int, processes: int, each: int) -> None:
    """`each` connections in each of some processes, at once; returns when all are closed."""
    children = [
        Child.running(lambda turn=turn: _loop(netns, port, f"127.0.{turn}.1", each)) for turn in range(processes)
    ]
    for child in children:
        child.wait()


def _loop(netns: str, port: int, address: str, count: int) -> None:
    with listener(netns, port, address) as server:
        for _ in range(count):
            client = connected(netns, port, address)
            accepted, _ = server.accept()
            client.setsockopt(1, 13, b"\1\0\0\0\0\0\0\0")  # SO_LINGER: close by reset, no TIME_WAIT
            client.close()
            accepted.close()
    os._exit(0)


def rps_available() -> bool:
    return (os.cpu_count() or 1) > 1 and Path("/sys/class/net/lo/queues/rx-0/rps_cpus").exists()
