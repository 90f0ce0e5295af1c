"""What to type so that a package is added, for each way in which memscaler is installed."""

import subprocess
import sys
from pathlib import Path

from memscaler import adding


def test_a_virtual_environment():
    """Its own pip does it."""
    assert adding.how_to_add("a>=1", prefix=Path("/opt/memscaler")) == f"{sys.executable} -m pip install 'a>=1'"


def test_pipx(tmp_path):
    """By pipx itself, in the home that it was told at the installation: pipx puts no pip into its environments."""
    place = tmp_path / "venvs" / "memscaler"
    place.mkdir(parents=True)
    (place / "pipx_metadata.json").write_text("{}")
    told = adding.how_to_add("a>=1", prefix=place)
    assert told.removeprefix("sudo ") == f"PIPX_HOME={tmp_path} pipx inject memscaler 'a>=1'"


def test_the_debian_package():
    """It has no pip: what is told instead names none."""
    assert adding.how_to_add("a", prefix=adding.DEBIAN) == ""
    code = (
        "import sys; sys.prefix = '/usr/lib/memscaler'; sys.modules['xllamacpp'] = None\n"
        "from memscaler.servers.programs import HINT\n"
        "print(HINT)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "install llama.cpp (its llama-server must be on the PATH)\n"
