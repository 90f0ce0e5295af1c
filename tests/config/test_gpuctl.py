"""Rules for other programs of the GPUs in a file: what they mean, what is refused and where, what is told of them."""

import json
import re
import tomllib
from pathlib import Path

import jsonschema
import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from memscaler.cli.main import app
from memscaler.config import gpuctl_tables
from memscaler.config.amounts import SIZE, read_bytes, write_bytes
from memscaler.config.gpuctl import GpuctlRule, Gvm, Match
from memscaler.config.gpuctl_doubts import here, of_rules
from memscaler.config.gpuctl_keys import GPUCTL_KEYS, GVM_KEYS, a_match
from memscaler.config.load import examine, load
from memscaler.config.render import effective, json_schema
from memscaler.config.sleep_doubts import doubts
from memscaler.core.gpuctl import NO_LIMIT

UUID = "GPU-8f3a1c52-0000-4000-8000-000000000001"
CHAT = '[[server]]\nname = "chat"\ncommand = "llama-server --port 8081"\n'
RULE = '[[gpuctl]]\nname = "a"\nprocesses = ["user:bob"]\n'
WHOLE = f"""
{CHAT}
[[watch]]
port = 8080
[[gpuctl]]
name = "batch-waits"
while = "busy"
watches = ["chat", 8080, "8080@container:web"]
processes = ["unit:batch", "unit:*.scope", "name:python*", "exe:/opt/*", "user:bob", "container:web", "cgroup:/b/*"]
freeze = true
memory_limit = "6G"
compute_priority = 15
cpu_nice = -20
cpu_weight = 10
how = "signal"
release_after = "1m"
at_most = "2h"
look_every = "500ms"
[[gpuctl]]
name = "rest"
while = "quiet"
watches = 8080
processes = "server"
freeze = true
[gvm]
root = "/mnt/debug"
proc_root = "/host/proc"
gpu_map = {{8 = "{UUID}"}}
"""
VALIDATOR = jsonschema.Draft202012Validator(json_schema())


def test_everything_is_read(config):
    """Each key of each table means what it says."""
    VALIDATOR.validate(tomllib.loads(WHOLE))
    settings = config(WHOLE)
    assert settings.gpuctl == (
        GpuctlRule(
            name="batch-waits",
            when="busy",
            watches=("chat", "8080", "8080@container:web"),
            processes=(
                Match("unit", "batch.service"),
                Match("unit", "*.scope"),
                Match("name", "python*"),
                Match("exe", "/opt/*"),
                Match("user", "bob"),
                Match("container", "web"),
                Match("cgroup", "/b/*"),
            ),
            freeze=True,
            memory_limit_bytes=6 << 30,
            compute_priority=15,
            cpu_nice=-20,
            cpu_weight=10,
            how="signal",
            release_after_s=60,
            at_most_s=7200,
            look_every_s=0.5,
        ),
        GpuctlRule(name="rest", when="quiet", watches=("8080",), processes=(Match("server"),), freeze=True),
    )
    assert str(settings.gvm.root) == "/mnt/debug"
    assert str(settings.gvm.proc) == "/host/proc"
    assert settings.gvm.gpu_map == {8: UUID}


def test_without_tables_there_is_nothing(config):
    """No program is touched by default."""
    settings = config("[[watch]]\nport = 8080\n")
    assert (settings.gpuctl, settings.gvm) == ((), Gvm())
    assert not [key for key, _, _ in effective(settings) if key.startswith(("gpuctl", "gvm"))]


def test_the_defaults_are_those_of_the_keys():
    """What the tables of the manual say is what a rule without the key has."""
    for keys, plain in ((GPUCTL_KEYS, GpuctlRule(name="")), (GVM_KEYS, Gvm())):
        for key in keys:
            value = getattr(plain, key.field)
            assert key.parse(key.default) == value if key.default else not value, key.key


