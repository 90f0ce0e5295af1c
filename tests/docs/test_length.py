"""Modules of memscaler are short enough to be read at once. What is longer holds two thoughts, or says why it does not."""

from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
MOST_LINES = 400
LONGER: dict[str, str] = {}
"""Path from the root -> why it has to be one file. Empty is best."""


def test_no_module_is_too_long():
    """Another thought gets another module: see the folders in docs/architecture.md for whose it is."""
    modules = sorted((ROOT / "memscaler").rglob("*.py"))
    assert modules
    lines = {str(path.relative_to(ROOT)): len(path.read_text(encoding="utf-8").splitlines()) for path in modules}
    too_long = {path for path, count in lines.items() if count > MOST_LINES}
    assert too_long == set(LONGER), {path: lines.get(path) for path in too_long ^ set(LONGER)}
