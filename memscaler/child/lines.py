"""Every line that a child writes, in the governor's form: also what Python and libraries have to say.

A reader of the governor's log parses each line of it. Programs that a child runs write into pipes or to nowhere.
"""

from __future__ import annotations

import asyncio
import logging
import os
import sys
import threading
import traceback
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Any, TextIO

import structlog

from memscaler.observe.log import configure

log = structlog.get_logger()


def speak(name: str, form: str, level: str) -> None:
    """For the whole process, once. name: of the child. form, level: as in the settings."""
    configure("json" if form == "json" else "console", level, os.environ)
    broken = _Broken(name)
    sys.excepthook = broken.died
    threading.excepthook = broken.thread_died
    sys.unraisablehook = broken.unraisable
    warnings.showwarning = _warned
    logging.root.handlers = [_Handler(logging.WARNING)]


def watch_loop(name: str) -> None:
    """In the event loop: what a task or a callback of its raised."""
    asyncio.get_running_loop().set_exception_handler(_Broken(name).in_loop)


@dataclass(frozen=True, slots=True)
class _Broken:
    """What nobody has caught. name: of the child."""

    name: str

    def died(self, _kind: type[BaseException], error: BaseException, _where: TracebackType | None) -> None:
        self._tell(error)

    def thread_died(self, told: threading.ExceptHookArgs) -> None:
        if told.exc_type is not SystemExit:
            self._tell(told.exc_value, thread="" if told.thread is None else told.thread.name)

    def unraisable(self, told: Any) -> None:
        self._tell(told.exc_value, what=told.err_msg or "Exception ignored", of=repr(told.object))

    def in_loop(self, _loop: asyncio.AbstractEventLoop, told: Mapping[str, Any]) -> None:
        self._tell(told.get("exception"), what=str(told.get("message", "")))

    def _tell(self, error: BaseException | None, **where: str) -> None:
        text = "".join(traceback.format_exception(error)) if error is not None else ""
        event, what = f"{self.name}.broken", f"{type(error).__name__}: {error}" if error else ""
        log.error(event, err=what, traceback=text, **where)


def _warned(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,
    line: str | None = None,
) -> None:
    """As warnings.showwarning; it has no other place to write to."""
    _ = file, line
    log.warning("python.warned", what=str(message), kind=category.__name__, at=f"{filename}:{lineno}")


class _Handler(logging.Handler):
    """Of libraries that log in Python's own way."""

    def emit(self, record: logging.LogRecord) -> None:
        error = "".join(traceback.format_exception(*record.exc_info)) if record.exc_info else ""
        tell = log.error if record.levelno >= logging.ERROR else log.warning
        tell("library.said", what=record.getMessage(), by=record.name, **({"traceback": error} if error else {}))
