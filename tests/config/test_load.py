"""Where settings come from, which one wins, and what is refused."""

import dataclasses
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from memscaler.config.load import for_gpu, load
from memscaler.config.ports import Watch
from memscaler.config.schema import DEFAULT_FILE, OPTIONS, Settings
from memscaler.config.values import Address
from memscaler.core.errors import ConfigError, PermissionMissing, UsageError

FILE = """\
# a comment
idle_after = "90s"
metrics = "off"
simulate = ["a40", "p40"]

[[watch]]
port = 8080
gpus = ["gpu0", "0000:3b:00.0"]

[[watch]]   # finds out
port = 8081

[gpu."GPU-8f3a"]
idle_after = 5
lever = "pstate"

[gpu.gpu1]
min_dwell = "250ms"
"""


def test_the_defaults():
    """Without anything given, every setting has its default and says so."""
    settings = load({}, {})
    assert settings.idle_after_s == 60
    assert settings.min_dwell_s == 0.25
    assert settings.metrics == Address("127.0.0.1", 9823)
    assert settings.runtime_dir == Path("/run/memscaler")
    assert (settings.watches, settings.simulate, settings.loader_python) == ((), (), None)
    assert set(settings.origins.values()) == {"default"}
    assert settings == dataclasses.replace(Settings(), origins=settings.origins)


def test_a_whole_file(config, tmp_path):
    """Everything a file can say arrives, with the line it came from."""
    settings = config(FILE)
    assert settings.idle_after_s == 90
    assert settings.metrics is None
    assert settings.simulate == ("a40", "p40")
    assert settings.watches == (Watch(8080, ("gpu0", "0000:3b:00.0")), Watch(8081))
    general = settings.general
    assert settings.gpus == {
        "GPU-8f3a": dataclasses.replace(general, lever="pstate", idle_after_s=5),
        "gpu1": dataclasses.replace(general, lever="auto"),
    }
    assert settings.origins["idle_after"] == f"{tmp_path}/config.toml:2"
    assert settings.origins["gpu.GPU-8f3a.lever"] == f"{tmp_path}/config.toml:15"
    assert settings.origins["log_level"] == "default"


def test_overrides_follow_the_general_setting_from_wherever(config):
    """A GPU's own settings win; what it does not set follows the flag."""
    settings = config(FILE, {"idle_after": "7s"})
    assert for_gpu(settings, ["gpu1", "GPU-1"]).idle_after_s == 7
    assert for_gpu(settings, ["gpu0", "GPU-8f3a"]).idle_after_s == 5
    assert for_gpu(settings, ["gpu5"]) == settings.general


def test_flag_beats_environment_beats_file_beats_default(config):
    """The four sources in their order, and the origin names the winner."""
    text = 'idle_after = "90s"\nlever = "pstate"\nlog_level = "error"\n'
    environ = {"MEMSCALER_IDLE_AFTER": "2m", "MEMSCALER_LEVER": "memory-clock", "MEMSCALER_DRY_RUN": ""}
    settings = config(text, {"idle_after": "500ms", "dry_run": None, "watch": []}, environ)
    assert (settings.idle_after_s, settings.origins["idle_after"]) == (0.5, "--idle-after")
    assert (settings.lever, settings.origins["lever"]) == ("memory-clock", "MEMSCALER_LEVER")
    assert (settings.log_level, settings.dry_run) == ("error", False)


def test_watches_from_flags_and_environment_replace_the_files(config):
    """Watches are not mixed from several sources."""
    assert config(FILE, {"watch": ["1:gpu0"]}).watches == (Watch(1, ("gpu0",)),)
    assert config(FILE, environ={"MEMSCALER_WATCH": "1:gpu0 2"}).watches == (Watch(1, ("gpu0",)), Watch(2))


def test_kubernetes_service_variables_do_no_harm():
    """A Kubernetes service named memscaler sets MEMSCALER_PORT=tcp://..., which is none of our names."""
    assert load({}, {"MEMSCALER_PORT": "tcp://10.0.0.1:9823"}).watches == ()
    assert "MEMSCALER_PORT" not in {name for option in OPTIONS for name in option.env}


