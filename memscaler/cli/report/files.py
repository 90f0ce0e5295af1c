"""Where a page and plots go. A file is old or new, never half; one that is not a report of ours is not replaced."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from memscaler.cli.report.page import MARK
from memscaler.cli.report.plots import Plot
from memscaler.core.errors import MemscalerError, PermissionMissing
from memscaler.files import write_own

MODE = 0o644


def check_page(path: Path) -> Path:
    """Where a page of this name would be written; a link stays one. Raise MemscalerError where that is not to be."""
    target = path.resolve()
    if target.is_dir():
        raise MemscalerError(f"{path} is a directory", hint="name a file in it")
    if not target.parent.is_dir():
        raise MemscalerError(f"cannot write {path}: there is no directory {target.parent}")
    with _told(path):
        if target.exists() and not _is_ours(target):
            raise MemscalerError(f"{path} is there, and is no report", hint="name another file, or remove that one")
    return target


def write_page(path: Path, page: str) -> None:
    """Raise MemscalerError."""
    target = check_page(path)
    with _told(path):
        write_own(target, page.encode(), MODE)


def _is_ours(path: Path) -> bool:
    """An empty file is anybody's."""
    if not path.is_file():
        return False
    with path.open("rb") as file:
        begin = file.read(len(MARK.encode()))
    return begin in (b"", MARK.encode())


def write_plots(folder: Path, plots: list[Plot]) -> list[Path]:
    """Each as SVG and PNG, in place of those that are there; makes the folder. Raise MemscalerError."""
    written = []
    with _told(folder):
        folder.mkdir(exist_ok=True)
        for plot in plots:
            for suffix, data in ((".svg", plot.svg()), (".png", plot.png())):
                path = folder / f"{plot.name}{suffix}"
                write_own(path, data, MODE)
                written.append(path)
    return written


@contextmanager
def _told(path: Path) -> Iterator[None]:
    try:
        yield
    except PermissionError as error:
        raise PermissionMissing(f"cannot write {path}", hint="choose a place where you may write") from error
    except OSError as error:
        raise MemscalerError(f"cannot write {path}: {error.strerror}") from error
