"""Deeper sleep and gateways in a file: what they mean, what is refused and where, what `config show` says of them."""

import json

import jsonschema
import pytest
from hypothesis import given
from hypothesis import strategies as st

from memscaler.config import stage_tables
from memscaler.config.hours import parse_windows
from memscaler.config.load import examine, load
from memscaler.config.render import effective, json_schema
from memscaler.config.sleep_doubts import doubts
from memscaler.config.stage_keys import write_rate
from memscaler.config.stages import Gateway, StageRule, Suspend, ladder
from memscaler.config.values import Address
from memscaler.core.errors import ConfigError
from memscaler.core.stages import LADDER, Stage

CHAT = '[[server]]\nname = "chat"\ncommand = "llama-server --port 8081"\n'
WHOLE = f"""
{CHAT}
[[stage]]
after = "30s"
do = "park"
[[stage]]
after = "10m"
do = "server-sleep"
level = 2
[[stage]]
after = "5m"
do = "server-sleep"
servers = ["chat", 8080, "8080@container:web", "gpu1"]
force = true
wake_on = "work"
[[stage]]
after = "30m"
do = "checkpoint"
program = "/opt/cuda-checkpoint"
enter_timeout = "1m"
leave_timeout = "2m"
[[stage]]
after = "1h"
do = "stop-server"
[[stage]]
after = "2h"
do = "suspend"
[suspend]
servers = "checkpoint"
users = "any"
ssh = false
inhibitors = false
cpu_load = "off"
network = "1.5 MB/s"
busy = ["systemctl -q is-active backup", ["sh", "-c", "a b"]]
never = ["Mon-Fri 09:00-18:00"]
wake_at = "Sat 04:00-05:00"
timeout = "30s"
min_awake = 0
[[gateway]]
name = "web"
listen = "0.0.0.0:9080"
to = "127.0.0.1:8081"
server = "chat"
no_wake_paths = ["/health"]
no_wake_from = "10.0.0.0/8"
ready = "off"
wait = 5
hold = false
retry_after = "20s"
wake_timeout = "1m"
wake_pause = "1s"
most_waiting = 5
connect_timeout = "500ms"
[[gateway]]
listen = "[::]:9081"
to = "192.0.2.7:8080"
mac = "00-11-22-AA-BB-CC"
secure_on = "010203040506"
wake_to = "192.0.2.255"
protocol = "tcp"
"""


def rule(stage, after_s, *servers, **more):
    return StageRule(stage=Stage(stage), after_s=after_s, servers=servers, **more)


def test_everything_is_read(config):
    """Each key of each table means what it says; park is when GPUs are parked; the order is the ladder's."""
    settings = config(WHOLE)
    assert settings.idle_after_s == 30
    assert settings.stages == (
        rule("server-sleep", 300, "chat", "8080", "8080@container:web", "gpu1", force=True, wake_on="work"),
        rule("server-sleep", 600, level=2),
        rule("checkpoint", 1800, program="/opt/cuda-checkpoint", enter_timeout_s=60, leave_timeout_s=120),
        rule("stop-server", 3600),
        rule("suspend", 7200),
    )
    assert settings.suspend == Suspend(
        servers="checkpoint",
        users="any",
        ssh=False,
        inhibitors=False,
        cpu_load=0,
        network_bytes_per_s=1.5e6,
        busy=(("systemctl", "-q", "is-active", "backup"), ("sh", "-c", "a b")),
        never=parse_windows("Mon-Fri 09:00-18:00"),
        wake_at=parse_windows("Sat 04:00-05:00"),
        timeout_s=30,
        min_awake_s=0,
    )
    assert settings.gateways == (
        Gateway(
            listen=Address("0.0.0.0", 9080),
            to=Address("127.0.0.1", 8081),
            name="web",
            server="chat",
            ready="",
            wait_s=5,
            hold=False,
            retry_after_s=20,
            wake_timeout_s=60,
            wake_pause_s=1,
            no_wake_paths=("/health",),
            no_wake_from=("10.0.0.0/8",),
            most_waiting=5,
            connect_timeout_s=0.5,
        ),
        Gateway(
            listen=Address("::", 9081),
            to=Address("192.0.2.7", 8080),
            mac="00:11:22:aa:bb:cc",
            secure_on="01:02:03:04:05:06",
            wake_to=Address("192.0.2.255", 9),
            protocol="tcp",
            ready="",
        ),
    )


