"""Loading where things are missing, failing in one line, and leaving nothing behind: section 11, cases 19 and 20."""

import contextlib
import ctypes
import json
import os
import shutil
import signal
import socket
import struct
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from memscaler.core.errors import KernelUnavailable, MemscalerError, PermissionMissing
from memscaler.kernel import attachment, bpf, loader
from memscaler.kernel.ledger import Ledger, own_namespace
from tests.kernel.worlds import BPF, ROOT, assert_eventually, open_descriptors

PYTHON = attachment.DISTRIBUTION_PYTHON
PROGRAM_BY_ID, PROGRAM_QUERY = 13, 16


@pytest.fixture
def through(tmp_path: Path):
    """Make a "python" that is the distribution's, started through a shell script."""

    def make(script: str) -> str:
        path = tmp_path / "python-through"
        path.write_text(f"#!/bin/sh\nset -e\n{script}\n")
        path.chmod(0o755)
        return str(path)

    return make


@pytest.fixture
def loader_for_everybody(monkeypatch):
    """The loader where a user without any right can read it; the repository may lie in somebody's home."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        monkeypatch.setattr(attachment, "LOADER", Path(shutil.copy(attachment.LOADER, folder)))
        monkeypatch.setitem(globals(), "BPF", Path(shutil.copytree(BPF, f"{folder}/bpf")))
        yield


def load(python: str, **options):
    attached = attachment.load(BPF, loader_python=python, **options)
    try:
        count_one(attached)
    finally:
        attached.close()
    return attached


def count_one(attached: attachment.Attachment) -> None:
    """A connection on this machine comes and goes."""
    ledger = Ledger(attached)
    with socket.create_server(("127.0.0.1", 0)) as server:
        watch = ledger.watch(server.getsockname()[1], own_namespace())
        with socket.create_connection(server.getsockname()):
            accepted, _ = server.accept()
            assert_eventually(lambda: ledger.reading(watch).live == 1)
            accepted.close()
            assert_eventually(lambda: ledger.reading(watch).live == 0)
    ledger.close()


# In a chroot / is no mount, and unshare's own way to keep mounts private fails.
UNSHARE = "unshare --mount --propagation unchanged"
PRIVATE = "mount --make-rprivate / 2>/dev/null || mount --make-rprivate /sys"


def in_mount_namespace(commands: str) -> str:
    return f'exec {UNSHARE} sh -c \'{PRIVATE}; {commands}; exec {PYTHON} "$@"\' sh "$@"'


def failure(python: str) -> MemscalerError:
    """One line and a hint, whatever went wrong."""
    with pytest.raises(MemscalerError) as caught:
        attachment.load(BPF, loader_python=python)
    assert "\n" not in str(caught.value)
    return caught.value


# ---- less than everything -------------------------------------------------------------------------------------------


def test_everything():
    """Here nothing is missing: both hooks, the stub headers, nothing to say."""
    attached = load("")
    assert attached.sees_every_open
    assert attached.headers == "stubs"
    assert attached.tells_netns
    assert attached.notices == ()


def test_no_headers(through):
    """Neither /lib/modules nor /usr/src is needed."""
    hide = "; ".join(f"mount -t tmpfs none {path}" for path in ("/lib/modules", "/usr/src") if Path(path).is_dir())
    attached = load(through(in_mount_namespace(hide or "true")))
    assert attached.headers == "stubs"
    assert attached.sees_every_open


def cgroup_mounts() -> list[str]:
    return [line.split()[1] for line in Path("/proc/mounts").read_text().splitlines() if line.split()[2] == "cgroup2"]


def test_no_cgroup2(through):
    """Without cgroup v2 the tracepoint works alone, and says so."""
    attached = load(through(in_mount_namespace("; ".join(f"umount -l {path}" for path in cgroup_mounts()) or "true")))
    assert not attached.sees_every_open
    assert "no root of cgroup v2" in attached.notices[0]


@pytest.mark.skipif(not cgroup_mounts(), reason="no cgroup v2 here")
def test_cgroup2_of_a_container(through):
    """A container's own cgroup root is not taken for the machine's: the hook would miss everybody else."""
    child = Path(loader.cgroup2_root()) / f"ms-test-{os.getpid()}"
    child.mkdir()
    try:
        mounts = cgroup_mounts()
        mount = f"{'; '.join(f'umount -l {path}' for path in mounts)}; mount -t cgroup2 none {mounts[0]}"
        enter = f'echo $$ > {child}/cgroup.procs\nexec {UNSHARE} --cgroup sh -c \'{PRIVATE}; {mount}; exec {PYTHON} "$@"\' sh "$@"'
        attached = load(through(enter))
        assert not attached.sees_every_open
    finally:
        assert_eventually(lambda: not (child / "cgroup.procs").read_text())
        child.rmdir()


def test_no_btf(through):
    """Without BTF namespaces are not told apart, and it says so."""
    attached = load(through(in_mount_namespace("mount -t tmpfs none /sys/kernel/btf")))
    assert not attached.tells_netns
    assert attached.sees_every_open
    assert "namespaces are not told apart" in attached.notices[0]


def test_tracefs_gets_mounted(through):
    """A tracefs that is not mounted yet is mounted, and it says so."""
    hide = "umount -l /sys/kernel/tracing; umount -l /sys/kernel/debug 2>/dev/null || true"
    attached = load(through(in_mount_namespace(hide)))
    assert attached.notices == ("mounted tracefs on /sys/kernel/tracing",)


CAPABILITIES = ["bpf", "perfmon", "net_admin", "dac_read_search"]


def as_nobody(*capabilities: str) -> str:
    kept = ",".join(["-all", *(f"+{name}" for name in capabilities)])
    options = (
        f"--reuid=65534 --regid=65534 --clear-groups --inh-caps={kept} --ambient-caps={kept} --bounding-set={kept}"
    )
    return f'exec setpriv {options} {PYTHON} "$@"'


def test_minimal_capabilities(through):
    """Four capabilities, and no root."""
    attached = load(through(as_nobody(*CAPABILITIES)))
    assert attached.sees_every_open
    assert attached.tells_netns


def test_without_net_admin(through):
    """Without CAP_NET_ADMIN the sockops hook is refused; the tracepoint still works, and it says so."""
    attached = load(through(as_nobody("bpf", "perfmon", "dac_read_search")))
    assert not attached.sees_every_open
    assert "sockops" in attached.notices[0]


# ---- failures -------------------------------------------------------------------------------------------------------


def test_no_bcc(tmp_path: Path):
    """A python without bcc says what to install."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(tmp_path / "bare")], check=True)
    error = failure(str(tmp_path / "bare" / "bin" / "python"))
    assert isinstance(error, KernelUnavailable)
    assert "cannot import bcc" in str(error)
    assert "apt install python3-bpfcc" in error.hint


