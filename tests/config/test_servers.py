"""Descriptions of servers: [[server]] tables, files of servers.d, and the watches that they become."""

import json
import os

import jsonschema
import pytest

from memscaler.config.load import examine, load
from memscaler.config.ports import Watch
from memscaler.config.render import effective, json_schema
from memscaler.config.servers import Hook, Server
from memscaler.core.errors import ConfigError

CHAT = """\
[[server]]
name = "chat"
command = "llama-server -m '/models/a b.gguf' --port 8080 --api-key secret"
gpus = ["gpu0", 1]
directory = "/srv"
user = "alice"
restart = "always"
restart_after = "500ms"
restart_limit = 0
restart_window = "1h"
start_timeout = "off"
stop_timeout = "30s"
health = "off"
health_every = "5m"
log = "file"
[server.environment]
GGML_CUDA_ENABLE_UNIFIED_MEMORY = 1
HF_TOKEN = "secret"

[[server.hook]]
name = "agent"
command = ["paddler", "agent", "--name", "a b"]
[[server.hook.hook]]
name = "tail"
command = "tail -f /dev/null"
enabled = false
environment = {A = "b"}
"""


@pytest.fixture
def files(tmp_path):
    """Write config.toml and files of servers.d; the path of the first."""

    def write(text="", **described):
        (tmp_path / "config.toml").write_text(text)
        for name, content in described.items():
            path = tmp_path / "servers.d" / name.replace("__", ".")
            path.parent.mkdir(exist_ok=True)
            path.write_text(content)
        return tmp_path / "config.toml"

    return write


def test_a_whole_one(files):
    """Every key, and hooks of hooks."""
    file = files(CHAT)
    (server,) = load({}, {}, file).servers
    inner = Hook(name="tail", command=("tail", "-f", "/dev/null"), environment=(("A", "b"),), enabled=False)
    assert server == Server(
        name="chat",
        command=("llama-server", "-m", "/models/a b.gguf", "--port", "8080", "--api-key", "secret"),
        environment=(("GGML_CUDA_ENABLE_UNIFIED_MEMORY", "1"), ("HF_TOKEN", "secret")),
        directory="/srv",
        user="alice",
        port=8080,
        gpus=("gpu0", "1"),
        restart="always",
        restart_after_s=0.5,
        restart_limit=0,
        restart_window_s=3600,
        start_timeout_s=0,
        stop_timeout_s=30,
        health="",
        health_every_s=300,
        log="file",
        hooks=(Hook(name="agent", command=("paddler", "agent", "--name", "a b"), hooks=(inner,)),),
    )
    assert server.origin == f"{file}:1"


def test_defaults_are_those_of_the_description(files):
    """What a table does not say is what the class says."""
    (server,) = load({}, {}, files('[[server]]\nname = "a"\ncommand = "x"\n')).servers
    assert server == Server(name="a", command=("x",))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ("{ctx-size = 8192, flash-attn = true}", ["--ctx-size", "8192", "--flash-attn"]),
        ("{c = 4096, ngl = 99, temp = 0.5}", ["-c", "4096", "-ngl", "99", "--temp", "0.5"]),
        ('{"-ub" = 256, lora = ["/a", "/b"]}', ["-ub", "256", "--lora", "/a", "--lora", "/b"]),
        ('["-fa", "-c", 4096]', ["-fa", "-c", "4096"]),
        ("\"-fa -c '4096'\"", ["-fa", "-c", "4096"]),
    ],
)
def test_options_of_a_model(files, options, words):
    """A table, a list, a text."""
    (server,) = load({}, {}, files(f'[[server]]\nname="a"\nmodel="/m.gguf"\nport=1\noptions={options}\n')).servers
    assert list(server.options) == words


