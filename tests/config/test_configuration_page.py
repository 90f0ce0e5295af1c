"""docs/configuration.md is the schema, written out. MEMSCALER_UPDATE_GOLDEN=1 writes it anew."""

import os
import re
import textwrap
from pathlib import Path

import typer.main

from memscaler.cli.main import app
from memscaler.config.gateway_keys import GATEWAY_KEYS
from memscaler.config.gpuctl_keys import GPUCTL_KEYS, GVM_KEYS
from memscaler.config.load import load
from memscaler.config.ports import Watch, parse_watch
from memscaler.config.schema import ENV_PREFIX, OPTIONS
from memscaler.config.server_keys import HOOK_KEYS, KEYS
from memscaler.config.servers import Server
from memscaler.config.stage_keys import STAGE_KEYS, SUSPEND_KEYS
from memscaler.core.watch import SCOPE_KINDS, Quiet, Scope
from memscaler.daemon.reload import FIXED

PAGE = Path(__file__).resolve().parents[2] / "docs" / "configuration.md"
HEAD = """# Configuration

Every setting of `memscaler run`. This page is made from `memscaler/config/schema.py`; a test compares them.

A flag goes before its variable, that before the files, those before the default. The files are `--config FILE`, else
`/etc/memscaler/config.toml` if it is there, and then those in [`conf.d`](#confd) beside it; those in
[`servers.d`](#servers) describe servers. Whatever is wrong is said at the start, all at once, with the line, the
variable or the flag that it stands in; an unknown key is an error (exit code 78, a wrong flag 2).

| key | default | flag | variable | tables | meaning |
|---|---|---|---|---|---|
"""
TAIL = """
*tables*: where the key may stand beside the top of the file, for one watch or one GPU. What a table says replaces the
general value, also a list (`ignore = []`: nobody is ignored on this port), and goes before flags and variables, which
are general values.

- A *time* is `60s`, `500ms`, `2m`, `1h30m`, `2d`, or seconds: `1.5`.
- `idle_after = "auto"`: [how it decides](policy.md). `quiet_idle_after` stays a time, and the shorter one counts.
- A *truth value* is `true` or `false`; in a variable also `1`, `0`, `yes`, `no`, `on`, `off`, and in most tables of the
  file, in quotes. As a flag it has no value.
- A *list* is a list in the file: `ignore = ["127.0.0.1", "fd00::/8"]`; a single entry may stand alone. `--port` and `--ignore` may be given several
  times. `MEMSCALER_WATCH` is parted by blanks, `MEMSCALER_IGNORE` by blanks or commas, `simulate` by commas, times of
  the week by semicolons.
- A *time of the week* is `Mon-Fri 09:00-18:00`, `22:00-06:00` (every night, into the next day), `Sat,Sun` (whole days),
  on the clock of the machine.
- *Labels* are a table of texts: `labels = {site = "berlin", role = "chat"}`, or below `[labels]`; in a variable
  `site=berlin,role=chat`. They are in `memscaler_host_info` alone; [fleet.md](fleet.md) shows how to join on it.
- An empty variable counts as not set.

- A variable that begins with `MEMSCALER_` and that nobody reads is told with a warning: it is misspelt.

| command | does |
|---|---|
| `memscaler config init` | prints a file to begin with: every setting with its default, commented out; `--output FILE` writes it |
| `memscaler config check` | tells everything that is wrong with `FILE` and the `conf.d` beside it, or with what `run` would read (exit code 78); also as JSON. Changes nothing; needs no root, no GPU and no free port. Where NVIDIA's driver is loaded it tells GPUs that are named and not there; in a `FILE`, which may be another machine's, that is a warning |
| `memscaler config show --origin` | the settings in force, each with the flag, variable or line that it comes from. Flags of `run` may follow |
| `memscaler config schema` | the file's JSON Schema (draft 2020-12), for editors |

The files decide what root does. So they have to belong to root, or to who runs memscaler, and nobody else may write
them or their folders; otherwise they are refused.

`memscaler reload` (or SIGHUP, `systemctl reload`) reads them anew: as a whole or not at all. GPUs that did not change
are not touched. These need a restart, and refuse the reload: `metrics`, `labels`, `settle_timeout`, `probe_servers`,
`loader_python`, `runtime_dir`, `state_dir`, `dry_run`, `simulate`, `log_format`, `log_level`.

## conf.d

`conf.d/*.toml` beside the file (`/etc/memscaler/conf.d/`), whether or not that is there, in the order of their names.
`--config FOLDER` means `config.toml` and `conf.d` in it. A named file that is not called `config.toml` has to be there.
Each has the same form. A later file goes before an earlier one, key by key, and all of them before the file. `[[watch]]`
tables add up, and the same port twice is an error that names both places. What several files say of one `[gpu.NAME]`, or
in `labels`, is put together. Other names, and those that begin with a dot, are not read.

    # conf.d/50-chat.toml
    [[watch]]
    port = 8081
    gpus = ["gpu2"]

## Watches

    [[watch]]
    port = 8080
    scope = "container:web"
    gpus = ["gpu0", "gpu1"]

is `--port 8080@container:web:gpu0,gpu1`. With `--port` or `MEMSCALER_WATCH` the `[[watch]]` tables of the file do not
count at all, and what they say of a port does not either.

| key | default | meaning |
|---|---|---|
| `port` | | The TCP port on which the server listens. |
| `gpus` | those that the listener uses | `gpu0` or `0` (the index of `nvidia-smi`), `GPU-8f3a...` (a beginning of the UUID), `0000:3b:00.0` (the PCI address). |
| `scope` | `host` | Where the server is, if it has a network of its own. |

| scope | is the network namespace of |
|---|---|
| `host` | memscaler itself |
| `container:NAME` | a container, by name or id |
| `unit:NAME` | a systemd unit: a .service, .scope or .slice; without one of these, .service is meant |
| `pid:NUMBER` | a process |
| `netns:PATH`, `netns:NAME` | a file such as `/run/docker/netns/1234`, or a name as in `ip netns` |

The first `@` parts port and scope, so a name may have one: `8080@unit:llama@a.service:gpu0`. The GPUs begin behind the
first colon behind which everything reads as a list of GPUs. The same port may be watched in several scopes, once in
each. `discover` needs no watch. Nor does a [server](#servers) that memscaler itself starts.

## Work, and what is none

- `quiet = "no-traffic"`: a connection counts while a request is under way. Clients that keep their connections open
  between requests do not keep the GPU awake. `quiet = "no-connections"`: every open connection counts.
- `ignore`: addresses and prefixes of IPv4 and IPv6, matched in the kernel. `10.1.2.3/8` means `10.0.0.0/8`, an address
  alone means itself, and IPv4 within IPv6 (`::ffff:10.0.0.1`) is IPv4. What covers every address of IPv4 or IPv6 is
  refused: then nobody would count. A request from an ignored client to a parked GPU is slow.
- `touch`: over sooner than `touch`, and with fewer than `touch_bytes` bytes from the client: that was a health check or
  a scrape. The GPU wakes for it as for everybody, because nobody knows that before it is over, and may park again after
  `touch_cooldown`.

## Servers

`[[server]]` tables describe what [`memscaler servers`](servers.md) starts and keeps running, here, in a file of
`conf.d`, or in `servers.d` beside the configuration (`/etc/memscaler/servers.d/`):

- `NAME.toml`: one server, its keys at the top of the file, called NAME unless it says otherwise. `[[server]]` tables may
  stand in it, too.
- `NAME.yaml`, `NAME.yml`: a file of [gppm](https://github.com/crashr/gppm), as it is.

Each server that is enabled and whose port is known is a watch by itself, with its `gpus`, unless a `[[watch]]` names
that port of this host: then that counts. `--port` and `MEMSCALER_WATCH` replace these watches, too. `memscaler reload`
follows servers that come and go, their ports and GPUs; the supervisor has a reload of its own. `config check` finds what
is wrong with any of them, `config show` shows them: of variables the names, and nothing that follows `--api-key`.

    # servers.d/chat.toml
    model = "/models/chat.gguf"
    options = {{ctx-size = 8192, flash-attn = true, ngl = 99}}      # --ctx-size 8192 --flash-attn -ngl 99
    port = 8080
    gpus = ["gpu0"]

{servers}

A server has either `command` or `model`; a model needs a port. A text as `command` is split as a shell does it, but no
shell reads it: no variables, no pipes. In a table of `options`, names that llama-server writes with one dash (`ngl`,
`c`) get one, others two; `true` is an option without a value, a list the same option several times, and what begins
with a dash is taken as it is. A port that is said in several places has to be the same. Names and the ports of servers
that are enabled are each one server's own.

With `gpus` a server sees these GPUs alone, in this order (`CUDA_VISIBLE_DEVICES`, by UUID). `gpus = "auto"`, which
needs a `model`, lets the planner choose at each start ([servers.md](servers.md)).

A `[[server.hook]]` is a program beside the server, from its first readiness to its end. It may have hooks, too
(`[[server.hook.hook]]`), eight deep. Its keys:

{hooks}

### Files of gppm

`name`, `enabled`, `env`, `command` and `post_launch_hooks` mean what they meant, also `cuda_visible_devices` and
`options` of its older files. What differs:

- Names become such as can be names of files: `Codestral (llama.cpp 01)` is `Codestral-llama.cpp-01`. Of two with one
  name in a file the second gets a number.
- `CUDA_VISIBLE_DEVICES: "0,1"` becomes `gpus = ["gpu0", "gpu1"]`, as does a list of UUIDs; these are the numbers of
  `nvidia-smi`. gppm left the number to CUDA, which counts the fastest card first unless told otherwise: on a machine
  with different cards look at it once. Anything else (`""`, `-1`, MIG) stays a variable, and the GPUs are found by what
  the server uses.
- `type: ollama` is refused: one Ollama serves all its models from one port. Watch that.
- Keys that gppm does not read are passed over, but for those that look misspelt.

`memscaler servers import FILE.yaml` writes the same as TOML.

## Deeper sleep

`[[stage]]` tables say what follows parking if nobody comes; without one nothing sleeps deeper than a parked GPU.

    [[stage]]
    after = "10m"
    do = "server-sleep"

    [[stage]]
    after = "30m"
    do = "stop-server"
    servers = ["chat"]

    [[stage]]
    after = "2h"
    do = "suspend"

{stages}

`after` is counted from the last work of the server, and grows from each stage to the next deeper one, also for those
that name their servers. `do = "park"` is another way to write `idle_after`. The same stage may stand there several times
for different servers; what names a server goes before what is for all. Tables of several files add up.
`memscaler reload` follows all of it. A server that is stopped listens no longer: `config check` warns where no
[gateway](#gateways) brings it back.

`[suspend]` is what the last stage, that of the whole machine, goes by. What several files say is put together.

{suspend}

## Gateways

`[[gateway]]` tables say where `memscaler gateway` listens, and what is behind it. Tables of several files add up.

    [[gateway]]
    listen = "0.0.0.0:9080"
    to = "192.0.2.7:8080"
    mac = "00:11:22:aa:bb:cc"

{gateways}

## Other programs on the GPUs

`[[gpuctl]]` tables say what is set on other programs of the GPUs while clients are at work, or while all is quiet:
[gpuctl.md](gpuctl.md). Without one no program is touched. Tables of several files add up; each needs a name of its own.

    [[gpuctl]]
    name = "batch-waits"
    processes = ["unit:batch.service", "user:trainer"]
    freeze = true

    [[gpuctl]]
    name = "training-steps-back"
    watches = [8080]
    processes = ["container:train"]
    compute_priority = 12
    cpu_nice = 10

{rules}

A *size* is `6G` (with or without `iB` binary, as systemd has it), `6GB` (decimal), a number of bytes, or `max`. `*`, `?` and
`[...]` in `processes` mean what they mean in a shell; a unit without a type is a `.service`. Processes are matched only
if they are on a GPU of one of the servers in question. Never touched are memscaler itself, pid 1, and whoever listens on
a watched port, but by `server`.

- Two rules may be about the same process: the stricter one holds, and when it lets go, the other.
- `while = "busy"` with `freeze` and `server` is refused, and so is `while = "quiet"` with both where a `[[stage]]`
  needs the same server awake enough to hear (`server-sleep`, `checkpoint`, `stop-server`, a `suspend` that does not
  `keep` servers).
- `config check` warns of a rule that sets nothing, of ports that nobody watches, of users whom this machine does not
  know, of a limit below 1 MiB (a forgotten unit), of an `at_most` shorter than `release_after`, and of a `proc_root` that
  is none. Where something is wrong with the files it warns of what can be told of a rule alone. What this machine can
  do at all, `memscaler doctor` tells (MS-GVM-01).
- `memscaler reload` follows all of it; what a rule that is gone had set is undone.

`[gvm]` says where GVM's driver is, if not where it usually is. What several files say is put together.

{gvm}

## An example

"""
EXAMPLE = """\
idle_after = "60s"
ignore = ["192.0.2.10"]                 # the monitoring

[[watch]]                               # a server on the host
port = 8080
gpus = ["gpu0", "gpu1"]

[[watch]]                               # one in a container, with clients that stay connected and may be silent
port = 8080
scope = "container:web"
gpus = ["GPU-8f3a"]
quiet = "no-connections"
ignore = []

[[watch]]                               # a unit; its probes are larger and slower
port = 9000
scope = "unit:llama@a.service"
gpus = ["gpu3"]
touch = "1s"
touch_bytes = 4096
touch_cooldown = "100ms"

[gpu.gpu0]
never_park = ["Mon-Fri 09:00-18:00"]    # somebody works with it

[gpu.gpu1]                              # slow to wake: parks later than the others
idle_after = "5m"
lever = "memory-clock"
"""