def test_python_that_is_not_there():
    """Nor is a wrong path a traceback."""
    error = failure("/nonexistent/python")
    assert str(error) == "cannot run /nonexistent/python: No such file or directory"


@pytest.mark.parametrize("capabilities", [[], CAPABILITIES[:3]], ids=["none", "without DAC_READ_SEARCH"])
@pytest.mark.usefixtures("loader_for_everybody")
def test_no_permission(through, capabilities):
    """Without capabilities: who to be, or what to grant; exit code 4."""
    error = failure(through(as_nobody(*capabilities)))
    assert isinstance(error, PermissionMissing)
    assert error.exit_code == 4
    assert "CAP_" in error.hint


def test_old_kernel(through):
    """A kernel without the ring buffer map is told by its version."""
    error = failure(through(f'exec setarch --uname-2.6 {PYTHON} "$@"'))
    assert "is too old" in str(error)
    assert error.exit_code == 69


def test_no_tracepoint(through):
    """A tracefs without our event."""
    hide = "umount -l /sys/kernel/debug 2>/dev/null || true; "
    hide += "mount -t tmpfs none /sys/kernel/tracing; mkdir /sys/kernel/tracing/events"
    assert "no tracepoint sock:inet_sock_set_state" in str(failure(through(in_mount_namespace(hide))))


def test_tracefs_that_cannot_be_mounted(through):
    """Without a place to mount it: the command to run."""
    hide = "mount -t tmpfs -o ro none /sys/kernel; mount -t tmpfs none /dev/shm"
    error = failure(through(in_mount_namespace(hide)))
    assert "tracefs is not mounted and cannot be" in str(error)
    assert "mount -t tracefs" in error.hint


