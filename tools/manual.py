"""The manual: what the code knows is written into man/*.md, and the pages are made of those.

python -m tools.manual              write the generated parts of man/*.md anew, and the pages beside them
python -m tools.manual --roff DIR   write the pages, for man(1), into a folder

The pages are made by go-md2man, which Docker, podman and containerd make theirs with: one small program in every
distribution, where pandoc would bring 150 MB for three pages. The made pages are in the repository, because a wheel is
built where there is no go-md2man; each has the checksum of what it was made from.
"""

from __future__ import annotations

import argparse
import hashlib
import re
import subprocess
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from memscaler.config.gateway_keys import GATEWAY_KEYS
from memscaler.config.gpuctl_keys import GPUCTL_KEYS, GVM_KEYS
from memscaler.config.schema import OPTIONS
from memscaler.config.server_keys import HOOK_KEYS, KEYS
from memscaler.config.stage_keys import STAGE_KEYS, SUSPEND_KEYS
from memscaler.config.tables import Key

if TYPE_CHECKING:
    from tools.commands import Argument, Command, Option

ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / "man"
PAGES = ("memscaler.1", "memscaler.toml.5", "memscaler.service.8")
PART = re.compile(r"(<!-- (\w+): made by [^>]*-->\n).*?(<!-- to here -->)", re.DOTALL)
QUIET = ".nh\n.ad l"  # names of variables are not hyphenated, and nothing is stretched to the margin
COMMENT = re.compile(r"<!--.*?-->\n?", re.DOTALL)


def source(page: str) -> Path:
    """The Markdown of a page."""
    return FOLDER / f"{page}.md"


def written(page: str) -> str:
    """The Markdown with its generated parts as they are now."""
    text = source(page).read_text(encoding="utf-8")
    return PART.sub(lambda found: f"{found[1]}\n{PARTS[found[2]]()}\n{found[3]}", text)


def roff(page: str) -> str:
    """The page for man(1)."""
    made = subprocess.run(["go-md2man"], input=plain(page), capture_output=True, text=True, check=True).stdout
    text = re.sub(r"^(\.TH .*)$", rf"\1\n{QUIET}", made, count=1, flags=re.MULTILINE)
    return f"{mark(page)}\n{text}"


def plain(page: str) -> str:
    """Its Markdown as it is, without comments: that needs no compiler, which the simulated boards' names do."""
    return COMMENT.sub("", source(page).read_text(encoding="utf-8"))


def mark(page: str) -> str:
    """The first line of the made page: go-md2man's versions differ, what they make it from does not."""
    return f'.\\" made by `make generate` from {hashlib.sha256(plain(page).encode()).hexdigest()}'


def synopsis() -> str:
    """A line for each command."""
    from tools.commands import tree

    lines = [_usage(command) for command in tree().walk() if command.path and not command.commands]
    return "  \n".join(lines) + "\n"


def commands() -> str:
    """A section for each command."""
    from tools.commands import tree

    return "\n".join(_section(command) for command in tree().walk() if command.path and not command.commands)


def settings() -> str:
    """Every key of the file."""
    return "\n".join(_settings())


def servers() -> str:
    """Every key of a [[server]] table."""
    return "\n".join(_keys(KEYS))


def hooks() -> str:
    """Every key of a [[server.hook]] table."""
    return "\n".join(_keys(HOOK_KEYS))


def stages() -> str:
    """Every key of a [[stage]] table."""
    return "\n".join(_keys(STAGE_KEYS))


def suspend() -> str:
    """Every key of [suspend]."""
    return "\n".join(_keys(SUSPEND_KEYS))


def gateways() -> str:
    """Every key of a [[gateway]] table."""
    return "\n".join(_keys(GATEWAY_KEYS))


def rules() -> str:
    """Every key of a [[gpuctl]] table."""
    return "\n".join(_keys(GPUCTL_KEYS))


def gvm() -> str:
    """Every key of [gvm]."""
    return "\n".join(_keys(GVM_KEYS))


def _keys(keys: Iterable[Key]) -> Iterator[str]:
    for key in keys:
        default = f" Default: **{key.default}**." if key.default else ""
        yield f"**{key.key}**\n: {key.help}{default}\n"


