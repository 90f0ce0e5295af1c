"""gppm's files as they are, and what is written for them."""

import shlex
import string
from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from memscaler.config import gppm
from memscaler.config.load import load
from memscaler.config.ports import Watch
from memscaler.config.servers import Hook, Server
from memscaler.core.errors import ConfigError

# In the shape of gppm's own examples (README and llamacpp_configs): a load balancer, a server with a hook that
# announces it there, one of an older version, and two with one name.
EXAMPLE = r"""
- name: "Codestral-22B-v0.1-Q8_0 (paddler balancer)"
  enabled: True
  command:
    "/usr/local/bin/paddler balancer \
      --management-port 8085 \
      --reverseproxy-port 8081"

- name: "Codestral-22B-v0.1-Q8_0 (llama.cpp 01)"
  enabled: True
  env:
    CUDA_VISIBLE_DEVICES: "0,1,2"
    LLAMA_ARG_THREADS: 8
  command:
    "/usr/local/bin/llama-server \
      -m /models/Codestral-22B-v0.1-Q8_0.gguf \
      --port 8082 \
      --log-format json" # Remove this for version >=1.2.0
  post_launch_hooks:
  - name: Codestral-22B-v0.1-Q8_0_(paddler_01)
    enabled: True
    command:
      "/usr/local/bin/paddler agent \
        --name 'Codestral-22B-v0.1-Q8_0 (llama.cpp 01)' \
        --management-port 8085"
    post_launch_hooks:
    - {name: below it, enabled: no, command: tail -f /dev/null}

- name: replete-coder
  enabled: False
  command: "/usr/local/bin/llama-server"
  cuda_visible_devices: "1"
  options:
  - --host 0.0.0.0
  - --port 8083
  - -fa

- name: replete-coder
  enabled: False
  comment: its twin
  command: llama-server --port 8083
"""


def read(text):
    return gppm.read(text, "old.yaml")


def problems(text):
    with pytest.raises(ConfigError) as caught:
        read(text)
    return str(caught.value).splitlines()


def test_the_examples():
    """Commands, GPUs, variables, switches and hooks of hooks mean what they meant; names become such as can be files."""
    balancer, codestral, older, twin = read(EXAMPLE)
    assert (balancer.name, balancer.enabled, balancer.port, balancer.gpus) == (
        "Codestral-22B-v0.1-Q8_0-paddler-balancer",
        True,
        None,
        (),
    )
    assert balancer.command[1:4] == ("balancer", "--management-port", "8085")
    below = Hook(name="below-it", command=("tail", "-f", "/dev/null"), enabled=False)
    agent = ("/usr/local/bin/paddler", "agent", "--name", "Codestral-22B-v0.1-Q8_0 (llama.cpp 01)")
    assert codestral == Server(
        name="Codestral-22B-v0.1-Q8_0-llama.cpp-01",
        command=(
            *("/usr/local/bin/llama-server", "-m", "/models/Codestral-22B-v0.1-Q8_0.gguf", "--port", "8082"),
            *("--log-format", "json"),
        ),
        environment=(("LLAMA_ARG_THREADS", "8"),),
        port=8082,
        gpus=("gpu0", "gpu1", "gpu2"),
        hooks=(
            Hook(
                name="Codestral-22B-v0.1-Q8_0-paddler_01",
                command=(*agent, "--management-port", "8085"),
                hooks=(below,),
            ),
        ),
    )
    assert codestral.origin == "old.yaml:9"
    assert (older.command[1:], older.gpus, older.port, older.enabled) == (
        ("--host", "0.0.0.0", "--port", "8083", "-fa"),
        ("gpu1",),
        8083,
        False,
    )
    assert (older.name, twin.name, twin.port) == ("replete-coder", "replete-coder-2", 8083)


