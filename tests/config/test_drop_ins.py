"""conf.d: several files that are one configuration, each value with its own place."""

import json
import os
import re
import textwrap
from pathlib import Path

import pytest

from memscaler.config.load import examine, load
from memscaler.config.ports import Watch
from memscaler.config.render import effective
from memscaler.core.errors import ConfigError
from tests.asked import short_folder
from tests.doctor.bench import memscaler


@pytest.fixture
def files(tmp_path):
    """Write config.toml and files of conf.d; the path of the first."""

    def write(text=None, **drop_ins):
        if text is not None:
            (tmp_path / "config.toml").write_text(text)
        for name, content in drop_ins.items():
            path = tmp_path / "conf.d" / f"{name}.toml"
            path.parent.mkdir(exist_ok=True)
            path.write_text(content)
        return tmp_path / "config.toml"

    return write


def test_the_later_goes_before_the_earlier(files, tmp_path):
    """By name, key by key, all of them before the file, and flags and variables before all; each with its line."""
    file = files(
        'idle_after = "90s"\nlever = "pstate"\nlog_level = "error"\n',
        b20='\nidle_after = "20s"\nretry_after = "5s"',
        a10='idle_after = "10s"\nlog_level = "debug"\ntouch = "1s"',
    )
    settings = load({"retry_after": "1s"}, {"MEMSCALER_TOUCH": "2s"}, file)
    assert (settings.idle_after_s, settings.lever, settings.log_level) == (20, "pstate", "debug")
    assert (settings.retry_after_s, settings.touch_s) == (1, 2)
    origins = settings.origins
    assert origins["idle_after"] == f"{tmp_path}/conf.d/b20.toml:2"
    assert origins["log_level"] == f"{tmp_path}/conf.d/a10.toml:2"
    assert origins["lever"] == f"{file}:2"
    assert (origins["retry_after"], origins["touch"]) == ("--retry-after", "MEMSCALER_TOUCH")


def test_tables_are_put_together(files, tmp_path):
    """Watches add up, and keep what they say for themselves; what is said of one GPU is merged."""
    file = files(
        '[[watch]]\nport = 8080\nquiet = "no-connections"\n[gpu.gpu0]\nlever = "pstate"\nidle_after = "5m"\n',
        chat='[[watch]]\nport = 8081\ngpus = ["gpu1"]\ntouch = "9s"\n',
        more='[[watch]]\nport = 8080\nscope = "container:web"\n[gpu.gpu0]\nidle_after = "7m"\n[gpu.gpu1]\n',
    )
    settings = load({}, {}, file)
    assert [str(watch) for watch in settings.watches] == ["8080", "8081:gpu1", "8080@container:web"]
    assert settings.watch_settings(Watch(8081)).touch_s == 9
    assert settings.watch_settings(Watch(8080)).quiet == "no-connections"
    assert (settings.gpus["gpu0"].lever, settings.gpus["gpu0"].idle_after_s) == ("pstate", 420)
    assert set(settings.gpus) == {"gpu0", "gpu1"}
    rows = {key: origin for key, _, origin in effective(settings)}
    assert rows["gpu.gpu0.lever"] == f"{file}:5"
    assert rows["gpu.gpu0.idle_after"] == f"{tmp_path}/conf.d/more.toml:5"
    assert rows["watch.8081.touch"] == f"{tmp_path}/conf.d/chat.toml:4"
    assert load({"watch": ["9000"]}, {}, file).watches == (Watch(9000),)


def test_labels_are_put_together(files, tmp_path):
    """One file gives the site, another the role; a variable replaces them all."""
    file = files('labels = {site = "berlin", role = "none"}\n', role='[labels]\nrole = "chat"\n')
    settings = load({}, {}, file)
    assert settings.labels == (("role", "chat"), ("site", "berlin"))
    assert settings.origins["labels.role"] == f"{tmp_path}/conf.d/role.toml:2"
    rows = {key: (value, origin) for key, value, origin in effective(settings)}
    assert rows["labels.site"] == ("berlin", f"{file}:1")
    assert "labels" not in rows
    settings = load({}, {"MEMSCALER_LABELS": "site=bonn, rack=a=1"}, file)
    rows = {key: (value, origin) for key, value, origin in effective(settings)}
    assert rows["labels.site"] == ("bonn", "MEMSCALER_LABELS")
    assert rows["labels.rack"] == ("a=1", "MEMSCALER_LABELS")
    assert "labels.role" not in rows