def test_each_knows_its_place(config, tmp_path):
    """Rules have the line of their table, [gvm] that of each key."""
    settings, lines = config(WHOLE), WHOLE.splitlines()
    file = tmp_path / "config.toml"
    at = [number for number, line in enumerate(lines, 1) if line == "[[gpuctl]]"]
    assert [rule.origin for rule in settings.gpuctl] == [f"{file}:{number}" for number in at]
    at = lines.index('root = "/mnt/debug"') + 1
    assert settings.origins["gvm.root"] == f"{file}:{at}"


def test_what_is_shown_reads_back(config):
    """`config show` tells what is not the default, in words that the file understands."""
    settings = config(WHOLE)
    told = {key: value for key, value, _ in effective(settings)}
    assert told["gpuctl.batch-waits.memory_limit"] == "6 GiB"
    assert told["gpuctl.batch-waits.processes"][0] == "unit:batch.service"
    assert told["gpuctl.rest.while"] == "quiet"
    assert told["gvm.gpu_map"] == {"8": UUID}
    json.dumps(told)
    found = gpuctl_tables.Found()
    for rule in settings.gpuctl:
        head = f"gpuctl.{rule.name}."
        keys = {key.removeprefix(head): value for key, value in told.items() if key.startswith(head)}
        gpuctl_tables.read("gpuctl", [{"name": rule.name, **keys}], lambda *_: "here", found)
    gvm = {key.removeprefix("gvm."): value for key, value in told.items() if key.startswith("gvm.")}
    gpuctl_tables.read("gvm", gvm, lambda *_: "here", found)
    assert not found.problems
    assert (tuple(found.rules), gpuctl_tables.settled(found)) == (settings.gpuctl, settings.gvm)


def test_files_add_up(tmp_path):
    """[[gpuctl]] tables of conf.d come to those of the file; [gvm] is put together."""
    (tmp_path / "conf.d").mkdir()
    (tmp_path / "config.toml").write_text(RULE + '[gvm]\nroot = "/a"\nproc_root = "/p"\n')
    (tmp_path / "conf.d" / "a.toml").write_text(RULE.replace('"a"', '"b"') + '[gvm]\nroot = "/b"\n')
    settings = load({}, {}, tmp_path / "config.toml")
    assert [rule.name for rule in settings.gpuctl] == ["a", "b"]
    assert (str(settings.gvm.root), str(settings.gvm.proc)) == ("/b", "/p")
    assert settings.origins["gvm.root"].startswith(str(tmp_path / "conf.d"))


QUIET = '[[gpuctl]]\nname = "q"\nwhile = "quiet"\nprocesses = "server"\nfreeze = true\n'


