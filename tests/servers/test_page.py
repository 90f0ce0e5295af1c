"""docs/servers.md: its examples are descriptions that memscaler takes, and mean what the page says."""

import re
from pathlib import Path

import pytest

from memscaler.config.load import load
from memscaler.servers.requests import ROUTES

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "servers.md").read_text(encoding="utf-8")
BLOCKS = [block.replace("\n    ", "\n").strip() for block in re.findall(r"(?:\n    .+)+", PAGE)]
EXAMPLES = [block for block in BLOCKS if re.search(r"^(\[\[server\]\]|model = )", block, re.MULTILINE)]


@pytest.mark.parametrize("example", EXAMPLES)
def test_every_example_is_taken(example, tmp_path):
    """As it stands there, in servers.d; a hook is shown without its server."""
    (tmp_path / "servers.d").mkdir()
    (tmp_path / "config.toml").write_text("")
    (tmp_path / "servers.d/chat.toml").write_text(example + "\n")
    (server,) = load({}, {}, tmp_path / "config.toml").servers
    assert server.name in ("chat", "whisper", "large", "notebook", "codestral")
    assert server.port


def test_the_hook_is_taken(tmp_path):
    """Below the server that comes before it."""
    hook = next(block for block in BLOCKS if block.startswith("[[server.hook]]"))
    server = next(block for block in EXAMPLES if "restart_limit" in block)
    (tmp_path / "config.toml").write_text(f"{server}\n\n{hook}\n")
    (found,) = load({}, {}, tmp_path / "config.toml").servers
    assert [each.name for each in found.hooks] == ["tunnel"]


def test_the_file_of_gppm_means_the_same(tmp_path):
    """It is read as it stands there, and the TOML beside it describes the same server, with its GPUs and its hook."""
    (tmp_path / "config.toml").write_text("")
    (tmp_path / "servers.d").mkdir()
    found = []
    for ending in ("yaml", "toml"):
        block = next(block for block in BLOCKS if f"/servers.d/codestral.{ending}" in block)
        file = tmp_path / f"servers.d/codestral.{ending}"
        file.write_text(block + "\n")
        found += load({}, {}, tmp_path / "config.toml").servers
        file.unlink()
    assert found[0] == found[1]
    assert (found[0].name, found[0].port, found[0].gpus) == ("codestral", 8081, ("gpu0", "gpu1"))
    assert [hook.name for hook in found[0].hooks] == ["tunnel"]


def test_the_defaults_are_the_defaults(tmp_path):
    """The example that shows them changes nothing."""
    example = next(block for block in EXAMPLES if "restart_limit" in block)
    bare = '[[server]]\nname = "chat"\nmodel = "/models/chat.gguf"\nport = 8081\n'
    found = []
    for text in (example, bare):
        (tmp_path / "config.toml").write_text(text)
        found += load({}, {}, tmp_path / "config.toml").servers
    assert found[0] == found[1]


def test_the_page_is_read():
    """And its table has every route."""
    assert len(EXAMPLES) >= 5
    for route in ROUTES:
        assert route in PAGE or f"`{route.removeprefix('/v1/')}`" in PAGE, route