def test_without_tables_there_is_nothing(config):
    """Deeper sleep is nobody's by default."""
    settings = config("[[watch]]\nport = 8080\n")
    assert (settings.stages, settings.gateways) == ((), ())
    assert settings.suspend == Suspend()
    assert not [key for key, _, _ in effective(settings) if key.startswith(("stage", "suspend", "gateway"))]


def test_each_knows_its_place(config, tmp_path):
    """Origins are lines; what [suspend] says has the line of each key; idle_after that of its stage."""
    settings = config(WHOLE)
    lines = WHOLE.splitlines()
    at = [number for number, line in enumerate(lines, 1) if line == "[[stage]]"]
    file = tmp_path / "config.toml"
    assert settings.origins["idle_after"] == f"{file}:{at[0]}"
    assert settings.stages[1].origin == f"{file}:{at[1]}"
    assert settings.origins["suspend.ssh"] == f"{file}:{lines.index('ssh = false') + 1}"
    assert settings.gateways[0].origin == f"{file}:{lines.index('[[gateway]]') + 1}"


def test_what_is_shown_reads_back(config):
    """`config show` tells what is not the default, in words that the file understands, without the password."""
    settings = config(WHOLE)
    told = {key: value for key, value, _ in effective(settings)}
    assert told["stage.server-sleep(chat,8080,8080@container:web,gpu1).after"] == "5m"
    assert told["stage.checkpoint.program"] == "/opt/cuda-checkpoint"
    assert told["suspend.network"] == "1500 kB/s"
    assert told["gateway.[::]:9081.secure_on"] == "..."
    again = {key.removeprefix("suspend."): value for key, value in told.items() if key.startswith("suspend.")}
    found = stage_tables.Found()
    stage_tables.read_suspend(again, lambda *_: "here", found)
    assert not found.problems
    assert Suspend(**found.suspend) == settings.suspend


def test_files_add_up(tmp_path):
    """[[stage]] and [[gateway]] tables of conf.d come to those of the file; [suspend] is put together."""
    (tmp_path / "conf.d").mkdir()
    gateway = '[[gateway]]\nlisten = "0.0.0.0:{}"\nto = "127.0.0.1:1"\n'
    (tmp_path / "config.toml").write_text(
        '[suspend]\nssh = false\nusers = "any"\n[[stage]]\nafter = "2h"\ndo = "suspend"\n' + gateway.format(1000)
    )
    (tmp_path / "conf.d" / "a.toml").write_text(
        '[suspend]\nusers = "ignore"\n[[stage]]\nafter = "1h"\ndo = "stop-server"\n' + gateway.format(1001)
    )
    settings = load({}, {}, tmp_path / "config.toml")
    assert [each.stage for each in settings.stages] == [Stage.STOP_SERVER, Stage.SUSPEND]
    assert settings.suspend == Suspend(ssh=False, users="ignore")
    assert settings.origins["suspend.users"].startswith(str(tmp_path / "conf.d"))
    assert [each.listen.port for each in settings.gateways] == [1000, 1001]


SLEEP = '[[stage]]\nafter = "10m"\ndo = "server-sleep"\n'
GATE = '[[gateway]]\nlisten = "0.0.0.0:1"\nto = "127.0.0.1:2"\n'