@pytest.mark.parametrize(
    ("labels", "problem"),
    [
        ('{hostname = "x"}', "'hostname' can be no label"),
        ('{"__name__" = "x"}', "can be no label"),
        ('{"a-b" = "x"}', "can be no label"),
        ("{site = 3}", "label site: 3 is no text"),
        ('{site = ""}', "is no text of 1 to 256 characters"),
        ('{site = "a\\nb"}', "is no text"),
        ('"berlin"', "labels: 'berlin' is not a table"),
    ],
)
def test_what_is_no_label(files, labels, problem):
    """A name that Prometheus would not take or gives itself, and what is no line of text."""
    (said,) = examine({}, {}, files(f"labels = {labels}\n")).problems
    assert problem in said


def test_the_same_port_twice(files, tmp_path):
    """An error that names both places."""
    file = files("[[watch]]\nport = 8080\n", x='\n\n[[watch]]\nport = 8080\ngpus = ["gpu1"]\n')
    (said,) = examine({}, {}, file).problems
    assert said.startswith(f"{tmp_path}/conf.d/x.toml:4: port 8080 is given twice (8080 and 8080:gpu1)")
    assert said.endswith(f"(the first is in {file}:1)")


def test_without_the_file(files, tmp_path, monkeypatch):
    """conf.d counts alone, too, also by name or by the folder; a file of another name, which may be misspelt, does not."""
    files(only="discover = true\n")
    monkeypatch.setattr("memscaler.config.load.DEFAULT_FILE", tmp_path / "config.toml")
    assert load({}, {}).discover
    assert examine({}, {}).files == (tmp_path / "conf.d/only.toml",)
    assert load({}, {}, tmp_path / "config.toml").discover
    assert examine({}, {}, tmp_path).files == (tmp_path / "conf.d/only.toml",)
    with pytest.raises(ConfigError, match="No such file"):
        load({}, {}, tmp_path / "confg.toml")
    (tmp_path / "config.toml").symlink_to("nowhere")
    with pytest.raises(ConfigError, match="No such file"):
        load({}, {}, tmp_path)
    (tmp_path / "config.toml").unlink()
    (tmp_path / "conf.d/only.toml").unlink()
    with pytest.raises(ConfigError, match=r"config\.toml: No such file"):
        load({}, {}, tmp_path)


def test_what_is_not_read(files, tmp_path):
    """Hidden files, those of editors and other endings; a folder without any of ours is none of our business."""
    file = files("", a="idle_after = 1\n")
    folder = tmp_path / "conf.d"
    for name in ("a.toml~", ".b.toml", "c.conf", "#d.toml#"):
        (folder / name).write_text("what = ever")
    assert examine({}, {}, file).files == (file, folder / "a.toml")
    (folder / "a.toml").unlink()
    folder.chmod(0o777)
    assert load({}, {}, file).idle_after_s == 60


def test_all_that_is_wrong_in_all_of_them(files, tmp_path):
    """One that is no TOML, one that is a folder, and wrong values do not hide each other."""
    file = files("lever = 1\n", b="idle_aftr = 1\n", c="a = = 1\n")
    (tmp_path / "conf.d/d.toml").mkdir()
    found = examine({}, {}, file)
    assert not found.opened
    assert [each.partition(": ")[0] for each in found.problems] == [
        f"{tmp_path}/conf.d/c.toml:1",
        f"{tmp_path}/conf.d/d.toml",
        f"{file}:1",
        f"{tmp_path}/conf.d/b.toml:1",
    ]
    with pytest.raises(ConfigError) as refused:
        load({}, {}, file)
    assert str(refused.value).splitlines() == list(found.problems)


