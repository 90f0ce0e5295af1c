"""Real sockets on the real kernel: namespaces, watched ports, children, and what /proc says about them."""

from __future__ import annotations

import contextlib
import itertools
import os
import signal
import socket
import struct
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from memscaler import resources
from memscaler.kernel import attachment, ledger
from memscaler.kernel.netns import entered
from memscaler.kernel.sock_diag import SockDiag
from memscaler.kernel.watch import PLAIN
from tests.patience import patience

ROOT = Path(__file__).resolve().parents[2]
BPF = resources.bpf_dir()
HOOKS = {"both": (), "tracepoint": ("sockops",), "no-btf": ("btf",)}
POLLED = {"polled": ("ringbuf",)}  # as before Linux 5.8: nothing is mmapped
RESET = struct.pack("ii", 1, 0)
LIVE_STATES = {"01", "08"}  # ESTABLISHED, CLOSE_WAIT, as /proc/net/tcp has them
PATIENCE_S = 15.0
SYN, RST = 2, 4

_names = itertools.count(1)
_ports = itertools.count(12000 + os.getpid() % 150 * 100)


def assert_eventually(
    condition: Callable[[], bool], what: Callable[[], str] = str, within_s: float = PATIENCE_S
) -> None:
    deadline = time.monotonic() + within_s * patience()
    while not condition():
        assert time.monotonic() < deadline, f"not within {within_s} s: {what()}"
        time.sleep(0.005)


def open_descriptors() -> int:
    return sum(1 for _ in Path("/proc/self/fd").iterdir())


def run(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, f"{command}: {done.stderr}"
    return done.stdout


def inside(netns: str, *command: str) -> str:
    """Run a command in the network namespace of this path or name.

    Not `ip -n` or `ip netns exec`: those make the root a slave mount, which fails in a chroot.
    """
    return run("nsenter", f"--net=/run/netns/{netns.rsplit('/', 1)[-1]}", *command)


@contextlib.contextmanager
def namespace() -> Iterator[str]:
    """Path of a new network namespace with a loopback interface."""
    name = f"ms-test-{os.getpid()}-{next(_names)}"
    run("ip", "netns", "add", name)
    try:
        inside(name, "ip", "link", "set", "lo", "up")
        yield f"/run/netns/{name}"
    finally:
        with contextlib.suppress(AssertionError):  # a test may have deleted it
            run("ip", "netns", "del", name)


def sysctl(netns: str, name: str, value: str) -> None:
    with entered(netns):
        Path("/proc/sys/" + name.replace(".", "/")).write_text(value)


def new_socket(netns: str, family: int = socket.AF_INET, protocol: int = 0) -> socket.socket:
    with entered(netns):
        return socket.socket(family, socket.SOCK_STREAM, protocol)


def listener(netns: str, port: int, address: str = "127.0.0.1", backlog: int = 128, protocol: int = 0) -> socket.socket:
    """Dual-stack where the address is "::"."""
    sock = new_socket(netns, socket.AF_INET6 if ":" in address else socket.AF_INET, protocol)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if sock.family == socket.AF_INET6:
        sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, int(address != "::"))
    sock.bind((address, port))
    sock.listen(backlog)
    return sock


def connected(
    netns: str, port: int, address: str = "127.0.0.1", source: tuple[str, int] | None = None, protocol: int = 0
) -> socket.socket:
    sock = new_socket(netns, socket.AF_INET6 if ":" in address else socket.AF_INET, protocol)
    sock.settimeout(PATIENCE_S)
    if source:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        sock.bind(source)
    sock.connect((address, port))
    return sock


def reset(sock: socket.socket) -> None:
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
    sock.close()


def forge_syns(netns: str, wanted: Sequence[tuple[int, int, bytes]]) -> None:
    """Send SYNs (port, source port, data) to 10.98.0.1 from 10.98.0.9, which does not exist: no SYN-ACK is answered."""
    forge(netns, wanted)


