"""The schema written out: a file to begin with, JSON Schema, and values that read back as what they were."""

import json
import re
import tomllib
from pathlib import Path

import jsonschema
import pytest
from hypothesis import given
from hypothesis import strategies as st

from memscaler.config import values
from memscaler.config.load import load
from memscaler.config.render import default, effective, json_schema, literal, sample
from memscaler.config.schema import BY_KEY, OPTIONS
from tests.config.test_configuration_page import EXAMPLE

ROOT = Path(__file__).resolve().parents[2]
VALIDATOR = jsonschema.Draft202012Validator(json_schema())
# A block of TOML in a page: indented, with a [table] or a key that the schema has.
BLOCK = re.compile(r"(?:^    .*\n|^\n)+", re.MULTILINE)


def switched_on(text):
    """The sample with every setting switched on."""
    return re.sub(r"^#(?! )(?=[\w\[])", "", text, flags=re.MULTILINE)


def examples():
    """Every configuration that a page shows."""
    for page in [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]:
        for block in BLOCK.findall(page.read_text(encoding="utf-8")):
            text = re.sub(r"^    ", "", block, flags=re.MULTILINE)
            if re.search(r"^\[\[watch\]\]|^\[gpu\.", text, re.MULTILINE):
                yield pytest.param(text, id=f"{page.name}: {text.strip().splitlines()[0]}")


def test_the_schema_is_one():
    """It is itself good JSON Schema of the dialect that it names."""
    jsonschema.Draft202012Validator.check_schema(json_schema())
    assert json.loads(json.dumps(json_schema()))["$schema"] == "https://json-schema.org/draft/2020-12/schema"


def test_the_sample_changes_nothing(config):
    """As it is, it is comments; 80 columns; every setting is in it."""
    text = sample()
    assert tomllib.loads(text) == {}
    assert max(map(len, text.splitlines())) <= 80
    assert all(f"\n#{option.key} = " in text or option.key == "watch" for option in OPTIONS)
    assert config(text).general == load({}, {}).general


def test_the_sample_switched_on_is_the_defaults(config):
    """With every "#" taken away it conforms, loads, and is what was in force before."""
    text = switched_on(sample())
    VALIDATOR.validate(tomllib.loads(text))
    settings, usual = config(text), load({}, {})
    for option in OPTIONS:
        if option.key != "watch":
            assert getattr(settings, option.field) == getattr(usual, option.field), option.key
            assert settings.origins[option.key] != "default"
    assert len(settings.watches) == 2


@pytest.mark.parametrize("text", [pytest.param(EXAMPLE, id="the configuration page"), *examples()])
def test_examples_of_the_documentation_conform(config, text):
    """What a page shows is what the schema allows, and loads."""
    VALIDATOR.validate(tomllib.loads(text))
    config(text)


def test_there_are_examples():
    """The search above finds those that there are."""
    assert len(list(examples())) >= 3


@pytest.mark.parametrize(
    "text",
    [
        "idle_aftr = 1",
        'idle_after = "soon"',
        "idle_after = true",
        "idle_after = -1",
        'lever = "voltage"',
        "touch_bytes = 0",
        "touch_bytes = 1.5",
        'discover = "perhaps"',
        'runtime_dir = "run"',
        'loader_python = "python3"',
        "metrics = 9823",
        "metrics = true",
        "[[watch]]\nport = 0",
        "[[watch]]\nport = 65536",
        "[[watch]]\ngpus = []",
        '[[watch]]\nport = 1\ngpus = ["card"]',
        '[[watch]]\nport = 1\nscope = "docker:web"',
        "[[watch]]\nport = 1\nidle_after = 3",
        "[gpu.a40]\nlever = 'auto'",
        "[gpu.gpu0]\nmetrics = 'off'",
        "[watch]\nport = 1",
    ],
)
def test_what_the_schema_refuses_is_refused(config, text):
    """An editor's red line and `run` agree."""
    assert not VALIDATOR.is_valid(tomllib.loads(text))
    with pytest.raises(Exception, match=r"config\.toml"):
        config(text)


