"""Write completions/, shell completion as static files: so a TAB starts no python. `python -m tools.completions`."""

from __future__ import annotations

from pathlib import Path

from tools.commands import tree
from tools.shells import bash, fish, zsh

FOLDER = Path(__file__).resolve().parents[1] / "completions"


def files() -> dict[Path, str]:
    """What there is to be, by its place."""
    root = tree()
    return {
        FOLDER / "memscaler.bash": bash.render(root),
        FOLDER / "_memscaler": zsh.render(root),
        FOLDER / "memscaler.fish": fish.render(root),
    }


if __name__ == "__main__":
    for path, text in files().items():
        path.write_text(text, encoding="utf-8")