@pytest.mark.parametrize(
    ("written", "gpus", "variables"),
    [
        ('"0"', ("gpu0",), {}),
        ("0", ("gpu0",), {}),
        ("1,0", ("gpu1", "gpu0"), {}),
        ('"2, 1"', ("gpu2", "gpu1"), {}),
        ("GPU-8f3a1c52,0", ("GPU-8f3a1c52", "gpu0"), {}),
        ('""', (), {"CUDA_VISIBLE_DEVICES": ""}),
        ('"-1"', (), {"CUDA_VISIBLE_DEVICES": "-1"}),
        ('"0,0"', (), {"CUDA_VISIBLE_DEVICES": "0,0"}),
        ('"0,-1,1"', (), {"CUDA_VISIBLE_DEVICES": "0,-1,1"}),
        ("MIG-GPU-1/2/3", (), {"CUDA_VISIBLE_DEVICES": "MIG-GPU-1/2/3"}),
    ],
)
def test_what_names_gpus(written, gpus, variables):
    """Plain indexes and UUIDs are GPUs, in their order; whatever else CUDA makes of the variable is left to it."""
    (server,) = read(
        "- name: a\n  command: x --port 1\n  env:\n    CUDA_DEVICE_ORDER: PCI_BUS_ID\n"
        f"    CUDA_VISIBLE_DEVICES: {written}\n"
    )
    assert server.gpus == gpus
    assert {name: value for name, value in server.environment if name == "CUDA_VISIBLE_DEVICES"} == variables
    assert ("CUDA_DEVICE_ORDER" in dict(server.environment)) == bool(variables)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("- name: x\n  comand: y\n", ["old.yaml:2: unknown key 'comand' (did you mean 'command'?)"]),
        ("- name: x\n  enabled: 'True'\n  command: y\n", ["old.yaml:2: enabled: 'True' is neither true nor false"]),
        ('- name: x\n  command: "y \'"\n', ["old.yaml:2: command: a quotation does not end"]),
        ("- name: x\n  command: y\n  env: {A: [1]}\n", ["old.yaml:3: this is not a text"]),
        ("- name: x\n  command: y\n  env: {A B: 1}\n", ["old.yaml:3: environment: 'A B' is no name"]),
        ("- command: y\n", ["old.yaml:1: an instance needs a name"]),
        ("- name: x\n  command: y --port 1 --port 2\n", ["which port is it"]),
        ("- name: o\n  type: ollama\n  command: ollama serve\n", ["old.yaml:2: type ollama: one Ollama serves many"]),
        ("- a\n- 1\n", ["old.yaml:1: this is not a table", "old.yaml:2: this is not a table"]),
        ("name: x\n", ["old.yaml:1: instances: this is not a list"]),
        ("- name: x\n  command: [y]\n", ["old.yaml:2: this is not a text"]),
        ("a: [\n", ["old.yaml:2: not YAML"]),
        ("- !!python/object/apply:os.system [id]\n", ["old.yaml:1: this is not a table"]),
        ("- &a [*a]\n", ["old.yaml stands for more than 20000 values"]),
        ("[" * 5000, ["old.yaml is nested too deeply"]),
        ("#" * (300 << 10), ["old.yaml is larger than 256 KiB"]),
        ("\x00", ["old.yaml: not YAML"]),
        ("--- 1\n--- 2\n", ["not YAML: but found another document"]),
        (
            "- name: x\n  command: y --port 1\n- name: z\n  command: y --port 1\n",
            ["old.yaml:3: port 1 of server z is that of server x (in old.yaml:1)"],
        ),
    ],
)
def test_what_is_wrong(text, said):
    """Sentences with their lines, and never anything else."""
    found = problems(text)
    for sentence in said:
        assert any(sentence in each for each in found), found


def test_aliases_that_would_grow_without_end():
    """Each line ten times the one above: refused by what it would stand for, at once."""
    lines = ["a0: &a0 [x, x]"] + [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 12)]
    assert problems("\n".join(lines)) == ["old.yaml stands for more than 20000 values"]
    merged = ["- &a0 {name: x}"] + [f"- &a{n} {{<<: [*a{n - 1}, *a{n - 1}]}}" for n in range(1, 40)]
    assert problems("\n".join(merged)) == ["old.yaml stands for more than 20000 values"]


def test_aliases_and_merges():
    """As YAML has them: what is said goes before what is merged in, and the first of several before the others."""
    text = (
        "- &base {name: a, enabled: no, command: x --port 1, env: {A: 1}}\n- &more {command: y, env: {A: 2}}\n"
        "- {<<: *base, name: b}\n- {<<: [*more, *base], name: c}\n"
    )
    assert problems(text) == ["old.yaml:2: an instance needs a name"]
    a, more, b, c = read(text.replace("{command: y", "{name: m, command: y"))
    assert (a.name, more.name, b.name, c.name) == ("a", "m", "b", "c")
    assert (b.command, c.command) == (("x", "--port", "1"), ("y",))
    assert (dict(c.environment), c.enabled) == ({"A": "2"}, False)


def test_a_whole_directory_of_gppm(tmp_path):
    """Beside a configuration it is read as it is, and its ports are watched on its GPUs."""
    folder = tmp_path / "servers.d"
    folder.mkdir()
    (folder / "old.yaml").write_text(EXAMPLE)
    (tmp_path / "config.toml").write_text("")
    read_in = load({}, {}, tmp_path / "config.toml")
    assert len(read_in.servers) == 4
    assert read_in.watches == (Watch(8082, ("gpu0", "gpu1", "gpu2")),)