def flags():
    """Key -> flag, as `memscaler run` has them."""
    names = [name for each in typer.main.get_command(app).commands["run"].params for name in each.opts]
    by_key = {name.removeprefix("--").replace("-", "_"): name for name in names}
    return {option.key: by_key.get({"watch": "port"}.get(option.key, option.key)) for option in OPTIONS}


def code(text):
    return f"`{text}`" if text else ""


def row(option, flag):
    tables = [*["`[[watch]]`"] * option.per_watch, *["`[gpu.NAME]`"] * option.per_gpu]
    key = "`[[watch]]`" if option.key == "watch" else code(option.key)
    variables = ", ".join(map(code, option.env))
    return f"| {key} | {code(option.default)} | {code(flag)} | {variables} | {', '.join(tables)} | {option.help} |"


def of_keys(keys):
    rows = [f"| {code(key.key)} | {code(key.default)} | {key.help} |" for key in keys]
    return "\n".join(["| key | default | meaning |", "|---|---|---|", *rows])


def page():
    table = [row(option, flags()[option.key]) for option in OPTIONS]
    tail = TAIL.replace("{servers}", of_keys(KEYS)).replace("{hooks}", of_keys(HOOK_KEYS))
    tail = tail.replace("{stages}", of_keys(STAGE_KEYS)).replace("{suspend}", of_keys(SUSPEND_KEYS))
    tail = tail.replace("{gateways}", of_keys(GATEWAY_KEYS))
    tail = tail.replace("{rules}", of_keys(GPUCTL_KEYS)).replace("{gvm}", of_keys(GVM_KEYS))
    tail = tail.replace("{{", "{").replace("}}", "}")
    return HEAD + "\n".join(table) + "\n" + tail + textwrap.indent(EXAMPLE, "    ")


