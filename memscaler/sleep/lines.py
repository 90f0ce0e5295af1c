"""Every line that the sleeper's process writes, in the governor's form: also what Python and libraries have to say.

A reader of the governor's log parses each line of it. Programs that are run for a stage write into pipes or to nowhere.
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
from types import TracebackType
from typing import Any, TextIO

import structlog

from memscaler.observe.log import configure

log = structlog.get_logger()


def speak(form: str, level: str) -> None:
    """For the whole process, once. form, level: as in the settings."""
    configure("json" if form == "json" else "console", level, os.environ)
    sys.excepthook = _died
    threading.excepthook = _thread_died
    sys.unraisablehook = _unraisable
    warnings.showwarning = _warned
    logging.root.handlers = [_Handler(logging.WARNING)]


def watch_loop() -> None:
    """In the event loop: what a task or a callback of its raised."""
    asyncio.get_running_loop().set_exception_handler(_in_loop)


def _broken(error: BaseException | None, **where: str) -> None:
    text = "".join(traceback.format_exception(error)) if error is not None else ""
    log.error("sleeper.broken", err=f"{type(error).__name__}: {error}" if error else "", traceback=text, **where)


def _died(_kind: type[BaseException], error: BaseException, _where: TracebackType | None) -> None:
    _broken(error)


def _thread_died(told: threading.ExceptHookArgs) -> None:
    if told.exc_type is not SystemExit:
        _broken(told.exc_value, thread="" if told.thread is None else told.thread.name)


def _unraisable(told: Any) -> None:
    _broken(told.exc_value, what=told.err_msg or "Exception ignored", of=repr(told.object))


def _in_loop(_loop: asyncio.AbstractEventLoop, told: Mapping[str, Any]) -> None:
    _broken(told.get("exception"), what=str(told.get("message", "")))


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