@pytest.mark.parametrize("what", ["conf.d", "conf.d/x.toml", "."])
def test_who_may_write_them(files, tmp_path, what):
    """A file, its folder, or the folder of that: whoever may write it could decide what root does."""
    file = files("", x="idle_after = 1\n")
    path = tmp_path / what
    path.chmod(0o777)
    found = examine({}, {}, file)
    assert found.distrust == f"{path} may be written by others"
    assert found.remedy == f"chmod go-w {path}"
    with pytest.raises(ConfigError, match="may be written by others"):
        load({}, {}, file)
    path.chmod(0o755)
    os.chown(path, 65534, -1)
    assert "belongs to another user" in examine({}, {}, file).distrust
    os.chown(path, 0, -1)
    assert examine({}, {}, file).distrust == ""


def test_every_distrust_is_told(files, tmp_path):
    """Once each, with the commands for all."""
    file = files("", x="", y="")
    for name in ("x", "y"):
        (tmp_path / f"conf.d/{name}.toml").chmod(0o666)
    (tmp_path / "conf.d").chmod(0o777)
    found = examine({}, {}, file)
    assert found.distrust.count("conf.d may be") == 1
    assert found.remedy.count("chmod go-w") == 3
    with pytest.raises(ConfigError) as refused:
        load({}, {}, file)
    assert refused.value.hint == found.remedy
    assert found.refusals[0] == f"{tmp_path}/conf.d may be written by others (chmod go-w)"
    told = memscaler("config", "check", str(file)).stderr.splitlines()
    assert [line for line in told if "refuses" in line] == [
        f"warning: {each}: `run` refuses it" for each in found.refusals
    ]
    assert len(found.refusals) == 3


def test_the_example_of_the_fleet_page(files, tmp_path):
    """Two files of conf.d and no config.toml: the check in CI takes them, and `show` tells where each value is from."""
    page = (Path(__file__).parents[2] / "docs/fleet.md").read_text()
    blocks = [textwrap.dedent(each) for each in re.findall(r"(?:^    .*\n)+", page, re.MULTILINE)]
    texts = {name: next(each for each in blocks if f"conf.d/{name}.toml\n" in each) for name in ("10-site", "50-chat")}
    file = files(**texts)
    result = memscaler("config", "check", str(file))
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout.endswith("50-chat.toml: good, 1 watched port\n")
    shown = memscaler("config", "show", "--origin", "--config", str(tmp_path)).stdout
    assert "conf.d/10-site.toml:2)" in shown
    missing = memscaler("config", "show", "--config", str(tmp_path / "none/config.toml"))
    assert (missing.returncode, "No such file" in missing.stderr) == (78, True)


def test_a_folder_that_may_not_be_read(tmp_path):
    """That is a matter of permission, not of what is in it; and what is no folder has no files."""
    with short_folder() as folder:
        (folder / "config.toml").write_text("")
        (folder / "conf.d").mkdir(mode=0o700)
        result = memscaler("config", "check", str(folder / "config.toml"), nobody=True)
        assert (result.returncode, f"{folder}/conf.d: Permission denied" in result.stderr) == (4, True)
    (tmp_path / "conf.d").write_text("a file")
    (tmp_path / "config.toml").write_text("idle_after = 3")
    assert load({}, {}, tmp_path / "config.toml").idle_after_s == 3


def test_check_and_show(files, tmp_path):
    """`config check` for CI: text, JSON and exit codes; `show --origin` names the drop-in."""
    file = files("discover = true\n", a="idle_after = 5\n")
    result = memscaler("config", "check", str(file))
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout == f"{file}, {tmp_path}/conf.d/a.toml: good, every server that is found\n"
    assert json.loads(memscaler("config", "check", str(file), "--json").stdout)["files"] == [
        str(file),
        f"{tmp_path}/conf.d/a.toml",
    ]
    assert "conf.d/a.toml:1)" in memscaler("config", "show", "--origin", "--config", str(file)).stdout
    files(b="[[watch]]\nport = 0\n")
    result = memscaler("config", "check", str(file))
    assert (result.returncode, result.stdout) == (78, "")
    assert result.stderr == f"memscaler: {tmp_path}/conf.d/b.toml:2: port 0 is out of range (1-65535)\n"
