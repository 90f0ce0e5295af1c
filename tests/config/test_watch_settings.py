"""What counts as work on a port: the general values, what a [[watch]] table says for itself, and what is refused."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from memscaler.config.load import load
from memscaler.config.ports import Watch
from memscaler.core.errors import ConfigError, UsageError
from memscaler.core.watch import Quiet, Scope, WatchSettings

FILE = """\
ignore = ["10.0.0.0/8"]
touch = "1s"

[[watch]]
port = 8080
scope = "container:web"
gpus = ["gpu0"]
quiet = "no-connections"
ignore = []

[[watch]]
port = 8080
touch = "off"
touch_bytes = 10
touch_cooldown = "2s"

[[watch]]
port = 8081
"""
WEB = Scope("container", "web")


def test_the_defaults():
    """The defaults of the schema are those of the core, for a port that is named and for one that is found."""
    settings = load({}, {})
    assert settings.watch_settings(None) == WatchSettings()
    assert settings.watch_settings(Watch(8080)) == WatchSettings()
    assert (settings.discover, settings.probe) == (False, True)


def test_every_watch_goes_by_its_own(config, tmp_path):
    """A table overrides the general values for itself, also with nothing; the same port elsewhere is another watch."""
    settings = config(FILE)
    assert settings.watches == (Watch(8080, ("gpu0",), WEB), Watch(8080), Watch(8081))
    general = WatchSettings(ignore=("10.0.0.0/8",), touch_s=1)
    assert settings.watch_settings(Watch(8080, (), WEB)) == WatchSettings(Quiet.NO_CONNECTIONS, (), 1)
    assert settings.watch_settings(Watch(8080)) == WatchSettings(Quiet.NO_TRAFFIC, ("10.0.0.0/8",), 0, 10, 2)
    assert settings.watch_settings(Watch(8081)) == settings.watch_settings(None) == general
    assert settings.origins["watch.8080@container:web.quiet"] == f"{tmp_path}/config.toml:8"
    assert settings.origins["watch.8080.touch_bytes"] == f"{tmp_path}/config.toml:14"
    assert settings.origins["ignore"] == f"{tmp_path}/config.toml:1"


def test_flags_and_variables_are_general_values(config):
    """They go before the file's general values, and behind what a table says for itself."""
    flags = {"quiet": "no-connections", "ignore": ["fd00::/8", "192.0.2.1, 192.0.2.2"]}
    settings = config(
        FILE, flags, {"MEMSCALER_TOUCH": "30ms", "MEMSCALER_TOUCH_COOLDOWN": "1s", "MEMSCALER_IGNORE": "::1"}
    )
    ignore = ("fd00::/8", "192.0.2.1/32", "192.0.2.2/32")
    assert settings.watch_settings(Watch(8081)) == WatchSettings(Quiet.NO_CONNECTIONS, ignore, 0.03, 1024, 1)
    assert settings.watch_settings(Watch(8080)).touch_s == 0
    assert settings.watch_settings(Watch(8080, (), WEB)).ignore == ()
    assert settings.origins["ignore"] == "--ignore"


@pytest.mark.parametrize(
    ("flags", "environ"), [({"watch": ["8080"]}, {}), ({}, {"MEMSCALER_WATCH": "8080 8081@pid:1:0"})]
)
def test_other_watches_do_without_the_tables(config, flags, environ):
    """Who names watches elsewhere means other watches than the file's, even on the same port."""
    settings = config(FILE, flags, environ)
    assert settings.watch_settings(Watch(8080)) == settings.watch_settings(None)
    assert settings.ports == {}
    assert not [key for key in settings.origins if key.startswith("watch.")]


def test_switches_of_run(config):
    """Discovery and the probe come from the flag, the variable or the file."""
    assert load({"discover": True}, {}).discover
    assert load({}, {"MEMSCALER_DISCOVER": "1", "MEMSCALER_PROBE_SERVERS": "off"}).discover
    assert not load({}, {"MEMSCALER_PROBE_SERVERS": "off"}).probe
    settings = config("discover = true\nprobe_servers = false")
    assert (settings.discover, settings.probe, settings.watches) == (True, False, ())


@pytest.mark.parametrize("word", ["off", "0", "0s", 0, False, "Off"])
def test_touches_can_be_switched_off(word):
    """Each way to say off."""
    assert load({"touch": word}, {}).touch_s == 0


@pytest.mark.parametrize(
    ("raw", "found"),
    [
        ("127.0.0.1", ("127.0.0.1/32",)),
        ("::1", ("::1/128",)),
        ("10.1.2.3/8", ("10.0.0.0/8",)),
        ("fd00::1/8 FD12::/16", ("fd00::/8", "fd12::/16")),
        (["10.0.0.0/255.0.0.0", "10.9.9.9/8"], ("10.0.0.0/8",)),
        ("::ffff:192.0.2.7", ("192.0.2.7/32",)),
        ("::ffff:10.0.0.0/104,10.0.0.0/8", ("10.0.0.0/8",)),
        ("0.0.0.0/1 8000::/1", ("0.0.0.0/1", "8000::/1")),
        ([""], ()),
    ],
)
def test_prefixes_have_one_spelling(raw, found):
    """An address is a prefix, host bits fall away, IPv4 in IPv6 is IPv4, and nothing is there twice."""
    assert load({"ignore": raw}, {}).ignore == found