@pytest.mark.parametrize(
    ("text", "line", "words"),
    [
        ("gpuctl = 1", 1, "write each rule as a [[gpuctl]] table"),
        ("[gpuctl]\nfreeze = true", 1, "write each rule as a [[gpuctl]] table"),
        ("gpuctl = [1]", 1, "gpuctl: 1 is not a table"),
        ('[[gpuctl]]\nprocesses = "user:a"', 1, "a rule needs name, as in"),
        ('[[gpuctl]]\nname = "a"', 1, "a rule needs processes, as in"),
        ('[[gpuctl]]\nname = "a b"\nprocesses = "user:a"', 2, "'a b' is no name of a rule"),
        ('[[gpuctl]]\nname = "a"\nprocesses = []', 3, "processes is empty"),
        (RULE + "watches = []", 4, "watches is empty (leave it out: the rule is for all)"),
        (RULE + 'watches = ["gpu0"]', 4, "'gpu0' is a GPU (write the port"),
        (RULE + "watches = [99999]", 4, "out of range"),
        (CHAT + RULE + 'watches = ["chta"]', 4, "no [[server]] is called chta (did you mean chat?)"),
        (RULE + 'while = "bussy"', 4, "'bussy' is none of busy, quiet (did you mean 'busy'?)"),
        (RULE + 'when = "busy"', 4, "did you mean 'while'?"),
        (RULE + "nice = 5", 4, "did you mean 'cpu_nice'?"),
        (RULE + "freez = true", 4, "did you mean 'freeze'?"),
        (RULE.replace("user:bob", "unti:a"), 3, "'unti' is none of unit, name, exe"),
        (RULE.replace("user:bob", "unti:a"), 3, "(did you mean 'unit'?)"),
        (RULE.replace("user:bob", "server:chat"), 3, "write 'server' and watches = [\"chat\"]"),
        (
            RULE.replace('"user:bob"', '"unti:a", "user:bob", "python3"'),
            3,
            "(did you mean 'unit'?); 'python3' names no",
        ),
        (RULE + "watches = [99999, 8080, 'gpu0']", 4, "; 'gpu0' is a GPU (write the port"),
        (f'[gvm]\ngpu_map = {{a = "{UUID}", 8 = "gpu1"}}', 2, "(0, 8, 16, ...); 'gpu1' is no whole UUID"),
        (RULE.replace("user:bob", "batch.service"), 3, "names no processes (write 'unit:batch.service')"),
        (RULE.replace("user:bob", "python3"), 3, "names no processes (write 'name:python3')"),
        (RULE.replace("user:bob", ""), 3, '(write "unit:batch.service", "name:python*"'),
        (RULE.replace("user:bob", "user: "), 3, "what comes after the colon is no user"),
        (RULE.replace("user:bob", "unit:/a"), 3, "'/a' is no name of a systemd unit"),
        (RULE.replace("user:bob", "exe:python"), 3, "'python' is no path from the root"),
        (RULE.replace("user:bob", "cgroup:batch"), 3, "'batch' is no path of a cgroup (write /batch.slice, or /batch"),
        (RULE.replace('["user:bob"]', "[1]"), 3, "1 names no processes"),
        (RULE + 'memory_limit = "much"', 4, "memory_limit: 'much' is no amount of memory"),
        (RULE + "memory_limit = 1.5", 4, "memory_limit: 1.5 is no amount of memory"),
        (RULE + "memory_limit = -1", 4, "memory_limit: -1 is no amount of memory"),
        (RULE + 'memory_limit = "99999999T"', 4, "more than any GPU has"),
        (RULE + "compute_priority = 16", 4, "compute_priority: 16 is out of range (0 to 15)"),
        (RULE + 'compute_priority = "2"', 4, "'2' is not a whole number from 0 to 15"),
        (RULE + "cpu_nice = 20", 4, "cpu_nice: 20 is out of range (-20 to 19)"),
        (RULE + "cpu_nice = true", 4, "True is not a whole number"),
        (RULE + "cpu_weight = 0", 4, "cpu_weight: 0 is out of range (1 to 10000)"),
        (RULE + 'how = "signal"', 4, "how tells by what to freeze, and nothing is frozen"),
        (RULE + 'how = "docker"', 4, "'docker' is none of auto, gvm, cgroup, signal"),
        (RULE + 'while = "quiet"\nrelease_after = 1', 5, "release_after is for while"),
        (RULE + "look_every = 0", 4, "out of range"),
        (RULE.replace("user:bob", "server") + "freeze = true", 3, "while its clients are at work a server cannot"),
        (RULE + RULE, 4, "two rules are called a (the first is in"),
        ("gvm = 1", 1, "write it as a table, [gvm]"),
        ('[gvm]\nroot = "debug"', 2, "'debug' is not an absolute path"),
        ('[gvm]\nproc = "/proc"', 2, "did you mean 'proc_root'?"),
        ("[gvm]\ngpu_map = 1", 2, "gpu_map is a table"),
        (f'[gvm]\ngpu_map = {{a = "{UUID}"}}', 2, "'a' is no number of a directory of GVM"),
        ('[gvm]\ngpu_map = {8 = "gpu1"}', 2, "'gpu1' is no whole UUID of a GPU"),
        (f'[gvm]\ngpu_map = {{8 = "{UUID}", 0 = "{UUID}"}}', 2, "is there twice"),
        ("[gpuctrl]\na = 1", 1, "did you mean [[gpuctl]]?"),
        (QUIET + '[[stage]]\nafter = "1h"\ndo = "checkpoint"', 1, "a server that is frozen cannot enter checkpoint ("),
        (
            CHAT + QUIET + 'watches = ["chat"]\n[[stage]]\nafter = "1h"\ndo = "stop-server"\nservers = [8081]',
            4,
            "a server that is frozen cannot enter stop-server (",
        ),
        (QUIET + '[[stage]]\nafter = "1h"\ndo = "suspend"', 1, "servers are told to stop-server"),
    ],
)
def test_what_is_wrong_is_told_with_its_line(tmp_path, text, line, words):
    """One sentence with the place; nothing else is complained about."""
    file = tmp_path / "config.toml"
    file.write_text(text + "\n")
    (problem,) = examine({}, {}, file).problems
    assert problem.startswith(f"{file}:{line}: ")
    assert words in problem