# ---- what is written reads back -------------------------------------------------------------------------------------

TEXT = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=12)
NAMES = st.from_regex(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,20}", fullmatch=True)
PATHS = TEXT.map(lambda text: "/" + text.strip("/")).map(lambda text: str(Path(text)))
VARIABLES = st.dictionaries(st.from_regex(r"[A-Z_][A-Z0-9_]{0,8}", fullmatch=True), TEXT, max_size=3)
PAIRS = VARIABLES.map(lambda each: tuple(sorted(each.items())))
COMMANDS = st.builds(lambda first, rest: (f"p{first}", *rest), TEXT, st.lists(TEXT, max_size=4))
TIMES = st.integers(1, 10**6).map(lambda ms: ms / 1000)


def hooks(inner):
    built = st.builds(Hook, name=NAMES, command=COMMANDS, environment=PAIRS, enabled=st.booleans(), hooks=inner)
    return st.lists(built, max_size=2, unique_by=lambda hook: hook.name).map(tuple)


HOOKS = st.recursive(st.just(()), hooks, max_leaves=3)


@st.composite
def servers(draw):
    """Any that can be described, distinct in names and ports."""
    found = []
    for name in draw(st.lists(NAMES, max_size=4, unique=True)):
        has_model, placed = draw(st.booleans()), draw(st.booleans())
        gpus = draw(st.lists(st.sampled_from(["gpu0", "gpu1", "GPU-8f3a", "0000:3b:00.0"]), max_size=3, unique=True))
        what = (
            {"model": draw(PATHS), "options": tuple(draw(st.lists(TEXT, max_size=3)))}
            if has_model
            else {"command": draw(COMMANDS)}
        )
        found.append(
            Server(
                name=name,
                **what,
                environment=draw(PAIRS),
                directory=draw(st.just("") | PATHS),
                user=draw(st.sampled_from(["", "alice", "memscaler-servers"])),
                port=8000 + len(found) if has_model or draw(st.booleans()) else None,
                gpus=() if placed else tuple(gpus),
                placed=placed and has_model,
                enabled=draw(st.booleans()),
                restart=draw(st.sampled_from(["always", "on-failure", "never"])),
                restart_after_s=draw(st.integers(100, 10**6)) / 1000,
                restart_limit=draw(st.integers(0, 1000)),
                restart_window_s=draw(st.integers(1000, 10**6)) / 1000,
                start_timeout_s=draw(st.just(0.0) | TIMES),
                stop_timeout_s=draw(st.just(0.0) | TIMES),
                health=draw(st.sampled_from(["", "/", "/health", "/v1/health?x=1"])),
                health_every_s=draw(st.just(0.0) | TIMES),
                log=draw(st.sampled_from(["auto", "journal", "file"])),
                hooks=draw(HOOKS),
            )
        )
    return tuple(found)


@given(servers())
@settings(max_examples=60, deadline=None)
def test_what_is_written_reads_back(tmp_path_factory, described):
    """The same servers, whatever is in their words."""
    file = tmp_path_factory.mktemp("written") / "config.toml"
    file.write_text(gppm.write(described), encoding="utf-8")
    assert load({}, {}, file).servers == described


ASCII = st.text(string.ascii_letters + string.digits + " _().,:'\"\\-/#&*!%@{}[]|>", min_size=1, max_size=20)
ENTRIES = st.recursive(
    st.just([]),
    lambda inner: st.lists(
        st.fixed_dictionaries(
            {
                "name": ASCII.filter(str.strip),
                "enabled": st.booleans(),
                "command": st.lists(ASCII, min_size=1, max_size=3).map(lambda words: shlex.join(["x", *words])),
                "post_launch_hooks": inner,
            }
        ),
        max_size=3,
    ),
    max_leaves=4,
)


def tree(entries):
    return [(tuple(shlex.split(e["command"])), e["enabled"], tree(e["post_launch_hooks"])) for e in entries]


def tree_of(described):
    return [(each.command, each.enabled, tree_of(each.hooks)) for each in described]


@given(ENTRIES)
@settings(max_examples=60, deadline=None)
def test_any_file_of_gppm_becomes_the_same_servers(tmp_path_factory, entries):
    """YAML, read; written as TOML; read: commands, switches and hooks are those of the file, and every name is good."""
    read_in = read(yaml.safe_dump(entries))
    assert tree_of(read_in) == tree(entries)
    file = tmp_path_factory.mktemp("imported") / "config.toml"
    file.write_text(gppm.write(read_in), encoding="utf-8")
    assert load({}, {}, file).servers == read_in
