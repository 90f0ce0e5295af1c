"""Configuration files and port specifications of every kind: accepted and meant so, or refused with a sentence."""

from __future__ import annotations

import os
from dataclasses import fields, replace
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from memscaler.config.load import load
from memscaler.config.ports import Watch, parse_watch
from memscaler.config.schema import OPTIONS, GpuSettings, Settings
from memscaler.core.errors import ConfigError, PermissionMissing, UsageError
from memscaler.core.watch import WatchSettings
from tests.fuzz.cases import case, fuzzed, mutated

RIGHT = {
    "idle_after": ['"60s"', "1.5", "30", '"500ms"', '"1h"', '"auto"'],
    "never_park": ['["Mon-Fri 09:00-18:00", "Sat,Sun"]', '"22:00-06:00; Sun"', "[]"],
    "quiet_hours": ['["22:00-06:00"]'],
    "lever": ['"memory-clock"', '"auto"', '"pstate"'],
    "quiet": ['"no-traffic"', '"no-connections"'],
    "ignore": ['["127.0.0.1", "10.0.0.0/8"]', '"fd00::/8, ::ffff:10.1.2.3"', '["192.0.2.7/24"]'],
    "touch": ['"off"', "false", '"250ms"', "0"],
    "touch_bytes": ["1024", '"1"'],
    "metrics": ['"127.0.0.1:9823"', '"[::1]:0"', '"off"', "false", '"[]]:80"', '"a b:1"'],
    "loader_python": ['"auto"', '"/usr/bin/python3"'],
    "runtime_dir": ['"/run/memscaler"', '"/run//a/./b"', '"/run/ä\\u0007"'],
    "simulate": ['["a40", "p40"]', '"a40,p40"'],
    "log_format": ['"json"'],
    "log_level": ['"debug"'],
    "labels": ['{site = "berlin"}', "{}"],
    "discover": ["true", '"off"'],
    "port": ["8080", "1", "65535"],
    "gpus": ['["gpu0"]', '["gpu0", "0000:3b:00.0"]', "[0, 1]", "[]"],
    "scope": [
        '"host"',
        '"container:web"',
        '"unit:llama@a.service"',
        '"netns:/run/netns/a"',
        '"pid:0012"',
        '"netns:a:b"',
    ],
}
VALUES = sorted({value for values in RIGHT.values() for value in values})
VALUES += [
    '""',
    "-1",
    "0.0",
    "1e400",
    "-inf",
    "nan",
    "1979-05-27T07:32:00Z",
    "07:32:00",
    "{}",
    "{ a = 1 }",
    "[[]]",
    "[{}]",
]
VALUES += [
    '"\\u0000"',
    '"/a\\u0000b"',
    '"\\U0010FFFF"',
    '"' + "9" * 400 + 's"',
    "9" * 5000,
    '"' + "a" * 3000 + '"',
    "1_0",
    "0x10",
]
VALUES += [
    '"٣s"',
    '"²"',
    '"8080"',
    "[" * 30 + "]" * 30,
    '["a", 1, true]',
    "'''x'''",
    '"Mon-Fri \N{ARABIC-INDIC DIGIT ZERO}9:00-18:00"',
    '"0.1ns"',
]
KEYS = sorted(
    {*(each.key for each in OPTIONS), "port", "gpus", "scope", "gpu", "probe", "idle_afte", '"a b"', "watch.x", "ä"}
)
TABLES = [
    "[[watch]]",
    "[[watch]]",
    "[gpu.gpu0]",
    '[gpu."0000:3b:00.0"]',
    '[gpu."ä"]',
    "[gpu]",
    "[watch]",
    "[x]",
    "[[gpu]]",
]
WORDS = [
    b"\n",
    b"[",
    b"]",
    b"[[watch]]\n",
    b'"',
    b"'",
    b'"""',
    b"=",
    b"#",
    b"\x00",
    b"\xff",
    b"\xef\xbb\xbf",
    b"\r",
    b".",
    b"\\u0000",
]