@pytest.mark.parametrize(
    ("table", "port"),
    [
        ('command = "x --port 8081"', 8081),
        ('command = "x --port=8082"', 8082),
        ('command = "x"\nenvironment = {LLAMA_ARG_PORT = 8083}', 8083),
        ('model = "/m"\noptions = {port = 8084}', 8084),
        ('command = "x --port 8085"\nport = 8085', 8085),
        ('command = "x --port 0"', None),
        ('command = "x --port"', None),
        ('command = "x --portal 9"', None),
        ('command = "x --port some"', None),
    ],
)
def test_the_port_is_found(files, table, port):
    """In the command, the options or the environment."""
    settings = load({}, {}, files(f'[[server]]\nname = "a"\n{table}\n'))
    assert settings.servers[0].port == port
    assert settings.watches == ((Watch(port),) if port else ())


def test_all_that_is_wrong_at_once(files, tmp_path):
    """In every file, each with its line."""
    file = files(
        '[[server]]\nname = "a b"\ncommand = "x > y"\n[[server]]\nname = "b"\ncomand = "x"\nuser = "root"\n'
        '[[server.hook]]\nname = "h"\nenv = {A = 1}\n[[watch]]\nport = 0\n',
        c__toml='gpus = ["card"]\nport = "80"\nrestart = "sometimes"\nhealth = "up"\nenabled = "yes"\n',
        d__yaml="- name: d\n  comand: x\n",
        e__toml="a = = 1\n",
    )
    found = examine({}, {}, file)
    assert found.settings is None
    folder = tmp_path / "servers.d"
    expected = (
        f"{folder}/e.toml:1: not TOML: Invalid value (column 5)",
        f"{file}:2: 'a b' is no name of a server (1 to 63 letters, digits and _ . -, the first no . or -)",
        f'{file}:3: command: no shell reads it, so \'>\' has no meaning (write ["sh", "-c", ...])',
        f"{file}:6: unknown key 'comand' (did you mean 'command'?)",
        f"{file}:7: user: servers do not run as root (leave it out: they run as memscaler-servers)",
        f"{file}:10: unknown key 'env' (did you mean 'environment'?)",
        f"{file}:8: a hook needs a command",
        f"{file}:12: port 0 is out of range (1-65535)",
        f"{folder}/c.toml:1: gpus: 'card' names no GPU (write gpu0, GPU-<uuid> or a PCI address such as 0000:3b:00.0)",
        f"{folder}/c.toml:2: port: '80' is no port (write a number from 1 to 65535, as in port = 8080)",
        f"{folder}/c.toml:3: restart: 'sometimes' is none of always, on-failure, never",
        f'{folder}/c.toml:4: health: \'up\' is no path (write "/health" or "off")',
        f"{folder}/c.toml:5: enabled: 'yes' is neither true nor false (write it without quotes)",
        f"{folder}/d.yaml:2: unknown key 'comand' (did you mean 'command'?)",
        f"{folder}/d.yaml:1: command is empty",
    )
    assert sorted(found.problems) == sorted(expected)


@pytest.mark.parametrize(
    ("table", "line", "problem"),
    [
        ("", 1, "a server has a command or a model"),
        ('command = "x"\nmodel = "/m"', 3, "either a command or a model"),
        ('command = "x"\noptions = ["-c"]', 4, "options belong to a model"),
        ('command = "x"\ngpus = "auto"', 4, 'gpus = "auto" places a model'),
        ('model = "/m"', 1, "a server with a model needs a port"),
        ('model = "m.gguf"\nport = 1', 3, "model: 'm.gguf' is not an absolute path"),
        ('command = "x --port 1"\nport = 2', 4, "which port is it: 2 (port), 1 (--port)?"),
        ('command = "x --port 1 --port 3"', 1, "which port is it"),
        ('command = "x --port 1"\nenvironment = {LLAMA_ARG_PORT = "3"}', 1, "1 (--port), 3 (LLAMA_ARG_PORT)?"),
        ('command = "x"\ngpus = ["gpu0"]\nenvironment = {CUDA_VISIBLE_DEVICES = "0"}', 5, "leave one of them out"),
        ('command = ""', 3, "command is empty"),
        ('command = "x \'"', 3, "command: a quotation does not end"),
        ('command = ["x", true]', 3, "command: True is no word for a program"),
        ("command = 3", 3, "command is a text or a list"),
        ('command = "x"\nenvironment = {A = true}', 4, "environment: A: True is no word for a program"),
        ('command = "x"\nenvironment = {"A-B" = "1"}', 4, "'A-B' is no name of a variable"),
        ('model = "/m"\nport = 1\noptions = {mmap = false}', 5, "write its opposite, as in no-mmap = true"),
        ('model = "/m"\nport = 1\noptions = {"a b" = 1}', 5, "'a b' is no option"),
        ('command = "x"\nrestart_after = 0', 4, "restart_after: 0 is out of range"),
        ('command = "x"\nhook = {name = "h"}', 4, "write each hook as a [[server.hook]] table"),
        ('command = "x"\nuser = "a b"', 4, "user: 'a b' is no name of a user"),
        ('command = "x"\nidle_after = "5s"', 4, "unknown key 'idle_after'"),
    ],
)
def test_what_does_not_go_together(files, table, line, problem):
    """One sentence, with the line."""
    file = files(f'[[server]]\nname = "a"\n{table}\n')
    (said,) = examine({}, {}, file).problems
    assert problem in said
    assert said.startswith((f"{file}:{line}: ", f"{file}:1: "))