def test_the_page_is_current():
    """What the page says is what the schema has."""
    if os.environ.get("MEMSCALER_UPDATE_GOLDEN"):
        PAGE.write_text(page(), encoding="utf-8")
    assert PAGE.read_text(encoding="utf-8") == page(), "MEMSCALER_UPDATE_GOLDEN=1 pytest tests/config writes it anew"


def test_the_page_has_every_setting():
    """Keys, defaults and variables are where a reader looks for them."""
    text = PAGE.read_text(encoding="utf-8")
    for option in OPTIONS:
        assert f"`{option.key}`" in text or option.key == "watch"
        assert f"`{ENV_PREFIX}{option.key.upper()}`" in text
        assert f"| `{option.default}` |" in text or not option.default
    assert all(f"`{kind}:" in text for kind in SCOPE_KINDS)
    assert all(f'`quiet = "{each}"`' in text for each in Quiet)


def test_the_example_loads(tmp_path):
    """The example is a file that means what it says, and shows every key of a watch."""
    file = tmp_path / "config.toml"
    file.write_text(EXAMPLE)
    settings = load({}, {}, file)
    container, unit = settings.watches[1:]
    assert container == Watch(8080, ("GPU-8f3a",), Scope("container", "web"))
    assert settings.watch_settings(container).ignore == ()
    assert settings.watch_settings(container).quiet is Quiet.NO_CONNECTIONS
    assert settings.watch_settings(settings.watches[0]).ignore == ("192.0.2.10/32",)
    assert settings.watch_settings(unit).touch_bytes == 4096
    keys = {option.key for option in OPTIONS if option.per_watch} | {"port", "scope", "gpus"}
    assert keys <= set(re.findall(r"^(\w+) =", EXAMPLE, re.MULTILINE))