lines = st.sampled_from(KEYS).flatmap(
    lambda key: st.sampled_from(RIGHT.get(key, VALUES) * 3 + VALUES).map(lambda value: f"{key} = {value}")
)
tables = st.builds(lambda header, own: "\n".join([header, *own]), st.sampled_from(TABLES), st.lists(lines, max_size=3))
right_line = st.sampled_from(sorted(RIGHT)[:-3]).flatmap(
    lambda key: st.sampled_from(RIGHT[key]).map(lambda value: f"{key} = {value}")
)
right_watches = st.lists(
    st.tuples(
        st.integers(1, 9),
        st.sampled_from(RIGHT["gpus"]),
        st.sampled_from(RIGHT["scope"]),
        st.sampled_from(RIGHT["quiet"]),
    ).map(lambda parts: "[[watch]]\nport = {}\ngpus = {}\nscope = {}\nquiet = {}".format(*parts)),
    max_size=2,
)
documents = (
    st.builds(
        lambda top, below: "\n".join(top + below).encode(), st.lists(lines, max_size=4), st.lists(tables, max_size=3)
    )
    | st.builds(
        lambda top, below: "\n".join(top + below).encode(),
        st.lists(right_line, max_size=3, unique_by=lambda line: line.split()[0]),
        right_watches,
    )
    | mutated([b'idle_after = "60s"\n[[watch]]\nport = 8080\ngpus = ["gpu0"]\n[gpu.gpu0]\nlever = "pstate"\n'], WORDS)
    | st.binary(max_size=60)
)
environments = st.dictionaries(
    st.sampled_from([name for each in OPTIONS for name in each.env]),
    st.text(st.characters(exclude_characters="\0"), max_size=8)
    | st.sampled_from(["8080:gpu0 8081", "60s", "off", "auto", "/a:/b"]),
    max_size=1,
)


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    """Where the configuration is."""
    return tmp_path_factory.mktemp("configuration") / "config.toml"


@fuzzed(0.24)
@given(document=documents, environ=environments | st.just({}))
@example(document=b"a = " + b"[" * 100_000, environ={})
@example(document=b"touch_bytes = " + b"9" * 5000, environ={})
@example(document=b"[" + b" " * 30_000 + b"x", environ={})
@example(document=b"[a" + b" ]" * 20_000, environ={})
@example(document=b'runtime_dir = "/a\\u0000b"', environ={})
@example(document=b'loader_python = "/a\\u0000b"', environ={})
@example(document=b'[[watch]]\nport = 1\nscope = "netns:/' + b":" * 20_000 + b'"', environ={})
@example(document=b'[[watch]]\nport = 1\nscope = "unit:a' + b":a" * 20_000 + b'"', environ={})
@example(document=b"[" + b"a." * 2000 + b"a]", environ={})
@example(document=b"a." * 2000 + b"a = 1", environ={})
@example(document=b"gpu" * 100_000 + b" = 1", environ={})
@example(document=b"# " + b'"' * 200_000, environ={})
@example(document=b" " * 60_000, environ={})
def test_configuration(file, document, environ):
    """What is accepted means the same when it is written down; all else is refused by its type, in good time."""
    file.write_bytes(document)
    with case("configuration"):
        try:
            settings = load({}, environ, file)
        except (ConfigError, UsageError, PermissionMissing) as error:
            assert str(error)  # noqa: PT017  # either is right
            return
        for place in (settings.runtime_dir, settings.loader_python):
            if place is not None:
                os.path.lexists(place)  # a name that the system can be asked for
        file.write_text(rendered(settings), encoding="utf-8")
        again = load({}, {}, file)
        assert plain(again) == plain(settings), rendered(settings)


def plain(settings: Settings) -> Settings:
    """Where it is from does not matter, nor whether a watch has its settings from a table of its own."""
    own = {(watch.scope, watch.port): settings.watch_settings(watch) for watch in settings.watches}
    return replace(settings, origins={}, ports=own)