@pytest.mark.parametrize(
    "text",
    [
        QUIET + 'watches = [1]\n[[stage]]\nafter = "1h"\ndo = "checkpoint"\nservers = [2]',
        QUIET + '[suspend]\nservers = "keep"\n[[stage]]\nafter = "1h"\ndo = "suspend"',
        QUIET.replace("freeze = true", "cpu_nice = 19") + '[[stage]]\nafter = "1h"\ndo = "checkpoint"',
        QUIET.replace('"server"', '"user:bob"') + '[[stage]]\nafter = "1h"\ndo = "checkpoint"',
        RULE.replace("user:bob", "server") + "compute_priority = 0",
    ],
    ids=["other-server", "kept", "not-frozen", "others", "busy-priority"],
)
def test_what_goes_together_is_not_refused(config, text):
    """The checks above are not broader than they have to be."""
    config(text)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (RULE, "rule a sets nothing"),
        (RULE + "freeze = false", "rule a sets nothing"),
        (RULE + "memory_limit = 0", "memory_limit = 0 moves all memory to the host"),
        (RULE + "freeze = true\nwatches = [9999]", "nobody watches port 9999, so rule a is for nobody there"),
        (RULE + 'freeze = true\nwatches = ["9999@container:web"]', "nobody watches port 9999@container:web"),
        ("[[watch]]\nport = 9999\n" + RULE + 'freeze = true\nwatches = ["9999@container:web"]', "nobody watches port"),
        (RULE + "memory_limit = 6", 'memory_limit is 6 bytes: if GiB are meant, write "6G"'),
        (RULE + 'freeze = true\nat_most = "2s"', "rule a: at_most is shorter than release_after"),
        ("dry_run = true\n" + RULE + "freeze = true", "in a dry run no rule of [[gpuctl]] does anything"),
    ],
)
def test_what_is_doubtful(config, text, words):
    """It loads, and `config check`, doctor and the log tell."""
    (doubt,) = [each for each in doubts(config(text)) if words in each]
    assert "config.toml:" in doubt


@pytest.mark.parametrize(
    "wrong",
    ["nonsense = 1\n", 'idle_after = "soon"\n', RULE.replace('"a"', '"b"') + 'freeze = "soon"\n'],
    ids=str.strip,
)
def test_what_is_doubtful_is_told_beside_what_is_wrong(tmp_path, wrong):
    """Who mends the error would meet the next one."""
    file = tmp_path / "config.toml"
    file.write_text(wrong + RULE)
    found = examine({}, {}, file)
    assert found.settings is None
    (doubt,) = of_rules(found.rules)
    assert "rule a sets nothing" in doubt
    told = CliRunner().invoke(app, ["config", "check", str(file)])
    assert told.exit_code == 78
    assert f"warning: {doubt}" in told.output


def test_a_rule_that_is_wrong_itself_is_doubted_where_it_can_be_read(tmp_path):
    """What cannot be read may be what it was to set."""
    file = tmp_path / "config.toml"
    file.write_text('[[gpuctl]]\nname = "a"\ncpu_nice = "soon"\n[[gpuctl]]\nname = "b"\n')
    found = examine({}, {}, file)
    (doubt,) = of_rules(found.rules)
    assert "rule b sets nothing" in doubt


