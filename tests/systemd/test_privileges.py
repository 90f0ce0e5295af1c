"""What is dropped is gone, for children too; what governing needs is left."""

import json
import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from memscaler.daemon import privileges
from memscaler.daemon.privileges import GOVERNING

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
ROOT = Path(__file__).resolve().parents[2]
STATUS = """
def status():
    lines = open("/proc/thread-self/status").read().splitlines()
    found = dict(line.split(":", 1) for line in lines if ":" in line)
    return {name: found[name].strip() for name in ("CapEff", "CapPrm", "CapInh", "CapBnd", "CapAmb", "NoNewPrivs")}
"""
CALL = """
import ctypes, errno
libc = ctypes.CDLL(None, use_errno=True)
def refused(number, *arguments):
    ctypes.set_errno(0)
    libc.syscall(number, *map(ctypes.c_long, arguments))
    return ctypes.get_errno() == errno.EPERM
"""
X86 = pytest.mark.skipif(os.uname().machine != "x86_64", reason="the numbers are those of x86_64")


def python(code: str, *prefix: str) -> object:
    """What the code prints, as JSON, in a process of its own."""
    command = [*prefix, sys.executable, "-c", f"import json\nfrom memscaler.daemon.privileges import *\n{code}"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def mask(*names: str) -> int:
    return sum(1 << privileges._BITS[name] for name in names)


def expected() -> set[str]:
    """What is left where the tests run: in a container root has less, and may not lift the limit of locked memory."""
    mine = privileges._effective()
    wanted = {*GOVERNING} if mine & mask("CAP_SYS_RESOURCE") else {*GOVERNING, "CAP_IPC_LOCK"}
    return {name for name in wanted if mine & mask(name)}


def test_rights():
    """Root keeps those of governing: in all sets, for good, and for every program that is started."""
    code = f"STATUS = {STATUS!r}\nexec(STATUS)\nimport subprocess, sys\nkept = keep_rights()\n"
    code += "child = subprocess.run([sys.executable, '-c', STATUS + 'import json; print(json.dumps(status()))'],"
    code += " capture_output=True, text=True, check=True)\n"
    code += "print(json.dumps({'kept': sorted(kept), 'own': status(), 'child': json.loads(child.stdout)}))"
    found = python(code)
    assert set(found["kept"]) == expected()
    for who in ("own", "child"):
        sets = found[who]
        assert int(sets["CapEff"], 16) == int(sets["CapPrm"], 16) == int(sets["CapBnd"], 16) == mask(*expected()), who
        assert (int(sets["CapInh"], 16), int(sets["CapAmb"], 16), sets["NoNewPrivs"]) == (0, 0, "1")


def test_rights_that_are_not_there_do_not_come():
    """In the unit there are three; two of those that could be kept are not among them."""
    kept = "+sys_admin,+sys_ptrace,+dac_read_search"
    left = python(
        "print(json.dumps(sorted(keep_rights())))", "setpriv", f"--bounding-set=-all,{kept}", "--inh-caps=-all"
    )
    assert left == ["CAP_DAC_READ_SEARCH", "CAP_SYS_ADMIN", "CAP_SYS_PTRACE"]


def test_not_root():
    """Whoever has nothing keeps nothing, and nothing fails (`--dry-run` with file capabilities, tests)."""
    # Not setpriv: the module may be where only root can read it.
    code = "os.setgroups([]); os.setresgid(65534, 65534, 65534); os.setresuid(65534, 65534, 65534)\n"
    assert python("import os; " + code + "print(json.dumps(sorted(keep_rights())))") == []


def test_the_runtime_directory_stays_writable(tmp_path):
    """Root without CAP_DAC_OVERRIDE may not write where somebody else may: then nothing would ever be parked."""
    code = f"from pathlib import Path; keep_rights(writes_to=Path({str(tmp_path)!r}))\n"
    code += f"Path({str(tmp_path)!r}, 'journal').write_text('x'); print(json.dumps('written'))"
    os.chown(tmp_path, 65534, 65534)
    try:
        assert python(code) == "written"
    finally:
        os.chown(tmp_path, 0, 0)


def test_locked_memory_stays_possible():
    """mlockall(MCL_FUTURE) without CAP_IPC_LOCK and with a limit would make a later allocation fail."""
    code = "import resource, ctypes; resource.setrlimit(resource.RLIMIT_MEMLOCK, (65536, 65536)); keep_rights()\n"
    code += "libc = ctypes.CDLL(None); status = libc.mlockall(1 | 2 | 4); more = bytearray(64 << 20)\n"
    code += "print(json.dumps([status, resource.getrlimit(resource.RLIMIT_MEMLOCK)[0]]))"
    status, limit = python(code)
    assert status == 0
    assert limit == resource.RLIM_INFINITY or "CAP_IPC_LOCK" in expected()


def test_no_core_and_nobody_looks_in():
    """The process is not dumpable: a debugger needs CAP_SYS_PTRACE, also if it is root's."""
    code = "import ctypes; keep_rights(); print(json.dumps(ctypes.CDLL(None).prctl(3, 0, 0, 0, 0)))"
    assert python(code) == 0


@X86
def test_loading_is_refused():
    """Maps of programs that are there go on; new programs, maps, perf events and mounts do not."""
    code = CALL + "before = [refused(321, 5, 0, 0), refused(298, 0, 0, 0, 0, 0)]\nforce = refuse_loading()\n"
    code += (
        "after = {'load': refused(321, 5, 0, 0), 'create': refused(321, 0, 0, 0), 'perf': refused(298, 0, 0, 0, 0, 0),"
    )
    code += " 'mount': refused(165, 0, 0, 0, 0, 0), 'trace': refused(101, 16, 1, 0, 0), 'x32': refused(0x40000001, 1, 0, 0),"
    code += " 'look up': refused(321, 1, 0, 0), 'link': refused(321, 28, 0, 0), 'getpid': libc.syscall(39) < 0}\n"
    code += "print(json.dumps([before, force, after]))"
    before, force, after = python(code)
    assert before == [False, False]
    assert force
    assert {name for name, is_refused in after.items() if is_refused} == {
        "load",
        "create",
        "perf",
        "mount",
        "trace",
        "x32",
    }


@X86
def test_children_inherit_the_refusal():
    """A program that is started later cannot load either; and everything ordinary works."""
    code = f"import subprocess, sys\nrefuse_loading()\nCALL = {CALL!r}\n"
    code += "child = subprocess.run([sys.executable, '-c', CALL + 'print(int(refused(321, 5, 0, 0)))'],"
    code += " capture_output=True, text=True, check=True)\nprint(child.stdout)"
    assert python(code) == 1


def test_an_unknown_machine_is_left_alone(monkeypatch):
    """Wrong numbers would deny something else."""
    monkeypatch.setattr(privileges, "_MACHINES", {})
    assert not privileges.refuse_loading()


@pytest.mark.parametrize("table", [0, 1])
def test_the_filter_ends(table):
    """Every jump of the program lands within it, and each of the denied calls at the same place, the refusal."""
    code = privileges.program(table, 1)
    for at, (operation, true, false, _) in enumerate(code):
        if operation in (privileges._EQUAL, privileges._AT_LEAST):
            assert at + 1 + max(true, false) < len(code)
    denied = {numbers[table] for numbers in privileges._DENIED.values()}
    landing = {
        at + 1 + true
        for at, (code_, true, _, k) in enumerate(code)
        if code_ == privileges._EQUAL and k in denied and true > 1
    }
    assert {code[at] for at in landing} == {(privileges._RETURN, 0, 0, privileges._DENY)}


def test_governing_goes_on():
    """With both, the data hook still attaches and detaches, and the ledger still seeds: what happens after the start."""
    code = (
        "from memscaler import resources; from memscaler.kernel import attachment, ledger\n"
        "attached = attachment.load(resources.bpf_dir()); keep_rights(); refuse_loading()\n"
        "mine = ledger.Ledger(attached); mine.watch(8080, ledger.own_namespace())\n"
        "mine.data_hook.attach(); on = mine.data_hook.attached; mine.data_hook.detach()\n"
        "from memscaler.kernel.netns import entered\n"
        "with entered('/proc/self/ns/net'): pass\n"
        "print(json.dumps(on))"
    )
    assert python(code) is True