def rendered(settings: Settings) -> str:
    """The same settings as a file that says everything."""
    general = "".join(
        f"{each.key} = {toml(getattr(settings, each.field), each.key)}\n" for each in OPTIONS if each.key != "watch"
    )
    watches = "".join(
        f"[[watch]]\nport = {watch.port}\ngpus = {toml(watch.gpus)}\nscope = {toml(str(watch.scope))}\n"
        + of_table(WatchSettings, settings.watch_settings(watch))
        for watch in settings.watches
    )
    gpus = "".join(f"[gpu.{toml(name)}]\n{of_table(GpuSettings, own)}" for name, own in settings.gpus.items())
    # a watch without settings of its own has all of them now, which is the same
    return general + watches + gpus


def of_table(kind: type, values: Any) -> str:
    names = [(item.name, item.name.removesuffix("_s")) for item in fields(kind)]
    return "".join(f"{key} = {toml(getattr(values, name), key)}\n" for name, key in names)


def toml(value: object, key: str = "") -> str:  # noqa: PLR0911  # a line for each kind
    match value:
        case bool():
            return str(value).lower()
        case float():
            return '"auto"' if key == "idle_after" and not value else f'"{value:.9f}s"'
        case tuple() if key == "labels":
            return "{" + ", ".join(f"{toml(name)} = {toml(text)}" for name, text in value) + "}"
        case int():
            return str(value)
        case tuple():
            return f"[{', '.join(map(toml, value))}]"
        case None:
            return '"off"' if key == "metrics" else '"auto"'
    return (
        '"' + "".join(each if each.isalnum() and each.isascii() else f"\\U{ord(each):08x}" for each in str(value)) + '"'
    )


# ---- ports ----------------------------------------------------------------------------------------------------------

PARTS = [
    "8080", "0", "65535", "65536", ":", ":", "@", ",", "gpu0", "GPU-5c1b", "0000:3b:00.0", "3b:00.0", "host", "container:",
    "netns:", "unit:", "pid:", "docker:", "/run/netns/", "a", "web", "llama@a.service", ".slice", "@.service", "1234", " ",
    "..", "/", "0", "²", "٣", "\0", "\\x2d", "gup0", "-", "_", "é", "9" * 30, "00.0", "socket", ".socket", "\n", "%", "#",
]  # fmt: skip
specifications = (
    st.lists(st.sampled_from(PARTS), max_size=9).map("".join)
    | st.builds(
        "{}@{}{}{}".format,
        st.integers(1, 65535),
        st.sampled_from(["container:", "netns:", "netns:/", "unit:", "pid:"]),
        st.lists(st.sampled_from(PARTS), max_size=4).map("".join) | st.text(max_size=6),
        st.sampled_from(["", ":gpu0", ":0000:3b:00.0,1", ":GPU-aaaa", ":gup0"]),
    )
    | st.text(max_size=20)
)


@fuzzed(0.25)
@given(text=specifications)
@example(text="9" * 5000)
@example(text="8080@netns:/" + ":" * 20_000)
@example(text="8080@netns:/a:" + "b:" * 20_000)
@example(text="8080@unit:" + "a:" * 20_000)
@example(text="8080@pid:" + "1:" * 20_000)
@example(text="8080@pid:" + "9" * 5000)
@example(text="8080:" + "gpu0," * 20_000)
@example(text="8080:" + ",".join(f"gpu{n}" for n in range(3000)))
@example(text="8080@netns:/run/a:3b:00:00.0")
def test_port(text):
    """A watch whose name reads back as itself, or a sentence."""
    with case("port"):
        try:
            watch = parse_watch(text)
        except ValueError as error:
            assert str(error)  # noqa: PT017  # either is right
            return
        assert isinstance(watch, Watch)
        assert 1 <= watch.port <= 65535
        assert parse_watch(str(watch)) == watch
        assert str(parse_watch(str(watch))) == str(watch)