def overhead() -> str:
    """Figures of bench/README.md."""
    figures = (ROOT / "bench" / "README.md").read_text(encoding="utf-8")
    found = {name: re.search(pattern, figures) for name, pattern in FIGURES.items()}
    missing = [name for name, match in found.items() if match is None]
    if missing:
        raise SystemExit(f"bench/README.md no longer says {', '.join(missing)}: see FIGURES in {__file__}")
    told = {name: match[1] for name, match in found.items() if match}
    return OVERHEAD.format(**told)


PARTS: dict[str, Callable[[], str]] = {
    "synopsis": synopsis,
    "commands": commands,
    "settings": settings,
    "servers": servers,
    "hooks": hooks,
    "stages": stages,
    "suspend": suspend,
    "gateways": gateways,
    "rules": rules,
    "gvm": gvm,
    "overhead": overhead,
}
FIGURES = {
    "wake": r"\| `connect\(\)` returns -> driver call \| (\d+ us) ",
    "slow": r"\| `connect\(\)` returns -> driver call \| \d+ us \| (\d+ us) ",
    "memory": r"`footprint`: (\S+ MB) ",
    "guardian": r"\(guardian (\S+ MB)\)",
    "cpu": r"(0\.\d+ %) of a CPU over",
    "connection": r"costs 8 x \d+ \+ 9 x \d+ = (\S+ us) more",
    "stop": r"`stop_time`: (\d+ ms)\s+median",
    "restore": r"`restore_time`: (\d+ ms)\s+median",
}
OVERHEAD = """\
**a wake**
: {wake} in the median from **connect**(2) returning to the driver call, {slow} at the 99th percentile. How long a card
then takes to raise its clocks is up to the card.

**memory**
: The daemon {memory}, the guardian {guardian}. bcc and LLVM live in a process of their own that ends after loading.

**time, everything parked**
: {cpu} of a CPU. Nothing polls the connections.

**a connection to a watched port**
: {connection} in the kernel, and nothing in user space.

**the end**
: {stop} from SIGTERM to the exit with three boards parked; {restore} from SIGKILL until the guardian has woken them.
"""


def _usage(command: Command) -> str:
    words = command.usage.replace("[OPTIONS]", "[*OPTION*]...").split()
    told = [word if word.startswith("[*") else re.sub(r"[A-Z]{2,}", r"*\g<0>*", word) for word in words]
    return " ".join([f"**memscaler {command.path}**", *told])


def _section(command: Command) -> str:
    lines = [f"## memscaler {command.path}", "", _usage(command), "", command.help, ""]
    for argument in command.arguments:
        lines += _item(f"*{argument.metavar}*", argument)
    for option in command.options:
        if option.names != ("-h", "--help"):
            lines += _item(_names(option), option)
    return "\n".join(lines)


def _item(term: str, each: Option | Argument) -> list[str]:
    return [term, f": {each.help}", ""]


def _names(option: Option) -> str:
    value = f"[*{option.metavar}*]" if option.may else f"*{option.metavar}*" if option.metavar else ""
    return ", ".join(f"**{name}**" for name in option.names) + f" {value}".rstrip()


def _settings() -> Iterator[str]:
    for option in OPTIONS:
        variables = ", ".join(f"**{name}**" for name in option.env)
        tables = ["[[watch]]"] * option.per_watch + ["[gpu.NAME]"] * option.per_gpu
        told = [option.help if option.help.endswith(".") else f"{option.help}."]
        told += [f"Default: **{option.default}**."] * bool(option.default)
        told += [f"Also in **{' and '.join(tables)}**."] * bool(tables)
        key = "[[watch]]" if option.key == "watch" else option.key
        yield f"**{key}**\n: {' '.join(told)} [{variables}]\n"


def main() -> None:
    """One of the two."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--roff", type=Path, metavar="DIR")
    folder = parser.parse_args().roff
    for page in PAGES:
        if folder is None:
            source(page).write_text(written(page), encoding="utf-8")
            (FOLDER / page).write_text(roff(page), encoding="utf-8")
        else:
            folder.mkdir(parents=True, exist_ok=True)
            (folder / page).write_text(roff(page), encoding="utf-8")


if __name__ == "__main__":
    main()
