"""The log: events named `noun.past_verb` with flat keys, for a person on a terminal and as JSON everywhere else.

A log line must never stop the governor: a reader that went away (a closed pipe, a full disk) loses lines, no more.
"""

from __future__ import annotations

import json
import os
import select
import sys
from collections.abc import Mapping, MutableMapping
from contextlib import suppress
from typing import Any, TextIO

import structlog

LEVELS = {"debug": 10, "info": 20, "warning": 30, "error": 40}

# sd-daemon(3): a line that starts so has this priority in the journal (`journalctl -p warning`).
_PRIORITY = {"debug": "<7>", "info": "<6>", "warning": "<4>", "error": "<3>", "critical": "<2>"}

Event = MutableMapping[str, Any]


def configure(form: str, level: str, environ: Mapping[str, str], stream: TextIO | None = None) -> None:
    """Set up structlog for the whole process. form: auto, console or json; level: a key of LEVELS."""
    out = sys.stderr if stream is None else stream
    journal = _is_journal(out, environ)
    console = is_for_people(form, out)
    processors: list[structlog.typing.Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
    ]
    if not journal:  # the journal has its own, better ones
        processors.append(structlog.processors.TimeStamper(fmt="%H:%M:%S" if console else "iso", utc=not console))
    render = _console(out, environ) if console else _json
    processors += [structlog.processors.format_exc_info, _with_priority(render) if journal else render]
    structlog.configure(
        processors=processors,
        wrapper_class=structlog.make_filtering_bound_logger(LEVELS[level]),
        logger_factory=structlog.WriteLoggerFactory(file=_Forgiving(out)),  # type: ignore[arg-type]  # write and flush
        cache_logger_on_first_use=True,
    )


def is_for_people(form: str, stream: TextIO | None = None) -> bool:
    """Whether a log of this form is text, not JSON."""
    return form == "console" or (form == "auto" and (sys.stderr if stream is None else stream).isatty())


class _Forgiving:
    """A stream whose reader may go away, or stop reading (Ctrl-S, a full pipe): then lines are lost."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._room: select.poll | None = select.poll()
        try:
            self._room.register(stream.fileno(), select.POLLOUT)
        except (OSError, ValueError):
            self._room = None  # no descriptor: nothing that could block

    def write(self, text: str) -> int:
        with suppress(OSError, ValueError):  # ValueError: closed
            if self._room is None or self._room.poll(0):
                return self._stream.write(text)
        return 0

    def flush(self) -> None:
        with suppress(OSError, ValueError):
            self._stream.flush()


def _is_journal(stream: TextIO, environ: Mapping[str, str]) -> bool:
    """True if the stream goes to the journal; systemd names device and inode of its socket."""
    try:
        status = os.fstat(stream.fileno())
    except (OSError, ValueError):
        return False
    return environ.get("JOURNAL_STREAM") == f"{status.st_dev}:{status.st_ino}"


def _console(stream: TextIO, environ: Mapping[str, str]) -> structlog.typing.Processor:
    colors = stream.isatty() and not environ.get("NO_COLOR") and environ.get("TERM") != "dumb"
    return structlog.dev.ConsoleRenderer(
        colors=colors, pad_event_to=24, exception_formatter=structlog.dev.plain_traceback
    )


def _json(_logger: object, _method: str, event: Event) -> str:
    ordered = {key: event.pop(key) for key in ("timestamp", "level", "event") if key in event}
    return json.dumps({**ordered, **event}, default=str)


def _with_priority(render: structlog.typing.Processor) -> structlog.typing.Processor:
    def prefixed(logger: Any, method: str, event: Event) -> str:
        return f"{_PRIORITY.get(method, '<6>')}{render(logger, method, event)!s}"

    return prefixed