def test_the_runtime_directory_of_systemd():
    """The variable that systemd sets is used unless ours is set."""
    assert load({}, {"RUNTIME_DIRECTORY": "/run/a:/run/b"}).runtime_dir == Path("/run/a")
    environ = {"RUNTIME_DIRECTORY": "/run/a", "MEMSCALER_RUNTIME_DIR": "/run/c"}
    assert load({}, environ).runtime_dir == Path("/run/c")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("idle_aftr = 1", "config.toml:1: unknown key 'idle_aftr' (did you mean 'idle_after'?)"),
        ("\n\nzzz = 1", "config.toml:3: unknown key 'zzz'"),
        ("idle_after = true", "config.toml:1: True is not a time (write 60s, 500ms, 2m or 1.5)"),
        ('idle_after = "5 weeks"', "'5 weeks' is not a time"),
        ("idle_after = 0.01", "0.01 is out of range: at least 0.1 s"),
        ('idle_after = "9999h"', "'9999h' is out of range: at most a year"),
        ('idle_after = "-1s"', "is not a time"),
        ('idle_after = "automatic"', "'automatic' is not a time (write 60s, 500ms, 2m or 1.5), nor \"auto\""),
        ("wait_price = -3", "-3 is not a whole number from 0 to 1000000"),
        ('lever = "voltage"', "'voltage' is none of auto, memory-clock, graphics-clock, pstate"),
        ('dry_run = "maybe"', "'maybe' is neither true nor false"),
        ('metrics = "9823"', "'9823' is no address to listen on"),
        ('metrics = "::1:9823"', "no address to listen on (write 127.0.0.1:9823, [::1]:9823 or off)"),
        ('metrics = "localhost:99999"', "no address"),
        ('runtime_dir = "run"', "'run' is not an absolute path"),
        ("runtime_dir = 3", "'3' is not an absolute path"),
        ('simulate = "a40,,p40"', "has an empty word"),
        ("watch = 8080", "config.toml:1: write each watch as a [[watch]] table"),
        ("watch = [8080]", "watch: 8080 is not a table"),
        ("[[watch]]\nport = 1\n[[watch]]\nport = 0", "config.toml:4: port 0 is out of range"),
        ("[[watch]]\nport = 1\n[[watch]]\nport = 1", "config.toml:4: port 1 is given twice"),
        ("[[watch]]\nprot = 1", "config.toml:2: unknown key 'prot' (did you mean 'port'?)"),
        ("[[watch]]\ngpus = []", "config.toml:1: a watch needs a port"),
        ("[[watch]]\nport = true", "a watch needs a port"),
        ('[[watch]]\nport = "8082"', "config.toml:2: port is text; write 8082 without quotes"),
        ('[[watch]]\nport = "http"', "port is text; write a number such as 8080 without quotes"),
        ('[[watch]]\nport = 1\ngpus = "gpu0"', 'port 1: gpus is a list, as in gpus = ["gpu0"]'),
        ('[[watch]]\nport = 1\ngpus = ["card"]', "port 1: 'card' names no GPU"),
        ("[gpu.a40]\nlever = 'auto'", "config.toml:1: 'a40' names no GPU"),
        ("[gpu]\ngpu0 = 3", "config.toml:2: gpu.gpu0: 3 is not a table"),
        ("gpu = 3", "config.toml:1: write each GPU as a table with its name, as in [gpu.gpu0]"),
        ("[[gpu]]\nlever = 'auto'", "config.toml:1: write each GPU as a table with its name, as in [gpu.gpu0]"),
        ("\n[watch]\nport = 1", "config.toml:2: write each watch as a [[watch]] table"),
        ("\nwatch.port = 1", "config.toml:2: write each watch as a [[watch]] table"),
        ("\ngpu.gpu0.idle_aftr = 1", "config.toml:2: unknown key 'idle_aftr' (did you mean 'idle_after'?)"),
        ("[gpu.gpu0]\nmetrics = 'off'", "config.toml:2: unknown key 'metrics'"),
        ("[gpu.gpu0]\nidle_after = 'x'", "config.toml:2: 'x' is not a time"),
        ("idle_after = ", "config.toml:1: not TOML: Invalid value (at end of document)"),
    ],
)
def test_mistakes_in_a_file(config, text, message):
    """Each mistake is named with its line, and the exit code is that of a bad configuration."""
    with pytest.raises(ConfigError) as refusal:
        config(text)
    assert message in str(refusal.value)
    assert refusal.value.exit_code == 78


