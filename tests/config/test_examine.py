"""Everything that is wrong, at once: files, variables that nobody reads, times."""

import os
import tomllib

import pytest

from memscaler.config.environment import unknown
from memscaler.config.load import examine, load, without_file
from memscaler.core.errors import ConfigError, PermissionMissing, UsageError


def test_all_that_is_wrong_at_once(tmp_path):
    """File and environment, each with its place and in the order of the lines; nothing hides anything."""
    file = tmp_path / "config.toml"
    file.write_text(
        'lever = "memroy-clock"\n[[watch]]\nport = 0\ngpus = ["card", "gpu0"]\nscope = "docker:web"\n[gpu.a40]\nidle_after = "1h30"\n'
    )
    found = examine({}, {"MEMSCALER_TOUCH": "soon"}, file)
    assert found.settings is None
    assert found.problems == (
        f"{file}:1: 'memroy-clock' is none of auto, memory-clock, graphics-clock, pstate (did you mean 'memory-clock'?)",
        f"{file}:3: port 0 is out of range (1-65535)",
        f"{file}:4: 'card' names no GPU (write gpu0, GPU-<uuid> or a PCI address such as 0000:3b:00.0)",
        f"{file}:5: 'docker' is no kind of scope (did you mean 'container'? There are netns, pid, unit, container or host)",
        f"{file}:6: 'a40' names no GPU (write gpu0, GPU-<uuid> or a PCI address such as 0000:3b:00.0)",
        f"{file}:7: '1h30' is not a time (write 60s, 500ms, 2m or 1.5), nor \"auto\"",
        "MEMSCALER_TOUCH: 'soon' is not a time (write 60s, 500ms, 2m or 1.5)",
    )


@pytest.mark.parametrize(
    ("table", "problem"),
    [
        ('gpus = ["gpu0", ""]', "a GPU is empty"),
        ('gpus = ["gpu0", "gpu0"]', "gpu0 is named twice"),
        ('gpus = "gpu0"', "gpus is a list"),
        ("scope = 3", "scope is a text"),
        ('scope = "container:"', "'container:' lacks a name"),
        ('scope = "container:web:gpu0"', "names GPUs"),
        ('scope = "pid:x"', "'x' is no process id"),
        (f'scope = "netns:{"a:" * 300}"', "is too long"),
        ('scope = "gpu0"', "'gpu0' is no scope"),
    ],
)
@pytest.mark.parametrize("port", ["", "port = 0\n", 'port = "http"\n'])
def test_a_port_that_is_none_is_not_called_port_0(tmp_path, port, table, problem):
    """What else is wrong in its table is told as well, and never about a "port 0"."""
    file = tmp_path / "config.toml"
    file.write_text(f"[[watch]]\n{port}{table}\n")
    _, *others = examine({}, {}, file).problems
    assert any(problem in each for each in others)
    assert not any("port 0:" in each or "None" in each for each in others)


def test_a_good_one(tmp_path):
    """It has settings; without a file there are the defaults."""
    file = tmp_path / "config.toml"
    file.write_text("discover = true\n")
    found = examine({}, {}, file)
    assert (found.files, found.problems, found.distrust) == ((file,), (), "")
    assert found.settings == load({}, {}, file)
    assert examine({}, {}).files == ()


def test_no_toml_is_told_with_its_line(tmp_path):
    """And what the environment has wrong, beside it."""
    file = tmp_path / "config.toml"
    file.write_text("a = 1\nidle_after = 60s\n")
    found = examine({}, {"MEMSCALER_LEVER": "x"}, file)
    assert found.problems[0].startswith(f"{file}:2: not TOML: ")
    assert found.problems[0].endswith("(column 16)")
    assert len(found.problems) == 2
    assert examine({}, {}, tmp_path / "none").problems == (f"{tmp_path}/none: No such file or directory",)


def test_a_file_that_others_may_write(tmp_path):
    """It is read, to tell what is wrong in it, and the distrust is told beside that; `load` refuses it."""
    file = tmp_path / "config.toml"
    file.write_text("discover = true\n")
    file.chmod(0o666)
    found = examine({}, {}, file)
    assert (found.settings is not None, found.distrust) == (True, f"{file} may be written by others")
    assert found.remedy == f"chmod go-w {file}"
    with pytest.raises(ConfigError):
        load({}, {}, file)
    file.chmod(0o644)
    os.chown(tmp_path, 65534, 0)
    assert "belongs to another user" in examine({}, {}, file).distrust
    os.chown(tmp_path, 0, 0)
    assert examine({}, {}, file).distrust == ""