@pytest.mark.parametrize(
    ("text", "line", "words"),
    [
        ("stage = 1", 1, "write each stage as a [[stage]] table"),
        ("stage = [1]", 1, "stage: 1 is not a table"),
        ('[[stage]]\ndo = "suspend"', 1, "a stage needs after"),
        ('[[stage]]\nafter = "1h"', 1, "a stage needs do"),
        ('[[stage]]\nafter = "1h"\ndo = "hibernate"', 3, "'hibernate' is none of park, server-sleep"),
        ('[[stage]]\nafter = 0\ndo = "suspend"', 2, "out of range"),
        (SLEEP + "servres = []", 4, "did you mean 'servers'?"),
        (SLEEP + "idle_after = 5", 4, "did you mean 'after'?"),
        (SLEEP + "servers = []", 4, "servers is empty"),
        (SLEEP + 'servers = ["no name"]', 4, "'no name' is no server"),
        (SLEEP + "servers = [true]", 4, "True is no server"),
        (SLEEP + 'servers = ["99999"]', 4, "out of range"),
        (SLEEP + 'servers = ["8080@host:gpu0"]', 4, "names a port and GPUs"),
        (CHAT + SLEEP + 'servers = ["chta"]', 4, "no [[server]] is called chta (did you mean chat?)"),
        (SLEEP + "level = 3", 4, "out of range (1-2)"),
        (SLEEP + 'program = "/a"', 4, "program is for checkpoint, not for server-sleep"),
        ('[[stage]]\nafter = "2h"\ndo = "suspend"\nservers = [8080]', 4, "it is the whole machine"),
        ('[[stage]]\nafter = "2h"\ndo = "suspend"\nenter_timeout = "1m"', 4, "write timeout in [suspend]"),
        ('[[stage]]\nafter = "9s"\ndo = "park"\nservers = [8080]', 4, "idle_after in its [gpu.NAME]"),
        ('idle_after = "60s"\n[[stage]]\nafter = "9s"\ndo = "park"', 2, "idle_after is 60s"),
        ('[[stage]]\nafter = "9s"\ndo = "park"\n[[stage]]\nafter = "9s"\ndo = "park"', 4, "park is there twice"),
        (SLEEP + SLEEP, 4, "server-sleep is there twice (the first is in"),
        (SLEEP + "servers = [1, 2]\n" + SLEEP + "servers = [2, 3]", 5, "twice for 2"),
        ('[[stage]]\nafter = "60s"\ndo = "server-sleep"', 1, "has to come after parking: idle_after is 60s (default)"),
        (SLEEP + '[[stage]]\nafter = "10m"\ndo = "suspend"', 4, "suspend after 10m has to come after server-sleep"),
        (
            '[[stage]]\nafter = "1h"\ndo = "server-sleep"\nservers = [1]\n[[stage]]\nafter = "30m"\ndo = "checkpoint"',
            5,
            "checkpoint after 30m has to come after server-sleep, which comes after 1h",
        ),
        ("suspend = 1", 1, "write it as a table, [suspend]"),
        ('[suspend]\nusers = "some"', 2, "'some' is none of any, active, ignore"),
        ("[suspend]\ncpu_load = true", 2, "cpu_load: True is no number of CPUs"),
        ('[suspend]\nnetwork = "much"', 2, "network: 'much' is no rate"),
        ('[suspend]\nbusy = "a"', 2, "busy: a list of commands"),
        ("[suspend]\nbusy = [[]]", 2, "command is empty"),
        ('[suspend]\nnever = ["Someday"]', 2, "'Someday' is no day"),
        ("gateway = 1", 1, "write each gateway as a [[gateway]] table"),
        ("gateway = [1]", 1, "gateway: 1 is not a table"),
        ('[[gateway]]\nto = "127.0.0.1:1"', 1, "a gateway needs listen"),
        ('[[gateway]]\nlisten = "0.0.0.0:1"', 1, "a gateway needs to"),
        ('[[gateway]]\nlisten = "off"\nto = "a:1"', 2, "'off' is no address"),
        ('[[gateway]]\nlisten = "a:1"\nto = "a:0"', 3, "'a:0' is no address"),
        ('[[gateway]]\nlisten = "a:1"\nto = "a:1"', 3, "is where the gateway itself listens"),
        ('[[gateway]]\nlisten = "0.0.0.0:8081"\nto = "127.0.0.1:8081"', 3, "is where the gateway itself listens"),
        ('[[gateway]]\nlisten = "[::]:8081"\nto = "localhost:8081"', 3, "is where the gateway itself listens"),
        (GATE + 'mac = "00:11"', 4, "'00:11' is no hardware address"),
        (GATE + 'secure_on = "hush"', 4, "secure_on: it is a password of six bytes"),
        (GATE + 'wake_to = "192.0.2.255"', 4, "wake_to belongs to a machine that is woken"),
        (GATE + 'wake_to = "a:b"\nmac = "001122334455"', 4, "'a:b' is no address"),
        (GATE + 'mac = "001122334455"\nserver = 8080', 5, "leave one of them out"),
        (GATE + 'protocol = "tcp"\nno_wake_paths = ["/a"]', 5, "no_wake_paths needs protocol"),
        (GATE + 'ready = "health"', 4, "'health' is no path"),
        (GATE + "no_wake_paths = [1]", 4, "1 is no path"),
        (GATE + 'server = "caht"', 1, "no [[server]] is called caht"),
        (GATE + GATE, 4, "is taken by the gateway in"),
        (GATE + '[[gateway]]\nlisten = "127.0.0.1:1"\nto = "a:2"', 4, "is taken by the gateway in"),
        (
            GATE + 'name = "a"\n[[gateway]]\nlisten = "0.0.0.0:3"\nto = "a:4"\nname = "a"',
            5,
            "two gateways are called a",
        ),
        ("[stages]\na = 1", 1, "did you mean [[stage]]?"),
    ],
)
def test_what_is_wrong_is_told_with_its_line(tmp_path, text, line, words):
    """One sentence with the place; nothing else is complained about."""
    file = tmp_path / "config.toml"
    file.write_text(text + "\n")
    (problem,) = examine({}, {}, file).problems
    assert problem.startswith(f"{file}:{line}: ")
    assert words in problem
    assert "hush" not in problem


