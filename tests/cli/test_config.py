"""`memscaler config` as a process: as root, as nobody, in 80 columns."""

import json
import os
import re
import shlex
import stat
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from memscaler.config.schema import OPTIONS
from tests.asked import short_folder
from tests.doctor.bench import clean_environment, memscaler


@pytest.fixture
def folder():
    with short_folder() as path:
        yield path


def config(*arguments, **more):
    return memscaler("config", *arguments, **more)


@pytest.mark.parametrize("nobody", [False, True])
def test_init_prints(nobody):
    """A complete file of comments on standard output, for anybody."""
    result = config("init", nobody=nobody)
    assert (result.returncode, result.stderr) == (0, "")
    assert tomllib.loads(result.stdout) == {}
    assert result.stdout.count("\n#idle_after = ") == 2  # the setting, and the example of a GPU


def test_init_writes(folder):
    """With mode 0644 whatever the umask; never over a file without --force; what it wrote is good."""
    file = folder / "config.toml"
    result = config("init", "--output", str(file), prefix=("sh", "-c", 'umask 077; exec "$@"', "sh"))
    assert (result.returncode, stat.S_IMODE(file.stat().st_mode)) == (0, 0o644)
    assert str(file) in result.stdout
    assert config("check", str(file)).returncode == 0
    file.write_text("mine")
    result = config("init", "-o", str(file))
    assert (result.returncode, file.read_text()) == (1, "mine")
    assert result.stderr == f"memscaler: {file} is there already\nhint: --force replaces it\n"
    assert config("init", "-o", str(file), "--force").returncode == 0
    assert tomllib.loads(file.read_text()) == {}


def test_init_does_not_write_through_a_link(folder):
    """Somebody else's link leads nowhere, with --force too; nor does a folder that is not there, or not ours."""
    (folder / "target").write_text("theirs")
    (folder / "link").symlink_to("target")
    for arguments in (["-o", str(folder / "link")], ["-o", str(folder / "link"), "--force"]):
        assert config("init", *arguments).returncode == 1
    assert (folder / "target").read_text() == "theirs"
    assert "No such file or directory" in config("init", "-o", str(folder / "none" / "x")).stderr
    result = config("init", "-o", str(folder / "new"), nobody=True)
    assert (result.returncode, "sudo memscaler" in result.stderr) == (4, True)


def test_init_leaves_what_is_no_file(folder):
    """A device or a FIFO is neither written to nor given another mode."""
    fifo = folder / "fifo"
    os.mkfifo(fifo, 0o600)
    reader = os.open(fifo, os.O_RDONLY | os.O_NONBLOCK)
    try:
        result = config("init", "-o", str(fifo), "--force")
        assert (result.returncode, "no regular file" in result.stderr) == (1, True)
        assert os.read(reader, 1) == b""
    finally:
        os.close(reader)
    assert stat.S_IMODE(fifo.stat().st_mode) == 0o600


def test_init_replaces_a_file_as_a_whole(folder):
    """It keeps its mode and owner; a full disk leaves the old one, and nothing beside it."""
    file = folder / "config.toml"
    file.write_text("mine")
    file.chmod(0o600)
    os.chown(file, 65534, 65534)
    full = ("sh", "-c", 'ulimit -f 1; exec "$@"', "sh")
    result = config("init", "-o", str(file), "--force", prefix=full)
    assert (result.returncode, file.read_text(), result.stderr.count("File too large")) == (1, "mine", 1)
    assert config("init", "-o", str(folder / "new"), prefix=full).returncode == 1
    assert config("init", "-o", str(file), "--force").returncode == 0
    status = file.stat()
    assert (stat.S_IMODE(status.st_mode), status.st_uid, status.st_gid) == (0o600, 65534, 65534)
    assert tomllib.loads(file.read_text()) == {}
    assert list(folder.iterdir()) == [file]