def test_hooks_have_an_end(files):
    """A file cannot be nested for ever."""
    hook = "{" * 1
    for depth in range(12):
        hook = f'name = "h{depth}", command = "x"' + (f", hook = [{{{hook}}}]" if depth else "")
    (said,) = examine({}, {}, files(f'[[server]]\nname = "a"\ncommand = "x"\nhook = [{{{hook}}}]\n')).problems
    assert "nested more than 8 deep" in said


def test_names_and_ports_are_one_servers_own(files, tmp_path):
    """Both places are named; a server that is not enabled has no port yet."""
    file = files(
        '[[server]]\nname = "a"\ncommand = "x --port 80"\n',
        a__toml='command = "x --port 81"\n',
        b__toml='command = "x --port 80"\n',
        c__toml='command = "x --port 80"\nenabled = false\n',
    )
    assert examine({}, {}, file).problems == (
        f"{tmp_path}/servers.d/a.toml:1: server a is described twice (the first is in {file}:1)",
        f"{tmp_path}/servers.d/b.toml:1: port 80 of server b is that of server a (in {file}:1)",
    )


def test_files_of_servers_d(files, tmp_path, monkeypatch):
    """One server by the name of the file, tables, gppm's; whether or not there is a config.toml; others are not read."""
    file = files(
        "",
        chat__toml='command = "x --port 81"\n',
        more__toml='[[server]]\nname = "a"\ncommand = "x"\n[[server]]\nname = "b"\ncommand = "x"\n',
        both__toml='name = "top"\ncommand = "x"\n[[server]]\nname = "below"\ncommand = "x"\n',
        old__yaml="- name: gppm\n  enabled: True\n  command: x --port 82\n",
        older__yml="- name: gppm2\n  enabled: False\n  command: x --port 83\n",
        empty__toml="# nothing\n",
        notes__txt="no description",
    )
    file.unlink()
    monkeypatch.setattr("memscaler.config.load.DEFAULT_FILE", file)
    (tmp_path / "servers.d" / ".hidden.toml").write_text("= broken")
    settings = load({}, {})
    assert load({}, {}, tmp_path).servers == settings.servers
    assert [each.name for each in settings.servers] == ["top", "below", "chat", "a", "b", "gppm", "gppm2"]
    assert settings.servers[3].origin == f"{tmp_path}/servers.d/more.toml:1"
    assert settings.servers[4].origin == f"{tmp_path}/servers.d/more.toml:4"
    assert settings.watches == (Watch(81), Watch(82))
    assert settings.origins["watch.82"] == f"{tmp_path}/servers.d/old.yaml:1"


def test_what_servers_d_does_not_read(files, tmp_path):
    """A file of another ending is told by `config check`; a table by nearly the right name is named."""
    file = files("", a__conf='command = "x"\n')
    (tmp_path / "servers.d" / "a.toml~").write_text("")
    told = examine({}, {}, file).ignored
    assert told == (f"{tmp_path}/servers.d/a.conf: not read, for only *.toml, *.yaml, *.yml are",)
    (tmp_path / "servers.d" / "b.toml").write_text('[[servers]]\ncommand = "x"\n')
    assert examine({}, {}, file).problems == (
        f"{tmp_path}/servers.d/b.toml:1: unknown table [[servers]] (did you mean [[server]]?)",
    )