def test_the_defaults_of_servers_are_true():
    """What the page says is what a description without the key has."""
    plain = Server(name="a", command=("x",))
    for key in KEYS:
        if key.default:
            assert str(key.parse.write(getattr(plain, key.field))).lower() == (
                "60s" if key.default == "1m" else key.default
            )


def test_the_example_of_a_server_loads(tmp_path):
    """And means what stands beside it."""
    text = PAGE.read_text(encoding="utf-8").partition("# servers.d/chat.toml\n")[2].partition("\n\n")[0]
    (tmp_path / "servers.d").mkdir()
    (tmp_path / "servers.d" / "chat.toml").write_text(textwrap.dedent(text))
    (tmp_path / "config.toml").write_text("")
    (server,) = load({}, {}, tmp_path / "config.toml").servers
    assert " ".join(server.options) in text
    assert (server.name, server.port, server.gpus) == ("chat", 8080, ("gpu0",))


def test_the_words_of_the_page_are_read():
    """The two spellings of one watch are the same."""
    spec = parse_watch("8080@container:web:gpu0,gpu1")
    assert spec == Watch(8080, ("gpu0", "gpu1"), Scope("container", "web"))
    assert f"`--port {spec}`" in PAGE.read_text(encoding="utf-8")


def test_the_page_names_what_needs_a_restart():
    """Every setting that refuses a reload is named as such."""
    told = PAGE.read_text(encoding="utf-8").partition("refuse the reload:")[2].partition(".\n")[0]
    assert {word.strip(" `\n") for word in told.split(",")} == FIXED