@pytest.mark.parametrize("nobody", [False, True])
def test_check(folder, nobody):
    """Every mistake with its line, exit code 78, to anybody; nothing on standard output."""
    file = folder / "config.toml"
    file.write_text("idle_aftr = 1\n[[watch]]\nport = 0\n")
    result = config("check", str(file), nobody=nobody)
    assert (result.returncode, result.stdout) == (78, "")
    assert result.stderr.splitlines() == [
        f"memscaler: {file}:1: unknown key 'idle_aftr' (did you mean 'idle_after'?)",
        f"memscaler: {file}:3: port 0 is out of range (1-65535)",
    ]
    document = json.loads(config("check", str(file), "--json", nobody=nobody).stdout)
    assert (document["schema"], document["ok"], len(document["problems"])) == (1, False, 2)


def test_check_of_a_good_file(folder):
    """What it has in it, in one line; a port that is in use and a GPU that is not there do not matter."""
    file = folder / "config.toml"
    file.write_text('[[watch]]\nport = 22\ngpus = ["gpu99"]\n[gpu.gpu99]\nidle_after = "1h30m"\n')
    result = config("check", str(file))
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout == f"{file}: good, 1 watched port, settings of 1 GPU\n"
    file.write_text("discover = true\n")
    assert config("check", str(file)).stdout == f"{file}: good, every server that is found\n"
    file.write_text('[[watch]]\nport = 22\ngpus = ["gpu99"]\n[gpu.gpu99]\nidle_after = "1h30m"\n')
    assert json.loads(config("check", str(file), "--json").stdout) == {
        "schema": 1,
        "ok": True,
        "file": str(file),
        "files": [str(file)],
        "problems": [],
        "warnings": [],
    }


WATCHED = """
import os, sys
def note(event, arguments):
    written = event == "open" and (set(str(arguments[1])) & set("wax+") or (arguments[2] or 0) & (os.O_WRONLY | os.O_RDWR))
    if written or event in ("socket.connect", "socket.bind", "subprocess.Popen", "os.mkdir", "ctypes.dlopen", "os.exec"):
        sys.stderr.write(f"did {event} {arguments}\\n")
sys.dont_write_bytecode = True
import memscaler.cli.main
sys.addaudithook(note)
sys.argv = ["memscaler", "config", *sys.argv[1:]]
memscaler.cli.main.main()
"""


def test_check_has_no_side_effects(folder):
    """Nothing is written, no library of a driver is loaded, nobody is connected to, no process is started."""
    file = folder / "config.toml"
    file.write_text(f'discover = true\nruntime_dir = "{folder}/run"\nsimulate = ["a40"]\n')

    def run(*arguments):
        command = [sys.executable, "-c", WATCHED, *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=False, env=clean_environment())

    result = run("check", str(file))
    assert (result.returncode, result.stderr) == (0, "")
    assert not (folder / "run").exists()
    assert "did open" in run("init", "-o", str(folder / "new")).stderr  # so the witness is awake


def test_check_of_a_file_that_others_may_write(folder):
    """A warning for a file that is named, which may be anybody's draft; an error for the one that `run` would read."""
    file = folder / "config.toml"
    file.write_text("discover = true\n")
    file.chmod(0o664)
    result = config("check", str(file))
    assert (result.returncode, result.stderr) == (
        0,
        f"warning: {file} may be written by others (chmod go-w): `run` refuses it\n",
    )
    script = f"import memscaler.config.load as l, pathlib; l.DEFAULT_FILE = pathlib.Path({str(file)!r}); "
    script += (
        "import sys; sys.argv = ['memscaler', 'config', 'check']; import memscaler.cli.main; memscaler.cli.main.main()"
    )
    result = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": str(Path.cwd())},
    )
    assert (result.returncode, "memscaler: " in result.stderr, "`run` refuses it" in result.stderr) == (78, True, True)


def test_check_of_files_that_cannot_be_read(folder):
    """Missing, no file, not ours to read: one line each."""
    assert config("check", str(folder / "none")).stderr == f"memscaler: {folder}/none: No such file or directory\n"
    assert config("check", str(folder)).returncode == 78
    file = folder / "secret.toml"
    file.write_text("discover = true\n")
    file.chmod(0o600)
    assert config("check", str(file), nobody=True).returncode == 4