def forge(
    netns: str,
    wanted: Sequence[tuple[int, int, bytes]],
    flags: int = SYN,
    sequence: int = 1,
    ends: tuple[str, str] = ("10.98.0.9", "10.98.0.1"),
) -> None:
    """Send such segments, one per (port, source port, data)."""
    if ends[1] == "10.98.0.1" and "ms-void0" not in inside(netns, "ip", "link"):
        inside(netns, "ip", "link", "add", "ms-void0", "type", "veth", "peer", "name", "ms-void1")
        inside(netns, "ip", "addr", "add", "10.98.0.1/24", "dev", "ms-void0")
        inside(netns, "ip", "link", "set", "ms-void0", "up")
        inside(netns, "ip", "link", "set", "ms-void1", "up")
    with entered(netns):
        raw = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW)
    with raw:
        for port, source_port, data in wanted:
            raw.sendto(_segment(ends, (port, source_port), data, flags, sequence), (ends[1], 0))


def _segment(addresses: tuple[str, str], ports: tuple[int, int], data: bytes, flags: int, sequence: int) -> bytes:
    ends = b"".join(map(socket.inet_aton, addresses))
    port, source_port = ports
    segment = struct.pack(">HHIIBBHHH", source_port, port, sequence, 0, 5 << 4, flags, 65535, 0, 0) + data
    pseudo = ends + struct.pack(">BBH", 0, socket.IPPROTO_TCP, len(segment)) + segment
    total = sum(struct.unpack(f">{len(pseudo) // 2}H", pseudo))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    segment = segment[:16] + struct.pack(">H", ~total & 0xFFFF) + segment[18:]
    return struct.pack(">BBHHHBBH", 0x45, 0, 20 + len(segment), 0, 0, 64, socket.IPPROTO_TCP, 0) + ends + segment


def live_by_proc(netns: str) -> dict[int, int]:
    """Local port -> sockets in ESTABLISHED or CLOSE_WAIT, by /proc/net/tcp and tcp6: no netlink, none of our code."""
    with entered(netns):
        return live_here_by_proc()


def live_here_by_proc() -> dict[int, int]:
    """The same for the namespace that this thread is in; entering one takes milliseconds."""
    counts: dict[int, int] = {}
    texts = [Path(f"/proc/thread-self/net/{name}").read_text() for name in ("tcp", "tcp6")]
    for line in "".join(texts).splitlines():
        fields = line.split()
        if fields[3] in LIVE_STATES:
            port = int(fields[1].rsplit(":", 1)[1], 16)
            counts[port] = counts.get(port, 0) + 1
    return counts


def live_by_ss(netns: str, port: int) -> int:
    """The same for one local port, by ss."""
    listed = inside(netns, "ss", "-Htn", "state", "established", "state", "close-wait", f"sport = :{port}")
    return len(listed.splitlines())


@contextlib.contextmanager
def joined(netns: str, ours: str = "10.97.0.1/24", theirs: str = "10.97.0.2/24") -> Iterator[str]:
    """Another namespace at the other end of a veth pair: ms-here in `netns`, ms-there in the new one."""
    with namespace() as other:
        name = other.rsplit("/", 1)[1]
        inside(netns, "ip", "link", "add", "ms-here", "type", "veth", "peer", "name", "ms-there", "netns", name)
        try:
            for where, link, address in ((netns, "ms-here", ours), (other, "ms-there", theirs)):
                inside(where, "ip", "addr", "add", address, "dev", link, *(["nodad"] if ":" in address else []))
                inside(where, "ip", "link", "set", link, "up")
            yield other
        finally:
            with contextlib.suppress(AssertionError):  # a test may have deleted it
                inside(netns, "ip", "link", "del", "ms-here")