def test_trust_is_that_of_what_was_read(tmp_path, monkeypatch):
    """A file that becomes somebody else's, or good, after it was opened does not change what is said of it."""
    file = tmp_path / "config.toml"
    file.write_text("discover = true\n")
    file.chmod(0o666)
    parse = tomllib.loads

    def replace_it(text):
        file.unlink()
        file.write_text("discover = false\n")
        file.chmod(0o644)
        return parse(text)

    monkeypatch.setattr(tomllib, "loads", replace_it)
    found = examine({}, {}, file)
    assert found.settings is not None
    assert (found.settings.discover, found.distrust) == (True, f"{file} may be written by others")


def test_a_circle_of_links(tmp_path):
    """It is one sentence, and nobody knows whether to trust what cannot be read."""
    (tmp_path / "config.toml").symlink_to("config.toml")
    found = examine({}, {}, tmp_path / "config.toml")
    assert (found.opened, found.problems[0].endswith("Too many levels of symbolic links")) == (False, True)


def test_a_file_that_may_not_be_read(tmp_path, monkeypatch):
    """That is not a mistake in it."""

    def refuse(*_args, **_kwargs):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "open", refuse)
    with pytest.raises(PermissionMissing):
        examine({}, {}, tmp_path / "secret.toml")


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("never_park = [1]", "is not a list of times"),
        ("idle_after = " + "[" * 3000 + "]" * 3000, "nested too deeply"),
    ],
)
def test_odd_files(tmp_path, text, problem):
    """Whatever it is, it is one sentence."""
    file = tmp_path / "config.toml"
    file.write_text(text)
    (found,) = examine({}, {}, file).problems
    assert problem in found


def test_what_must_work_without_the_file(tmp_path, monkeypatch):
    """The file is not even looked at."""
    file = tmp_path / "etc.toml"
    file.write_text("nonsense")
    monkeypatch.setattr("memscaler.config.load.DEFAULT_FILE", file)
    assert without_file({"min_dwell": "3s"}, {}).min_dwell_s == 3
    with pytest.raises(ConfigError):
        load({}, {})


def test_a_key_without_a_line(tmp_path):
    """One that is written in an unusual way is at least told with its file."""
    file = tmp_path / "config.toml"
    file.write_text('"idle\\u005faftr" = 3\n')
    assert examine({}, {}, file).problems == (f"{file}: unknown key 'idle_aftr' (did you mean 'idle_after'?)",)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("2d", 172800),
        ("1h30m", 5400),
        ("1h 30m", 5400),
        ("1d12h", 129600),
        ("1m30s", 90),
        ("1.5h", 5400),
        ("2 D", 172800),
        ("1s500ms", 1.5),
        (" 90 ", 90),
    ],
)
def test_times(text, seconds):
    """Days, and amounts one behind the other."""
    assert load({"idle_after": text}, {}).idle_after_s == seconds


@pytest.mark.parametrize(
    "text",
    [
        "",
        " ",
        "1h30",
        "30 1h",
        "1m1h",
        "1h1h",
        "1h1m1h",
        "h",
        "1hm",
        "1.h",
        "1h-3m",
        "1,5h",
        "5 weeks",
        "1h30m!",
        "٣s",
        "9" * 400 + "x",
        "1 1",
        "1e3",
    ],
)
def test_no_times(text):
    """Anything that could mean two things, or nothing."""
    with pytest.raises(UsageError, match="is not a time"):
        load({"idle_after": text or '""'}, {})


@pytest.mark.parametrize(
    ("environ", "sentences"),
    [
        ({"MEMSCALER_IDLE_AFTER": "1s", "MEMSCALER_DEBUG": "1", "MEMSCALER_SIM_STATE": "x", "PATH": ""}, []),
        ({"MEMSCALER_TEST_PATIENCE": "5", "MEMSCALER_SOAK_S": "1", "MEMSCALER_FUZZ": "1"}, []),
        (
            {
                "MEMSCALER_PORT": "tcp://10.0.0.1:9823",
                "MEMSCALER_SERVICE_HOST": "10.0.0.1",
                "MEMSCALER_SERVICE_PORT": "1",
            },
            [],
        ),
        ({"MEMSCALER_PORT_9823_TCP_ADDR": "10.0.0.1", "MEMSCALER_SERVICE_PORT_METRICS": "1"}, []),
        (
            {"MEMSCALER_IDLE_AFTR": "1s"},
            ["MEMSCALER_IDLE_AFTR: nobody reads this variable (did you mean MEMSCALER_IDLE_AFTER?)"],
        ),
        ({"MEMSCALER_PORT": "8080"}, ["MEMSCALER_PORT: nobody reads this variable (did you mean MEMSCALER_WATCH?)"]),
        ({"MEMSCALER_ZZZ": ""}, ["MEMSCALER_ZZZ: nobody reads this variable"]),
        ({"MEMSCALER_DEBGU": "1"}, ["MEMSCALER_DEBGU: nobody reads this variable (did you mean MEMSCALER_DEBUG?)"]),
    ],
)
def test_variables_that_nobody_reads(environ, sentences):
    """A slip of the pen is told with what was meant; what others set is left alone."""
    assert list(unknown(environ)) == sentences
