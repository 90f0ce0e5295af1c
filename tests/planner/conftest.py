"""Large models, all of them holes: each written once, when the first test wants it."""

from pathlib import Path

import pytest

from tests.planner import shapes


class Hollow(dict[str, Path]):
    """Their files by their names."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self._folder = folder

    def __missing__(self, name: str) -> Path:
        self[name] = shapes.write(self._folder / f"{name}.gguf", shapes.SHAPES[name])
        return self[name]


@pytest.fixture(scope="session")
def hollow(tmp_path_factory):
    """`hollow["llama-2-7b.Q4_0"]` and the others of shapes.SHAPES."""
    return Hollow(tmp_path_factory.mktemp("hollow"))