class Child:
    """A forked process that runs `work` and then sleeps until it is killed. Its descriptors are copies of ours."""

    def __init__(self, work: Callable[[], object], *, wait: bool = True) -> None:
        ready, done = os.pipe()
        self.pid = os.fork()
        if not self.pid:
            try:
                if not wait:
                    os.write(done, b"!")
                kept = work()
                if wait:
                    os.write(done, b"!")
                while kept is not done:
                    signal.pause()
            finally:
                os._exit(1)
        os.close(done)
        self.alive = True
        said = os.read(ready, 1)
        os.close(ready)
        assert said == b"!", "the child failed"

    @classmethod
    def running(cls, work: Callable[[], object]) -> Child:
        """Does not wait for `work` to be over, which may never be."""
        return cls(work, wait=False)

    def poll(self) -> bool:
        """True if it is over."""
        return not self.alive or self._reap(os.WNOHANG)

    def wait(self) -> None:
        """Until it is over by itself."""
        if self.alive:
            self._reap(0)

    def _reap(self, how: int) -> bool:
        pid, status = os.waitpid(self.pid, how)
        self.alive = pid == 0
        assert self.alive or status == 0, f"the child ended with {status}"
        return not self.alive

    def kill(self) -> None:
        if self.alive:
            self.alive = False
            os.kill(self.pid, signal.SIGKILL)
            os.waitpid(self.pid, 0)


class World:
    """An attachment, its ledger, and one network namespace in which things happen."""

    def __init__(self, hooks: str, netns: str, max_connections: int = 65536) -> None:
        self.hooks = hooks
        self.netns = netns
        self.attached = attachment.load(BPF, without=(HOOKS | POLLED)[hooks], max_connections=max_connections)
        self.ledger = ledger.Ledger(self.attached)
        self.diag = SockDiag(netns)

    @property
    def loses_nothing(self) -> bool:
        return self.attached.sees_every_open

    def close(self) -> None:
        self.ledger.close()
        self.diag.close()
        self.attached.close()


@contextlib.contextmanager
def world_of(hooks: str = "both", max_connections: int = 65536) -> Iterator[World]:
    with namespace() as netns:
        world = World(hooks, netns, max_connections)
        try:
            yield world
        finally:
            world.close()


class Port:
    """One watched port. What is opened through it is closed with it."""

    def __init__(
        self,
        world: World,
        ignore: Sequence[str] = (),
        diag: SockDiag | None = None,
        number: int = 0,
        watched: bool = True,
    ) -> None:
        self.world = world
        self.number = number or next(_ports)
        self.ignore = ignore
        self.diag = diag or world.diag
        self.kept = contextlib.ExitStack()
        if watched:
            self.begin()

    def begin(self) -> None:
        settings = replace(PLAIN, ignore=tuple(self.ignore))
        self.watch = self.world.ledger.watch(self.number, self.diag, settings)

    def listen(self, address: str = "127.0.0.1", backlog: int = 128, protocol: int = 0) -> socket.socket:
        return self.kept.enter_context(listener(self.world.netns, self.number, address, backlog, protocol))

    def connect(
        self, address: str = "127.0.0.1", source: tuple[str, int] | None = None, protocol: int = 0
    ) -> socket.socket:
        return self.kept.enter_context(connected(self.world.netns, self.number, address, source, protocol))

    def pair(self, server: socket.socket, address: str = "127.0.0.1") -> tuple[socket.socket, socket.socket]:
        """(the client's, the server's)."""
        client = self.connect(address)
        return client, self.kept.enter_context(server.accept()[0])

    def child(self, work: Callable[[], object]) -> Child:
        child = Child(work)
        self.kept.callback(child.kill)
        return child

    @property
    def live(self) -> int:
        return self.world.ledger.reading(self.watch).live

    @property
    def in_set(self) -> int:
        return self.world.ledger.live_in_set()[self.watch.slot]

    @property
    def by_proc(self) -> int:
        return live_by_proc(self.world.netns).get(self.number, 0)

    def settles(self, live: int, by_proc: int | None = None, within_s: float = PATIENCE_S) -> None:
        """The counters, the set and /proc agree on `live`. by_proc: where /proc also shows sockets of clients."""
        wanted = (live, live, live if by_proc is None else by_proc)
        seen: tuple[int, int, int] = (-1, -1, -1)

        def same() -> bool:
            nonlocal seen
            seen = (self.live, self.in_set, self.by_proc)
            return seen == wanted

        assert_eventually(same, lambda: f"(counters, set, /proc) is {seen}, not {wanted}", within_s)

    def close(self) -> None:
        self.kept.close()