WRONG = """[[stage]]
after = "1h"
do = "stop-server"
servers = ["chta"]
idle_afterr = "3s"

[[gateway]]
listen = "0.0.0.0:9080"
to = "127.0.0.1:8080"
server = "nobody"

[[stage]]
after = "10s"
do = "server-sleep"
program = "/x"

[[stage]]
after = "3h"
do = "checkpoint"

[[stage]]
after = "30m"
do = "stop-server"

[[stage]]
after = "4h"
do = "stop-server"
levle = 1

[suspend]
users = "no"

[[watch]]
port = "no"
"""


def test_everything_that_is_wrong_is_told_at_once_in_the_order_of_the_file(tmp_path):
    """So one goes through the file once; a table with one mistake is compared with the others all the same."""
    file = tmp_path / "config.toml"
    file.write_text(WRONG)
    problems = examine({}, {}, file).problems
    told = [(int(each.removeprefix(f"{file}:").partition(":")[0]), each.partition(": ")[2]) for each in problems]
    assert [line for line, _ in told] == sorted(line for line, _ in told)
    for line, words in (
        (1, "no [[server]] is called chta"),
        (5, "unknown key 'idle_afterr'"),
        (7, "no [[server]] is called nobody"),
        (12, "server-sleep after 10s has to come after parking"),
        (15, "program is for checkpoint"),
        (21, "stop-server after 30m has to come after checkpoint"),
        (25, "stop-server is there twice"),
        (28, "unknown key 'levle'"),
        (31, "'no' is none of any"),
        (34, "port"),
    ):
        assert any(at == line and words in sentence for at, sentence in told), (line, words, problems)


def test_a_flag_says_when_gpus_are_parked(config):
    """It goes before the stage that parks, and stages have to come after it."""
    text = '[[stage]]\nafter = "30s"\ndo = "park"\n' + SLEEP
    assert config(text, {"idle_after": "5m"}).idle_after_s == 300
    with pytest.raises(ConfigError, match=r"idle_after is 20m \(--idle-after\)"):
        config(text, {"idle_after": "20m"})
    assert config(text, {"idle_after": "auto"}).stages[0].after_s == 600  # nobody knows when that is


def test_who_is_named_has_the_rule_that_names_it():
    """Of each stage one rule: that which names the server in any way, else that for all."""
    rules = (
        rule("server-sleep", 300, "chat"),
        rule("server-sleep", 600),
        rule("checkpoint", 900, "gpu1"),
        rule("suspend", 7200),
    )
    assert [each.after_s for each in ladder(rules, {"chat", "8080"})] == [300, 7200]
    assert [each.after_s for each in ladder(rules, {"9000", "gpu1"})] == [600, 900, 7200]
    assert ladder((), {"chat"}) == ()


_RULES = st.lists(
    st.builds(
        StageRule,
        stage=st.sampled_from(LADDER),
        after_s=st.sampled_from([1.0, 2.0, 3.0, 4.0]),
        servers=st.sampled_from([(), ("a",), ("b",), ("a", "b")]),
        origin=st.just("f:1"),
    ),
    max_size=5,
)