@pytest.mark.parametrize(
    "text",
    ["touch = false", "touch = 'off'", "metrics = false", "ignore = '127.0.0.1'", "idle_after = '1h 30m'", "idle_after = '2D'", "min_dwell = 0",
     "[gpu.0]\nidle_after = 5", "[gpu.GPU0]\nlever = 'pstate'", "[[watch]]\nport = 1\ngpus = [0, '00:01.0']"],
)  # fmt: skip
def test_what_loads_conforms(config, text):
    """Less usual spellings too."""
    VALIDATOR.validate(tomllib.loads(text))
    config(text)


@given(st.integers(0, 10**15), st.sampled_from([1, 10**3, 10**6, 10**9, 60 * 10**9, 3600 * 10**9, 86400 * 10**9]))
def test_times_read_back(number, unit_ns):
    """A time prints as one that means the same, whatever its size."""
    seconds = round((number * unit_ns) % (366 * 86400 * 10**9) / 1e9, 9)
    assert values.duration_s(0)(values.write_duration(seconds)) == pytest.approx(seconds, rel=1e-12, abs=1e-9)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (60, "60s"),
        (120, "2m"),
        (90, "90s"),
        (0.25, "250ms"),
        (5400, "90m"),
        (172800, "2d"),
        (0, "0s"),
        (1e-6, "1us"),
        (1e-9, "1ns"),
        (1.5, "1500ms"),
    ],
)
def test_times_are_written_for_people(seconds, text):
    """In the largest unit that makes it whole; a minute stays 60s, as everywhere in the documentation."""
    assert values.write_duration(seconds) == text


def test_every_default_reads_back():
    """What is shown for a value may be written into a file and means that value."""
    for option in OPTIONS:
        if option.key != "watch":
            shown = tomllib.loads(f"x = {literal(default(option))}")["x"]
            again = option.parse(shown) if shown != [] else ()
            assert again == (option.parse(option.default) if option.default else ())


def test_other_values_read_back(config):
    """Lists, addresses, words for none."""
    text = 'ignore = ["10.0.0.0/8"]\nmetrics = "off"\ntouch = "off"\nsimulate = ["a40", "p40"]\nruntime_dir = "/ru\\u007fn"\n'
    text += 'never_park = ["Mon-Fri 09:00-18:00"]\nquiet = "no-connections"\nloader_python = "/usr/bin/python3"\n'
    first = config(text)
    again = config("".join(f"{key} = {literal(value)}\n" for key, value, _ in effective(first)))
    differs = {option.key for option in OPTIONS if getattr(first, option.field) != getattr(again, option.field)}
    assert differs == {"state_dir"}  # with simulate the one that is used is shown
    assert first.kept_in == again.kept_in


def test_tables_are_shown_with_their_lines(config, tmp_path):
    """What a watch and a GPU set for themselves stands behind their names, with its line."""
    text = '[[watch]]\nport = 8080\ngpus = ["gpu0"]\nquiet = "no-connections"\n[[watch]]\nport = 1\n[gpu.gpu1]\nidle_after = "5m"\n'
    rows = {key: (value, origin) for key, value, origin in effective(config(text))}
    file = tmp_path / "config.toml"
    assert rows["watch.8080"] == (["gpu0"], f"{file}:3")
    assert rows["watch.8080.quiet"] == ("no-connections", f"{file}:4")
    assert rows["watch.1"] == ("the GPUs that the listener uses", f"{file}:5")
    assert rows["gpu.gpu1.idle_after"] == ("5m", f"{file}:8")
    assert "gpu.gpu1.lever" not in rows
    assert rows["idle_after"] == ("60s", "default")
    assert BY_KEY["idle_after"].default == "60s"
