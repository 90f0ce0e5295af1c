"""What all plots have in common: their look, and how they come into a file.

matplotlib is imported here and where plots are drawn, and only when they are wanted: it takes a second.
"""

from __future__ import annotations

import io
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from memscaler.adding import how_to_add
from memscaler.core.errors import MemscalerError, UsageError
from memscaler.files import write_own

if TYPE_CHECKING:
    from matplotlib.figure import Figure

NEEDED = "matplotlib>=3.8"
INSTALL = how_to_add(NEEDED) or "install memscaler with pipx instead (docs/install.md): its package takes none"
FORMATS = (".svg", ".png")
# Each colour once: on a page they become its variables of these names, and follow its light and dark.
COLOURS = {
    "awake": "#2f7fc1",
    "cooling": "#e0a030",
    "parked": "#1f9d76",
    "held": "#8f63c7",
    "unmanaged": "#cc4b43",
    "none": "#c9d2da",
    "text": "#16202a",
    "muted": "#50606f",
    "line": "#d9dfe5",
}
STYLE: dict[Any, object] = {
    "font.family": "sans-serif",
    "font.size": 10,
    "svg.fonttype": "none",
    "svg.hashsalt": "memscaler",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.spines.left": False,
    "axes.edgecolor": COLOURS["line"],
    "axes.labelcolor": COLOURS["muted"],
    "axes.titlesize": 10,
    "axes.titlecolor": COLOURS["muted"],
    "axes.titlelocation": "left",
    "axes.grid": True,
    "axes.grid.axis": "y",
    "axes.axisbelow": True,
    "grid.color": COLOURS["line"],
    "grid.linewidth": 0.8,
    "text.color": COLOURS["text"],
    "xtick.color": COLOURS["muted"],
    "ytick.color": COLOURS["muted"],
    "xtick.major.size": 0,
    "ytick.major.size": 0,
    "legend.frameon": False,
    "legend.fontsize": 9,
    "figure.facecolor": "white",
    "savefig.dpi": 150,
}


@contextmanager
def styled() -> Iterator[None]:
    """Raise MemscalerError without matplotlib."""
    logging.getLogger("matplotlib").setLevel(logging.ERROR)  # which font it found concerns nobody
    try:
        import matplotlib as mpl
    except ImportError as error:
        raise MemscalerError("plots need matplotlib, which is not installed", hint=INSTALL) from error
    with mpl.rc_context(STYLE):
        yield


def drawing() -> bool:
    """Whether there can be plots."""
    try:
        with styled():
            return True
    except MemscalerError:
        return False


def rendered(figure: Figure, form: str, **more: Any) -> bytes:
    """The contents of a file; form: "svg" or "png". The same figure makes the same file."""
    with styled(), io.BytesIO() as file:
        figure.savefig(file, format=form, metadata={"Date": None} if form == "svg" else {}, **more)
        return file.getvalue()


def check(path: Path) -> None:
    """Raise UsageError for another format, MemscalerError without matplotlib; before anything is measured for it."""
    if path.suffix.lower() not in FORMATS:
        raise UsageError(f"{path.name}: a plot is one of {', '.join(FORMATS)}", hint="--plot gpu0.svg")
    with styled():
        pass


def save(figure: Figure, path: Path) -> None:
    """As its name says. Raise MemscalerError if it cannot be written."""
    try:
        write_own(path, rendered(figure, path.suffix.lower().lstrip(".")), mode=0o644)
    except OSError as error:
        raise MemscalerError(f"cannot write {path}: {error.strerror or error}") from error