@given(st.lists(st.one_of(st.ip_addresses(v=4), st.ip_addresses(v=6)), max_size=4), st.integers(9, 32))
def test_prefixes_read_back(addresses, length):
    """What is normalised stays as it is."""
    once = load(
        {"ignore": [f"{address}/{length}" for address in addresses if int(address) >> 119 or address.version == 4]}, {}
    )
    assert load({"ignore": list(once.ignore)}, {}).ignore == once.ignore


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        ("localhost", "'localhost' is no address or prefix (write 127.0.0.1, 10.0.0.0/8 or fd00::/8)"),
        ("10.0.0.0/33", "'10.0.0.0/33' is no address or prefix"),
        ("0.0.0.0/0", "0.0.0.0/0: that is every address of IPv4, no such client would ever count"),
        ("10.0.0.0/0", "0.0.0.0/0: that is every address of IPv4"),
        ("::/0", "::/0: that is every address of IPv6"),
        ("::ffff:0:0/96", "that is every address of IPv4"),
        ("::/64", "'::/64' has every address of IPv4 in it (::ffff:0:0/96): no such client would ever count"),
        (["0.0.0.0/1", "128.0.0.0/1"], "0.0.0.0/1, 128.0.0.0/1: that is every address of IPv4"),
        ("fe80::1%eth0", "'fe80::1%eth0' names an interface (write the address alone, fe80::1)"),
    ],
)
def test_wrong_prefixes(raw, message):
    """A prefix that is none, or that ignores everybody, is refused with a sentence."""
    with pytest.raises(UsageError) as refusal:
        load({"ignore": raw}, {})
    assert str(refusal.value).startswith("--ignore: ")
    assert message in str(refusal.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("quiet = 'silent'", "config.toml:1: 'silent' is none of no-connections, no-traffic"),
        ("ignore = [3]", "'3' is no address or prefix"),
        ("ignore = true", "'True' is no address or prefix"),
        ("touch = 'soon'", "'soon' is not a time"),
        ("touch = true", "True is not a time"),
        ("touch_bytes = 0", "0 is out of range (1-1073741824)"),
        ("touch_bytes = 1.5", "1.5 is not a whole number"),
        ("touch_bytes = true", "True is not a whole number"),
        ("touch_bytes = '1k'", "'1k' is not a whole number"),
        ("touch_bytes = -1", "-1 is not a whole number"),
        ("touch_cooldown = '9ms'", "'9ms' is out of range: at least 0.01 s"),
        ("discover = 'all'", "'all' is neither true nor false"),
        ("probe_server = false", "config.toml:1: unknown key 'probe_server' (did you mean 'probe_servers'?)"),
        ("[[watch]]\nport = 1\nquite = 'no-traffic'", "config.toml:3: unknown key 'quite' (did you mean 'quiet'?)"),
        ("[[watch]]\nport = 1\nscpoe = 'host'", "config.toml:3: unknown key 'scpoe' (did you mean 'scope'?)"),
        ("[[watch]]\nport = 1\nidle_after = 3", "config.toml:3: unknown key 'idle_after' in this table"),
        ("[[watch]]\nport = 1\ndiscover = true", "config.toml:3: unknown key 'discover'"),
        ("[[watch]]\nport = 1\nquiet = 'x'", "config.toml:3: 'x' is none of"),
        ("[[watch]]\nport = 1\nignore = ['0.0.0.0/0']", "config.toml:3: 0.0.0.0/0: that is every address"),
        ("[[watch]]\nport = 1\nscope = 3", 'config.toml:3: port 1: scope is a text, as in scope = "container:web"'),
        (
            "[[watch]]\nport = 1\nscope = 'docker:web'",
            "config.toml:3: port 1: 'docker' is no kind of scope (did you mean 'container'",
        ),
        (
            "[[watch]]\nport = 1\nscope = 'pid:1:gpu0'",
            "config.toml:3: port 1: 'pid:1:gpu0' names GPUs (write them as gpus = [\"gpu0\"])",
        ),
        (
            "[[watch]]\nport = 1\nscope = 'netns:/a:3b'\ngpus = ['00:00.0']",
            "config.toml:3: port 1: 1@netns:/a:3b:00:00.0 reads as",
        ),
        ("[[watch]]\nport = 1\nscope = 'pid:1'\ngpus = ['x']", "config.toml:4: port 1@pid:1: 'x' names no GPU"),
        (
            "[[watch]]\nport = 1\nscope = 'pid:1'\n[[watch]]\nport = 1\nscope = 'pid:01'",
            "config.toml:5: port 1@pid:1 is given twice",
        ),
        ("[[watch]]\nport = 1\n[[watch]]\nport = 1\nscope = 'host'", "config.toml:4: port 1 is given twice"),
        ("[gpu.gpu0]\nquiet = 'no-traffic'", "config.toml:2: unknown key 'quiet'"),
    ],
)
def test_mistakes_in_a_file(config, text, message):
    """Each mistake is named with its own line."""
    with pytest.raises(ConfigError) as refusal:
        config(text)
    assert message in str(refusal.value)


def test_all_mistakes_of_a_watch_are_told_at_once(config):
    """A table with four mistakes, and one in the next table."""
    with pytest.raises(ConfigError) as refusal:
        config("[[watch]]\nport = 0\nscope = 'x'\ngpus = ['y']\ntouch = 'z'\n[[watch]]\nport = 1\nquite = 1\n")
    assert [line.split(":")[1] for line in str(refusal.value).splitlines()] == ["2", "3", "4", "5", "8"]


def test_a_wrong_flag_and_a_wrong_variable():
    """Both name themselves; the flag alone is a wrong usage."""
    with pytest.raises(UsageError, match=r"^--quiet: 'x' is none of no-connections, no-traffic"):
        load({"quiet": "x"}, {})
    with pytest.raises(UsageError, match=r"^--port: port 1@pid:1 is given twice"):
        load({"watch": ["1@pid:1:gpu0", "1@pid:1"]}, {})
    with pytest.raises(ConfigError, match="MEMSCALER_TOUCH_BYTES: 'x' is not a whole number"):
        load({}, {"MEMSCALER_TOUCH_BYTES": "x"})