@pytest.mark.parametrize(
    ("text", "messages"),
    [
        ("\n[[wacth]]\nport = 1", ["2: unknown table [[wacth]] (did you mean [[watch]]?)"]),
        ("[wacth]\nport = 1", ["1: unknown table [wacth] (did you mean [[watch]]?)"]),
        ("wacth = [{port = 1}, {port = 2}]", ["1: unknown table [[wacth]] (did you mean [[watch]]?)"]),
        ("\n[gpus.gpu0]\nlever = 'auto'", ["2: unknown table [gpus] (did you mean [gpu.gpu0]?)"]),
        ("\n[label]\nsite = 'x'", ["2: unknown table [label] (did you mean [labels]?)"]),
        (
            "[a.b.c.d.e]\n[a.b.c.d.f]",
            [
                "1: unknown table [a] (there are [[watch]], [gpu.gpu0], [[server]], [labels], [[stage]], [suspend], [[gateway]], [[gpuctl]], [gvm])"
            ],
        ),
        ("[idle_aftr]", ["1: unknown table [idle_aftr] (did you mean 'idle_after'?)"]),
        ('["wat.ch"]', ["1: unknown table ['wat.ch'] (did you mean [[watch]]?)"]),
        ("[gpu.gpu0.touch]\n[[gpu.gpu0.x]]\n[[gpu.gpu0.x]]", [f"{n}: unknown table" for n in (1, 2, 3)]),
        (
            "[[wacth]]\nport = 1\n[[watch]]\nport = 2\n[watch.health]\npath = '/'\n[[watch]]\n[watch.x]\n[[wacth]]",
            [
                "1: unknown table [[wacth]]",
                "5: unknown table [watch.health]",
                "7: a watch needs a port",
                "8: unknown table [watch.x]",
                "9: unknown table [[wacth]]",
            ],
        ),
    ],
)
def test_unknown_tables(config, text, messages):
    """Each with its line, and what it may be meant to be."""
    with pytest.raises(ConfigError) as refusal:
        config(text)
    lines = sorted(str(refusal.value).splitlines(), key=lambda line: int(line.split(":")[1]))
    assert len(lines) == len(messages), lines
    for line, message in zip(lines, messages, strict=True):
        assert f"config.toml:{message}" in line


def test_all_mistakes_are_told_at_once(config):
    """An operator is not sent round once per mistake."""
    with pytest.raises(ConfigError) as refusal:
        config("idle_aftr = 1\nlever = 'x'\n", environ={"MEMSCALER_METRICS": "x"})
    assert len(str(refusal.value).splitlines()) == 3


def test_a_bad_flag_is_a_usage_error():
    """A flag's mistake has exit code 2 and names the flag."""
    with pytest.raises(UsageError, match=r"^--idle-after: 'x' is not a time") as refusal:
        load({"idle_after": "x"}, {})
    assert refusal.value.exit_code == 2
    with pytest.raises(UsageError, match=r"^--port: port 1 is given twice"):
        load({"watch": ["1:gpu0", "1:gpu1"]}, {})


def test_a_bad_variable_is_a_configuration_error():
    """A variable's mistake names the variable."""
    with pytest.raises(ConfigError, match="MEMSCALER_LEVER: 'x' is none of"):
        load({}, {"MEMSCALER_LEVER": "x"})