def test_a_name_that_is_there_twice_is_told_beside_other_mistakes(tmp_path):
    """Whatever else is wrong with one of the two."""
    file = tmp_path / "config.toml"
    file.write_text(RULE + RULE + "freez = true\n")
    problems = examine({}, {}, file).problems
    assert [each for each in problems if "did you mean 'freeze'?" in each]
    assert [each for each in problems if each.startswith(f"{file}:4: ") and "two rules are called a" in each]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (RULE.replace("user:bob", "user:no-such-user"), ["rule a: there is no user no-such-user here"]),
        (RULE.replace('"user:bob"', '"user:root", "user:4711", "user:no*"'), []),
        ('[gvm]\nproc_root = "/nosuch"', ["/nosuch is no /proc"]),
        ('[gvm]\nproc_root = "/proc"', []),
    ],
)
def test_what_this_machine_does_not_have(config, text, words):
    """`config check` and doctor tell; the governor does not ask, as a directory of users may be slow."""
    found = list(here(config(text)))
    assert len(found) == len(words)
    assert all(word in sentence for word, sentence in zip(words, found, strict=True))
    assert all("config.toml:" in sentence for sentence in found)


def test_a_watch_in_a_container_is_known(config):
    """A rule's port means it with its scope, and without."""
    text = (
        '[[watch]]\nport = 9999\nscope = "container:web"\n'
        + RULE
        + 'freeze = true\nwatches = ["9999@container:web", 9999]'
    )
    assert not [doubt for doubt in doubts(config(text)) if "nobody watches" in doubt]


def test_a_good_rule_is_no_doubt(config):
    """Nothing is said about a file that is as it should be."""
    assert not list(doubts(config("discover = true\n" + WHOLE)))


@given(st.integers(0, NO_LIMIT))
def test_amounts_read_back(amount_bytes):
    """Whatever is shown means the same, and is what the schema allows."""
    text = write_bytes(amount_bytes)
    assert read_bytes(text) == amount_bytes
    jsonschema.validate(text, SIZE.schema)


@pytest.mark.parametrize(
    ("text", "amount_bytes"),
    [
        ("6G", 6 << 30),
        ("6GiB", 6 << 30),
        ("6 gib", 6 << 30),
        ("6GB", 6 * 10**9),
        ("1.5G", 3 << 29),
        ("512m", 512 << 20),
        ("64KiB", 64 << 10),
        ("1T", 1 << 40),
        ("4096", 4096),
        (4096, 4096),
        ("7B", 7),
        ("MAX", NO_LIMIT),
    ],
)
def test_amounts_are_written_as_people_do(text, amount_bytes):
    """A letter alone is binary, as with systemd; GB is decimal."""
    assert read_bytes(text) == amount_bytes
    jsonschema.validate(text, SIZE.schema)


@pytest.mark.parametrize(
    "text", ["0.5", "0.9B", "6\N{KELVIN SIGN}", "\N{ARABIC-INDIC DIGIT SIX}", "-1", "1e9", "6 G B", "", "0x10"]
)
def test_what_is_no_amount(text):
    """Above all not what would be rounded to 0: that moves everything off the GPU."""
    with pytest.raises(ValueError, match="no amount of memory"):
        read_bytes(text)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(text, SIZE.schema)


@given(st.text(max_size=40))
def test_a_match_says_the_same_again(text):
    """Whatever is understood prints as what is understood the same."""
    try:
        match = a_match(text)
    except ValueError:
        return
    assert a_match(str(match)) == match


def blocks():
    """The rules that pages show."""
    for page in sorted(Path(__file__).resolve().parents[2].glob("docs/*.md")):
        for block in re.findall(r"(?:^    .*\n|^\n)+", page.read_text(encoding="utf-8"), re.MULTILINE):
            text = re.sub(r"^    ", "", block, flags=re.MULTILINE)
            if re.search(r"^\[\[gpuctl\]\]|^\[gvm\]", text, re.MULTILINE):
                yield pytest.param(text, id=f"{page.name}: {text.strip().splitlines()[1]}")


@pytest.mark.parametrize("text", list(blocks()))
def test_examples_of_the_documentation(config, text):
    """They conform, load, and nobody doubts them."""
    VALIDATOR.validate(tomllib.loads(text))
    found = config(f"discover = true\n{CHAT}{text}")
    assert found.gpuctl or found.gvm != Gvm()
    assert not [doubt for doubt in doubts(found) if "rule" in doubt]