@given(rules=_RULES, names=st.sampled_from([{"a"}, {"b"}, {"c"}]))
def test_rules_without_conflicts_grow_down_every_ladder(rules, names):
    """For whoever it is: each stage once, in the ladder's order, each after more time; and park before all."""
    if stage_tables.conflicts(rules):
        return
    mine = ladder(stage_tables.settled(rules), names)
    assert [each.stage for each in mine] == sorted({each.stage for each in mine}, key=LADDER.index)
    park = stage_tables.parks_after(rules)
    times = [*([park.after_s] if park else []), *(each.after_s for each in mine)]
    assert times == sorted(set(times))


@given(st.integers(0, 10**12))
def test_rates_read_back(bytes_per_s):
    """What `config show` writes is the same rate."""
    found = stage_tables.Found()
    stage_tables.read_suspend({"network": write_rate(float(bytes_per_s))}, lambda *_: "here", found)
    assert found.suspend["network_bytes_per_s"] == bytes_per_s


def test_the_schema_allows_it():
    """What an editor checks by."""
    validator = jsonschema.Draft202012Validator(json.loads(json.dumps(json_schema())))
    good = {
        "stage": [{"after": "10m", "do": "server-sleep", "servers": ["chat", 8080], "level": 1}],
        "suspend": {"network": "1 MB/s", "cpu_load": "off", "busy": ["a", ["b", "c"]]},
        "gateway": [{"listen": "[::]:1", "to": "a:2", "mac": "00:11:22:aa:bb:cc"}],
    }
    assert not list(validator.iter_errors(good))
    for bad in (
        {"stage": [{"after": "10m"}]},
        {"stage": [{"after": "10m", "do": "nap"}]},
        {"suspend": {"user": "any"}},
        {"gateway": [{"listen": "[::]:1"}]},
        {"gateway": [{"listen": "[::]:1", "to": "a:2", "mac": "00:11"}]},
    ):
        assert list(validator.iter_errors(bad)), bad


STOP = '[[stage]]\nafter = "1h"\ndo = "stop-server"\n'


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (CHAT + STOP, ["once chat is stopped no [[gateway]] brings it back"]),
        (CHAT + STOP + "servers = [9000]\n[[watch]]\nport = 9000\n", ["port 9000 is stopped"]),
        (
            CHAT + STOP + '[[gateway]]\nlisten = "a:1"\nto = "127.0.0.1:8081"\n',
            ['stops chat, and this gateway wakes nobody: write server = "chat"'],
        ),
        (
            CHAT + STOP + '[[gateway]]\nlisten = "0.0.0.0:8081"\nto = "127.0.0.1:8082"\nserver = "8081"\n',
            ["port 8081 is that of server chat"],
        ),
        (CHAT + STOP + '[[gateway]]\nlisten = "10.0.0.1:8081"\nto = "127.0.0.1:8081"\nserver = "chat"\n', []),
        (CHAT + STOP + '[[gateway]]\nlisten = "a:1"\nto = "web:80"\nserver = "chat"\n', []),
        (
            CHAT + STOP + '[[gateway]]\nlisten = "a:1"\nto = "127.0.0.1:82"\nserver = "chat"\n',
            ["chat listens on port 8081, and to is 127.0.0.1:82"],
        ),
        (CHAT + SLEEP + "servers = [8082]\n", ["nobody watches port 8082, so its stage server-sleep is for nobody"]),
        ("discover = true\n" + CHAT + SLEEP + "servers = [8082]\n", []),
        (CHAT + STOP + '[[gateway]]\nlisten = "a:1"\nto = "web:8081"\nmac = "001122334455"\n', ["chat is stopped"]),
        (STOP + '[[watch]]\nport = 80\nscope = "container:web"\n', ["port 80@container:web is stopped"]),
        (CHAT + SLEEP, []),
        ("[suspend]\nssh = false\n", ['[suspend] without a [[stage]] that has do = "suspend"']),
        (SLEEP + "[suspend]\n", ["[suspend] without"]),
        ("dry_run = true\n" + SLEEP, ["in a dry run no stage is entered"]),
    ],
)
def test_doubts(config, text, words):
    """What is good and yet hardly wanted is told with its place."""
    told = doubts(config(text))
    assert len(told) == len(words), told
    assert all(word in sentence for word, sentence in zip(words, told, strict=True))