SERVERS = """\
[[server]]
name = "chat"
command = "llama-server --port 8080 --api-key sesame"
gpus = ["gpu0"]
environment = {HF_TOKEN = "sesame"}
"""


def test_servers(folder):
    """They are counted and shown without their secrets, by nobody as by root; their mistakes are found in every file."""
    file = folder / "config.toml"
    file.write_text(SERVERS)
    (folder / "servers.d").mkdir()
    gppm = folder / "servers.d" / "old.yaml"
    gppm.write_text("- name: balancer\n  enabled: True\n  command: paddler balancer\n")
    result = config("check", str(file), nobody=True)
    assert result.returncode == 0
    assert result.stdout == f"{file}, {gppm}: good, 2 servers, 1 watched port\n"
    assert f"{gppm}:1: server balancer: no port is known, so nothing watches it" in result.stderr
    result = config("show", "--config", str(file), "--origin")
    assert result.returncode == 0
    assert "sesame" not in result.stdout
    assert re.search(rf'^server.chat.environment = \["HF_TOKEN"\]\s+\({file}:1\)$', result.stdout, re.MULTILINE)
    assert re.search(rf'^watch.8080 += \["gpu0"\]\s+\({file}:1\)$', result.stdout, re.MULTILINE)
    gppm.write_text("- name: chat\n  enabled: True\n  comand: llama-server --port 8080\n")
    (folder / "servers.d" / "two.toml").write_text('command = "llama-server --port 8080"\n')
    result = config("check", str(file), "--json")
    assert result.returncode == 78
    assert json.loads(result.stdout)["problems"] == [
        f"{gppm}:1: command is empty",
        f"{gppm}:3: unknown key 'comand' (did you mean 'command'?)",
        f"{folder}/servers.d/two.toml:1: port 8080 of server two is that of server chat (in {file}:1)",
    ]


def test_variables():
    """A wrong one is an error, a misspelt one a warning; `run` warns of it too."""
    result = config("check", env={"MEMSCALER_LEVER": "voltage", "MEMSCALER_WACTH": "8080"})
    assert (result.returncode, result.stdout) == (78, "")
    assert "MEMSCALER_LEVER: 'voltage' is none of" in result.stderr
    warning = "warning: MEMSCALER_WACTH: nobody reads this variable (did you mean MEMSCALER_WATCH?)\n"
    assert warning in result.stderr
    ran = memscaler("run", env={"MEMSCALER_WACTH": "8080"})
    assert (ran.returncode, warning in ran.stderr, "no port to watch" in ran.stderr) == (2, True, True)


def test_nothing_is_watched():
    """The defaults alone are good, and would do nothing: that is said."""
    result = config("check")
    assert result.returncode == 0
    assert "no port is watched" in result.stderr


def test_show(folder):
    """Flag, variable, line and default, in this order, each with its origin."""
    file = folder / "config.toml"
    file.write_text('idle_after = "90s"\nlever = "pstate"\nmin_dwell = "1s"\n[[watch]]\nport = 8080\ngpus = ["gpu0"]\n')
    env = {"MEMSCALER_LEVER": "auto"}
    result = config("show", "--origin", "--config", str(file), "--idle-after", "2d", "--dry-run", env=env)
    rows = {line.split()[0]: line for line in result.stdout.splitlines()}
    assert rows["idle_after"].split() == ["idle_after", "=", '"2d"', "(--idle-after)"]
    assert rows["lever"].endswith("(MEMSCALER_LEVER)")
    assert rows["min_dwell"].endswith(f"({file}:3)")
    assert rows["sample_every"].endswith("(default)")
    assert rows["dry_run"].split() == ["dry_run", "=", "true", "(--dry-run)"]
    assert rows["watch.8080"].endswith(f"({file}:6)")
    assert {option.key for option in OPTIONS} - {"watch"} <= set(rows)
    plain = config("show", "--config", str(file))
    assert "(" not in plain.stdout
    assert max(map(len, plain.stdout.splitlines())) <= 80


