"""Every command line of memscaler that a page shows is one that the real command line understands."""

import re
import shlex
from pathlib import Path

import pytest
import typer.main

from memscaler.cli.main import app
from memscaler.config.load import load
from tools.commands import tree

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted([ROOT / "README.md", ROOT / "CONTRIBUTING.md", *ROOT.glob("docs/**/*.md"), *ROOT.glob("man/*.md")])
SPAN = re.compile(r"(?:`|\*\*)((?:sudo )?(?:/\S*/)?memscaler [a-z-][^`*\n]*)(?:`|\*\*)")
LINE = re.compile(r"^ {4,}(?:\$ )?((?:sudo )?(?:/\S*/)?memscaler [a-z-].*)$", re.MULTILINE)
SYNOPSIS = re.compile(r"\[[A-Z-]|\b[A-Z]{3,}\b(?!-)")  # a placeholder: this is no command line, but the form of one
MESSAGES = {"runs already"}  # of a log, not of a keyboard


def lines(page):
    """Without sudo, and without the comment or the explanation that stands behind."""
    text = page.read_text(encoding="utf-8")
    for found in (*SPAN.finditer(text), *LINE.finditer(text)):
        line = re.split(r"\s+#|\s{2,}|;", found[1])[0].removeprefix("sudo ").rstrip(".,:")
        yield line.partition(" ")[2]


NAMES = {command.path for command in tree().walk()}  # a page may name one without its arguments
SPOKEN = sorted({(str(page.relative_to(ROOT)), line) for page in PAGES for line in lines(page)} - {("", "")})


def understood(line):
    """Parse it as the command does, without running it. Raise whatever is wrong with it."""
    words, name = shlex.split(line), ""
    context = typer.Context(typer.main.get_command(app), info_name="memscaler")
    while hasattr(context.command, "resolve_command"):
        if not words or words[0] in ("--version", "--help"):
            return
        name, command, words = context.command.resolve_command(context, words)
        context = typer.Context(command, info_name=name, parent=context, **command.context_settings)
    if "--help" not in words:
        context.command.parse_args(context, words)
    if name == "run":
        given = {{"port": "watch"}.get(key, key): value or None for key, value in context.params.items()}
        given.pop("config", None)
        load(given, {"MEMSCALER_DISCOVER": "1"})


def names(line):
    """Commands and options of a synopsis that are not there."""
    words = [word for word in re.split(r"[\s\[\],|=]+", line.partition(" -- ")[0]) if word]
    command = next(each for each in [*tree().walk()][::-1] if words[: len(each.path.split())] == each.path.split())
    known = {name for option in command.options for name in option.names}
    return [word for word in words if word.startswith("-") and word not in known]


@pytest.mark.parametrize(("page", "line"), SPOKEN)
def test_every_command_line_is_understood(page, line):
    """Its command and its options exist, and the values of `run` are ones that it takes."""
    assert page
    if line in MESSAGES:
        return
    for each in line.split(", ") if "-" not in line else [line]:  # "pause, resume"
        if each in NAMES:
            continue
        if SYNOPSIS.search(each):
            assert names(each) == []
        else:
            understood(each)


def test_the_pages_are_read():
    """The list above is not empty by mistake: commands of the quick start, the manual and a table are in it."""
    spoken = {line for _, line in SPOKEN}
    assert {"run --discover --dry-run", "hold -- ./benchmark --all", "config check", "release"} <= spoken
    assert len(spoken) > 40


@pytest.mark.parametrize("line", ["run --prot 8080", "stauts", "hold --fro 2h", "run --port 99999", "config chek"])
def test_a_wrong_one_is_noticed(line):
    """What a page must not say is not taken for understood."""
    with pytest.raises(Exception, match=r"(?i)no such|out of range|--prot|--fro"):
        understood(line)