def test_broken_program(tmp_path: Path):
    """A program that does not compile is one line, too, and keeps the compiler's talk to itself."""
    (tmp_path / "include").symlink_to(BPF / "include")
    (tmp_path / "connections.bpf.c").write_text("this is no C")
    with pytest.raises(KernelUnavailable, match="does not accept the BPF program") as caught:
        attachment.load(tmp_path)
    assert "\n" not in str(caught.value)


def test_loader_killed(through):
    """A loader that dies without an answer."""
    error = failure(through("kill -9 $$"))
    assert str(error) == "the BPF loader died (status -9)"


def test_loader_hangs(through, monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    """A loader that never answers is killed."""
    monkeypatch.setattr(attachment, "LOAD_TIMEOUT_S", 0.3)
    error = failure(through(f"echo $$ > {tmp_path}/pid; exec sleep 60"))
    assert "did not answer within" in str(error)
    assert not Path("/proc", (tmp_path / "pid").read_text().strip()).exists()


def test_too_few_descriptors(through):
    """A limit that leaves no room for the maps is told."""
    python = through(f'ulimit -n 1024; exec {PYTHON} "$@"')
    code = (
        "import resource; from pathlib import Path; from memscaler.kernel import attachment\n"
        "resource.setrlimit(resource.RLIMIT_NOFILE, (12, 1024))\n"
        f"try: attachment.load(Path('bpf'), loader_python={python!r})\n"
        "except attachment.KernelUnavailable as error: print(error)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False, timeout=60
    )
    assert done.stdout == "too few file descriptors are allowed for the BPF maps\n", done.stderr


# ---- leaving nothing behind -----------------------------------------------------------------------------------------


def program_exists(number: int) -> bool:
    with contextlib.suppress(FileNotFoundError):
        os.close(bpf._call(PROGRAM_BY_ID, struct.pack("=III", number, 0, 0)))
        return True
    return False


def sockops_programs() -> set[int]:
    """Ids of the programs attached to the root cgroup (BPF_PROG_QUERY)."""
    directory = os.open(loader.cgroup2_root(), os.O_RDONLY | os.O_DIRECTORY)
    ids = (ctypes.c_uint32 * 64)()
    query = struct.pack("=IIIIQII", directory, loader.BPF_CGROUP_SOCK_OPS, 0, 0, ctypes.addressof(ids), 64, 0)
    attributes = ctypes.create_string_buffer(query, 64)
    bpf._call(PROGRAM_QUERY, attributes)
    os.close(directory)
    return set(ids[: struct.unpack_from("=I", attributes, 24)[0]])


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_holder_killed(number):
    """However the holder ends, no program stays attached, nor in the kernel at all."""
    probe = subprocess.Popen(
        [sys.executable, str(Path(__file__).with_name("probe.py"))], stdout=subprocess.PIPE, text=True
    )
    with probe:
        programs = json.loads(probe.stdout.readline())
        assert set(programs) == {"tracepoint_program", "sockops_program", "data_program", "sent_program"}
        assert all(program_exists(each) for each in programs.values())
        assert programs["sockops_program"] in sockops_programs()
        probe.send_signal(number)
        probe.wait()
    assert_eventually(lambda: not any(program_exists(each) for each in programs.values()))
    assert programs["sockops_program"] not in sockops_programs()


def test_close_detaches():
    """So does closing; twice is fine. No descriptor is left."""
    before = open_descriptors()
    attached = attachment.load(BPF)
    assert open_descriptors() == before + len(attached.fds)
    assert sockops_programs()
    ours = sockops_programs()
    attached.close()
    attached.close()
    assert open_descriptors() == before
    assert_eventually(lambda: len(sockops_programs()) < len(ours))


def test_the_loader_is_gone_and_small_is_what_stays():
    """No child remains, and neither bcc nor LLVM is mapped into this process."""
    attached = attachment.load(BPF)
    with pytest.raises(ChildProcessError):
        os.waitpid(-1, os.WNOHANG)
    assert "LLVM" not in Path("/proc/self/maps").read_text()
    attached.close()