LONG = """
[gpu.gpu0]
quiet_hours = ["Mon-Fri 09:00-18:00", "22:00-06:00", "Sat,Sun", "Mon-Wed 20:00-21:00"]
"""


def test_show_in_columns(folder):
    """In a pipe a setting is a line; in a terminal a long list is broken as TOML has it. Origins are in a column."""
    file = folder / "c.toml"
    file.write_text(LONG)
    *lines, last = config("show", "--origin", "--config", str(file)).stdout.splitlines()
    assert last.startswith("gpu.gpu0.quiet_hours = [")
    assert last.endswith(f"]  ({file}:3)")
    assert len({line.index("(") for line in lines}) == 1
    command = shlex.join([sys.executable, "-m", "memscaler", "config", "show", "--origin", "--config", str(file)])
    shown = subprocess.run(
        ["script", "--quiet", "--command", f"stty cols 80; {command}", "/dev/null"],
        capture_output=True,
        text=True,
        check=True,
        stdin=subprocess.DEVNULL,
    ).stdout.splitlines()
    assert shown[: len(lines)] == lines
    first, *middle, end = shown[len(lines) :]
    assert (first, end.split()) == ("gpu.gpu0.quiet_hours = [", ["]", f"({file}:3)"])
    assert tomllib.loads(f"{first}{''.join(middle)}]") == tomllib.loads(last.partition("  (")[0])
    assert max(map(len, shown)) <= 80


def test_show_for_programs():
    """The same as JSON; ports from flags replace those of a file."""
    document = json.loads(config("show", "--json", "-p", "8080@container:web:gpu0", nobody=True).stdout)
    rows = {row["key"]: (row["value"], row["origin"]) for row in document["settings"]}
    assert document["schema"] == 1
    assert rows["watch.8080@container:web"] == (["gpu0"], "--port")
    assert (rows["touch_bytes"], rows["discover"]) == ((1024, "default"), (False, "default"))


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["--idle-aftr", "5s"], 2, "No such option: --idle-aftr"),
        (["--idle-after", "soon"], 2, "--idle-after: 'soon' is not a time"),
        (["what"], 2, "unexpected extra argument"),
        (["--config", "/nowhere"], 78, "No such file"),
    ],
)
def test_show_with_wrong_flags(arguments, code, message):
    """As `run` refuses them."""
    result = config("show", *arguments)
    assert (result.returncode, message in result.stderr) == (code, True)


def test_schema():
    """JSON on standard output, which an editor can be pointed at."""
    document = json.loads(config("schema", nobody=True).stdout)
    assert document["properties"]["lever"]["enum"] == ["auto", "memory-clock", "graphics-clock", "pstate"]


def test_what_a_file_says_is_printed_plainly(folder):
    """A name from a file cannot move the cursor."""
    file = folder / "config.toml"
    file.write_text('"\\u001b[31mx" = 1\n')
    result = config("check", str(file))
    assert (result.returncode, "\x1b" in result.stderr) == (78, False)


NAMED = """
[[watch]]
port = 8080
gpus = ["gpu0", "gpu9", "GPU-5d1b0000", "GPU-77770000", "3b:00.0", "0000:cc:00.0"]
[gpu.gpu7]
lever = "auto"
[[server]]
name = "chat"
command = "/bin/llama-server --port 8090"
gpus = ["gpu1", "gpu2"]
"""
LISTED = {
    "0000:3b:00.0": ("GPU-5d1b0000-1111-2222-3333-444455556666", "No"),
    "0000:40:00.0": ("GPU-6d1b0000-1111-2222-3333-444455556666", "Yes"),
    "0001:02:00.0": ("GPU-7d1b0000-1111-2222-3333-444455556666", "No"),
}