def test_servers_d_that_others_may_write(files, tmp_path):
    """What starts programs is trusted no more than the rest: neither the file nor its folder."""
    file = files("discover = true\n", a__toml='command = "x"\n')
    described = tmp_path / "servers.d" / "a.toml"
    described.chmod(0o666)
    with pytest.raises(ConfigError, match=r"a\.toml may be written by others"):
        load({}, {}, file)
    described.chmod(0o644)
    described.parent.chmod(0o777)
    with pytest.raises(ConfigError, match=r"servers\.d may be written by others"):
        load({}, {}, file)
    described.parent.chmod(0o755)
    os.chown(described, 65534, 0)
    with pytest.raises(ConfigError, match="belongs to another user"):
        load({}, {}, file)


def test_servers_are_watched(files):
    """Those that are enabled, with their GPUs, unless a [[watch]] names their port on this host."""
    text = '[[watch]]\nport = 80\ngpus = ["gpu7"]\n[[watch]]\nport = 82\nscope = "container:web"\n' + "".join(
        f'[[server]]\nname = "s{port}"\nmodel = "/m"\nport = {port}\ngpus = {gpus}\nenabled = {enabled}\n'
        for port, gpus, enabled in (
            (80, '["gpu0"]', "true"),
            (81, '["gpu1", "gpu0"]', "true"),
            (82, '"auto"', "true"),
            (83, "[]", "false"),
        )
    )
    file = files(text)
    settings = load({}, {}, file)
    assert [str(each) for each in settings.watches] == ["80:gpu7", "82@container:web", "81:gpu1,gpu0", "82"]
    assert settings.origins["watch.81"] == f"{file}:13"
    assert settings.servers[2].placed
    for others in (({"watch": ["9000"]}, {}), ({}, {"MEMSCALER_WATCH": "9000"})):
        other = load(*others, file)
        assert (other.watches, len(other.servers)) == ((Watch(9000),), 4)


def test_a_moved_description_is_the_same(files):
    """A line more above it is no reason to start it anew."""
    before = load({}, {}, files('[[server]]\nname = "a"\ncommand = "x"\n')).servers
    after = load({}, {}, files('\n\n[[server]]\nname = "a"\ncommand = "x"\n')).servers
    assert before == after
    assert before[0].origin != after[0].origin


def test_shown_without_secrets(files):
    """`config show` has every key that is set, of variables the names, and no key of an API."""
    settings = load({}, {}, files(CHAT.replace("HF_TOKEN", 'B = "x"\nHF_TOKEN')))
    rows = {key: value for key, value, _ in effective(settings) if key.startswith("server.")}
    assert rows["server.chat.command"] == [
        *("llama-server", "-m", "/models/a b.gguf", "--port", "8080", "--api-key", "...")
    ]
    assert rows["server.chat.environment"] == ["B", "GGML_CUDA_ENABLE_UNIFIED_MEMORY", "HF_TOKEN"]
    assert rows["server.chat.start_timeout"] == "off"
    assert rows["server.chat.hook.agent.hook.tail.enabled"] is False
    assert "secret" not in json.dumps(list(rows.values()))


def test_the_json_schema_takes_it(files):
    """What is good is good for an editor, too, and a slip of the pen is not."""
    import tomllib

    schema = json_schema()
    jsonschema.Draft202012Validator.check_schema(schema)
    check = jsonschema.Draft202012Validator(schema)
    assert list(check.iter_errors(tomllib.loads(CHAT))) == []
    for bad in (
        CHAT.replace("log =", "logs ="),
        CHAT.replace('"gpu0"', '"card"'),
        CHAT.replace("enabled = false", 'enabled = "no"'),
        CHAT.replace('name = "chat"', ""),
        CHAT.replace("directory", 'model = "/m"\ndirectory'),
    ):
        assert list(check.iter_errors(tomllib.loads(bad)))
        assert examine({}, {}, files(bad)).problems