def test_files_that_cannot_be_read(tmp_path):
    """Missing, unreadable or binary files are errors with the file's name."""
    with pytest.raises(ConfigError, match=r"nothing\.toml: No such file"):
        load({}, {}, tmp_path / "nothing.toml")
    (tmp_path / "binary.toml").write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigError, match="not UTF-8"):
        load({}, {}, tmp_path / "binary.toml")


def test_a_file_without_permission(tmp_path, monkeypatch):
    """No permission is its own exit code."""

    def refuse(*_args, **_kwargs):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "open", refuse)
    with pytest.raises(PermissionMissing, match="Permission denied"):
        load({}, {}, tmp_path / "secret.toml")


def test_the_system_file_is_used_if_it_is_there(monkeypatch, tmp_path):
    """Without --config, /etc/memscaler/config.toml counts."""
    file = tmp_path / "etc.toml"
    file.write_text("min_dwell = 3")
    monkeypatch.setattr("memscaler.config.load.DEFAULT_FILE", file)
    assert load({}, {}).min_dwell_s == 3
    assert Path("/etc/memscaler/config.toml") == DEFAULT_FILE


@given(st.integers(100, 10_000_000))
def test_times_in_every_unit_agree(milliseconds):
    """The same time in other units is the same number of seconds."""
    texts = [
        f"{milliseconds}ms",
        f"{milliseconds * 1000}us",
        f"{milliseconds / 1000:.3f}s",
        f"{milliseconds / 1000:.3f}",
    ]
    for text in texts:
        assert load({"idle_after": text}, {}).idle_after_s == pytest.approx(milliseconds / 1000)


@pytest.mark.parametrize("text", ["127.0.0.1:9823", "[::1]:9823", "localhost:0", "0.0.0.0:80"])
def test_addresses_read_back(text):
    """An address prints as it was written."""
    assert str(load({"metrics": text}, {}).metrics) == text


@pytest.mark.parametrize(("word", "value"), [("on", True), ("YES", True), ("0", False), ("false", False), (True, True)])
def test_switches(word, value):
    """A switch takes the usual words."""
    assert load({"dry_run": word}, {}).dry_run is value


def test_a_loader_python():
    """The loader's python may be chosen."""
    assert load({"loader_python": "/usr/bin/python3"}, {}).loader_python == Path("/usr/bin/python3")
    assert load({"loader_python": "auto"}, {}).loader_python is None


def test_every_option_has_help_that_is_a_sentence():
    """The schema is what help and manual are made from."""
    for option in OPTIONS:
        assert option.help.endswith("."), option.key
        assert option.env[0] == "MEMSCALER_" + option.key.upper()


@pytest.mark.parametrize(
    ("spoil", "problem"),
    [
        (lambda file: file.chmod(0o664), "may be written by others"),
        (lambda file: file.chmod(0o646), "may be written by others"),
        (lambda file: os.chown(file, 65534, 0), "belongs to another user"),
        (lambda file: file.parent.chmod(0o777), "may be written by others"),
        (lambda file: (file.unlink(), os.mkfifo(file)), "is not a file"),
        (lambda file: (file.unlink(), file.mkdir()), "directory"),
        (lambda file: file.write_text("#" * (1 << 21)), "is larger than"),
    ],
)
def test_a_file_that_others_could_write_is_refused(tmp_path, spoil, problem):
    """It decides what root does: a file that anybody else could have written, or put there, is not read."""
    file = tmp_path / "config.toml"
    file.write_text("[[watch]]\nport = 8080\n")
    assert load({}, {}, file).watches
    spoil(file)
    with pytest.raises(ConfigError, match=problem):
        load({}, {}, file)
    tmp_path.chmod(0o700)


def test_a_shared_folder_with_the_sticky_bit_is_fine(tmp_path):
    """As /tmp is: nobody but its owner can replace a file there."""
    folder = tmp_path / "tmp"
    folder.mkdir()
    folder.chmod(0o1777)
    (folder / "config.toml").write_text("[[watch]]\nport = 8080\n")
    assert load({}, {}, folder / "config.toml").watches