def with_driver(folder, *arguments, listed, default=None):
    """`config check` where NVIDIA's driver lists these GPUs."""
    private = "mount --make-rprivate / 2>/dev/null || mount --make-rprivate /proc"  # a chroot's root is no mount
    lines = [private, "mount -t tmpfs none /proc/driver"]
    for address, (uuid, excluded) in listed.items():
        place = f"/proc/driver/nvidia/gpus/{address}"
        facts = f"Model: \t\t NVIDIA A40\\nGPU UUID: \t {uuid}\\nDevice Minor: \t 0\\nGPU Excluded:\t {excluded}\\n"
        lines.append(f"mkdir -p {place}; printf '{facts}' >{place}/information")
    script = "import sys; sys.argv = ['memscaler', 'config', 'check', *sys.argv[1:]]; import pathlib; "
    script += f"import memscaler.config.load as l; l.DEFAULT_FILE = pathlib.Path({str(default or folder)!r}); "
    script += "from memscaler.__main__ import main; main()"
    lines.append(f"exec {shlex.join([sys.executable, '-c', script, *map(str, arguments)])}")
    command = ["unshare", "--mount", "--propagation", "unchanged", "sh", "-ec", "\n".join(lines)]
    return subprocess.run(command, capture_output=True, text=True, check=False, env=clean_environment(), timeout=60)


def test_gpus_that_are_not_there(folder):
    """Of watches, tables and servers: wrong in the file that `run` reads, a warning in one that is named."""
    file = folder / "config.toml"
    file.write_text(NAMED.lstrip())
    there = "is no GPU of this machine (there are gpu0, gpu1)"
    absent = [(3, "gpu9"), (3, "GPU-77770000"), (3, "0000:cc:00.0"), (6, "gpu2"), (4, "gpu7")]
    wanted = [f"{file}:{line}: {name!r} {there}" for line, name in absent]
    named = with_driver(folder, file, listed=LISTED)
    assert (named.returncode, named.stderr.splitlines()) == (0, [f"warning: {each}" for each in wanted])
    own = with_driver(folder, listed=LISTED, default=file)
    assert (own.returncode, own.stderr.splitlines()) == (78, [f"memscaler: {each}" for each in wanted])


def test_gpus_of_a_driver_that_knows_little(folder):
    """UUIDs are unknown until a program has used a GPU; without a driver nothing is known, and a draft needs none."""
    file = folder / "config.toml"
    file.write_text('[[watch]]\nport = 8080\ngpus = ["GPU-5d1b0000", "gpu1"]\n')
    unused = {"0000:3b:00.0": ("GPU-????????-????-????-????-????????????", "No")}
    result = with_driver(folder, file, listed=unused)
    assert result.stderr == f"warning: {file}:3: 'gpu1' is no GPU of this machine (there is gpu0)\n"
    assert with_driver(folder, file, listed={}).stderr == ""
    own = with_driver(folder, listed={}, default=file)
    assert own.returncode == 0
    assert own.stderr == "warning: no NVIDIA driver is loaded, so nobody knows whether there is GPU-5d1b0000, gpu1\n"


def test_gpus_of_simulated_boards(folder):
    """As many as there are boards."""
    file = folder / "config.toml"
    file.write_text('simulate = ["a40", "p40"]\n[[watch]]\nport = 8080\ngpus = ["gpu1", "gpu2", "GPU-5d1b0000"]\n')
    result = config("check", str(file))
    assert result.stderr == f"warning: {file}:4: 'gpu2' is no GPU of this machine (there are gpu0, gpu1)\n"


def test_show_tells_where_simulated_history_is(folder):
    """What simulated boards do is not kept with the machine's own."""
    words = ["show", "--simulate", "a40", "--runtime-dir", str(folder), "--origin"]
    assert re.search(rf'^state_dir +{re.escape(f"= {json.dumps(str(folder))}")} +\(default with simulate\)$',
                     config(*words).stdout, re.MULTILINE)  # fmt: skip
