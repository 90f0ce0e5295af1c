"""What may stand in a [[server]] table: each key, its kind, its default and its help."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterable, Iterator, Mapping

from memscaler.config import values
from memscaler.config.ports import GPU_PATTERN, MAX_PORT, parse_gpus
from memscaler.config.servers import Pairs
from memscaler.config.tables import key
from memscaler.config.values import Kind

NAME_PATTERN = "[A-Za-z0-9_][A-Za-z0-9_.-]{0,62}"  # of a file, of a journal identifier, and of a label
AUTO = "auto"
PORT_VARIABLE = "LLAMA_ARG_PORT"
LONGEST_WORD = 65536
# What llama-server calls with one dash, although it is more than a letter.
_SHORT = """
    bs cb cd cmoe cmoed cram ctk ctkd ctv ctvd ctxcp dev devd dkvc dt ev fa fit fitc fitt hf hff hffv hfr hfrv hfv hft
    jf kvo kvu lcd lcs mg mm mmu mu mv ncmoe ncmoed ngl ngld nkvo np ns ot otd sm sp sps tb tbd td to ts ub
"""
SHORT = frozenset(_SHORT.split())
_OPERATORS = frozenset({"|", "||", "&", "&&", ";", "<", ">", ">>", "2>", "2>&1", "&>"})
_NAME = re.compile(NAME_PATTERN)
_VARIABLE = re.compile("[A-Za-z_][A-Za-z0-9_]*")
_USER = re.compile("[A-Za-z_][A-Za-z0-9_.-]{0,30}[$]?")
_WORDS_SCHEMA: Mapping[str, object] = {"anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "string"}}]}


def _name(raw: object) -> str:
    if not isinstance(raw, str) or not _NAME.fullmatch(raw):
        raise ValueError(f"{raw!r} is no name of a server (1 to 63 letters, digits and _ . -, the first no . or -)")
    return raw


def word(raw: object, what: str) -> str:
    """One word for a program. Raise ValueError if it can be none."""
    text = str(raw) if isinstance(raw, (int, float)) and not isinstance(raw, bool) else raw
    if not isinstance(text, str) or "\0" in text or len(text) > LONGEST_WORD or not _is_utf8(text):
        shown = text if not isinstance(text, str) else f"{text[:40]!r}..."
        raise ValueError(f"{what}: {shown!r} is no word for a program")
    return text


def _is_utf8(text: str) -> bool:
    return not any("\ud800" <= char <= "\udfff" for char in text)


def split(text: str, what: str) -> tuple[str, ...]:
    """As a shell does, without a shell. Raise ValueError if a quotation does not end."""
    try:
        return tuple(shlex.split(word(text, what)))
    except ValueError as err:
        raise ValueError(f"{what}: {err}".replace("No closing quotation", "a quotation does not end")) from None


def _command(raw: object) -> tuple[str, ...]:
    words = arguments(raw)
    if isinstance(raw, str) and (operator := next((each for each in words if each in _OPERATORS), "")):
        raise ValueError(f'command: no shell reads it, so {operator!r} has no meaning (write ["sh", "-c", ...])')
    return words


def arguments(raw: object) -> tuple[str, ...]:
    """A whole command line. Raise ValueError if it is none."""
    if isinstance(raw, str):
        words = split(raw, "command")
    elif isinstance(raw, list):
        words = tuple(word(each, "command") for each in raw)
    else:
        raise ValueError('command is a text or a list, as in command = "llama-server -m /models/a.gguf --port 8080"')
    if not words or not words[0]:
        raise ValueError("command is empty")
    return words


def _options(raw: object) -> tuple[str, ...]:
    if isinstance(raw, str):
        return split(raw, "options")
    if isinstance(raw, list):
        return tuple(word(each, "options") for each in raw)
    if isinstance(raw, dict):
        return tuple(each for name, value in raw.items() for each in _flag(name, value))
    raise ValueError("options is a list or a table, as in options = {ctx-size = 8192, flash-attn = true}")


def _flag(name: str, value: object) -> Iterator[str]:
    """The words that an option of a table stands for. Raise ValueError if it stands for none."""
    if not name or name.startswith("--=") or any(char in name for char in " =\0"):
        raise ValueError(f"options: {name!r} is no option")
    dashes = "" if name.startswith("-") else "-" if len(name) == 1 or name in SHORT else "--"
    if value is False:
        raise ValueError(f"options: leave {name} out, or write its opposite, as in no-{name} = true")
    for each in value if isinstance(value, list) else [value]:
        yield dashes + name
        if each is not True:
            yield word(each, f"options: {name}")


def _environment(raw: object) -> Pairs:
    if not isinstance(raw, dict):
        raise ValueError('environment is a table of texts, as in environment = {LLAMA_ARG_JINJA = "1"}')
    for name in raw:
        if not _VARIABLE.fullmatch(name):
            raise ValueError(f"environment: {name!r} is no name of a variable")
    return tuple(sorted((name, word(value, f"environment: {name}")) for name, value in raw.items()))


def _path_text(raw: object) -> str:
    return str(values.path(raw))


def _user(raw: object) -> str:
    if not isinstance(raw, str) or not _USER.fullmatch(raw):
        raise ValueError(f"user: {raw!r} is no name of a user")
    if raw == "root":
        raise ValueError("user: servers do not run as root (leave it out: they run as memscaler-servers)")
    return raw


def port(raw: object) -> int:
    """Raise ValueError if it is no port that can be known before the start."""
    if not isinstance(raw, int) or isinstance(raw, bool) or not 1 <= raw <= MAX_PORT:
        raise ValueError(f"port: {raw!r} is no port (write a number from 1 to {MAX_PORT}, as in port = 8080)")
    return raw


def _gpus(raw: object) -> tuple[str, ...]:
    if raw == AUTO:
        return (AUTO,)
    if not isinstance(raw, list):
        raise ValueError('gpus is a list, as in gpus = ["gpu0"], or "auto"')
    try:
        return parse_gpus(map(str, raw), "PORT")
    except ValueError as err:
        raise ValueError(f"gpus: {err}") from None


def _health(raw: object) -> str:
    if raw is False or raw == "off":
        return ""
    if not isinstance(raw, str) or not re.fullmatch("/[!-~]{0,255}", raw):
        raise ValueError(f'health: {raw!r} is no path (write "/health" or "off")')
    return raw


def _switch(raw: object) -> bool:
    """Only TOML's own: what else reads as true in a variable is a slip of the pen in a file."""
    if not isinstance(raw, bool):
        raise ValueError(f"enabled: {raw!r} is neither true nor false (write it without quotes)")
    return raw


NAME = Kind(_name, {"type": "string", "pattern": f"^{NAME_PATTERN}$"})
COMMAND = Kind(_command, _WORDS_SCHEMA, list)
ENVIRONMENT = Kind(
    _environment,
    {"type": "object", "additionalProperties": {"type": ["string", "number"]}},
    dict,
)
ENABLED = Kind(_switch, {"type": "boolean"}, bool)


KEYS = (
    key("name", NAME, "", "What it is called, unlike all others. In a file of servers.d that of the file."),
    key(
        "command",
        COMMAND,
        "",
        "The program and its arguments, as a list, or as a text that is split like a shell does.",
    ),
    key(
        "model",
        Kind(_path_text, {"type": "string", "pattern": "^/"}),
        "",
        "Instead of a command: the path of a GGUF file, for llama-server.",
    ),
    key(
        "options",
        Kind(_options, {"anyOf": [*_WORDS_SCHEMA["anyOf"], {"type": "object"}]}, list),  # type: ignore[misc]
        "",
        "With a model: more for llama-server, a list of words or a table: {ctx-size = 8192, flash-attn = true}.",
    ),
    key("environment", ENVIRONMENT, "", "A table of variables."),
    key(
        "directory",
        Kind(_path_text, {"type": "string", "pattern": "^/"}),
        "",
        "Where it runs. Default: the state directory of its supervisor.",
    ),
    key(
        "user",
        Kind(_user, {"type": "string", "pattern": f"^{_USER.pattern}$"}),
        "",
        "Who runs it: the supervisor memscaler-servers@USER. Default: memscaler-servers.",
    ),
    key(
        "port",
        Kind(port, {"type": "integer", "minimum": 1, "maximum": MAX_PORT}, int),
        "",
        f"Where it listens. Found in the command (--port) or the environment ({PORT_VARIABLE}) by itself.",
    ),
    key(
        "gpus",
        Kind(
            _gpus,
            {
                "anyOf": [
                    {"const": AUTO},
                    {
                        "type": "array",
                        "items": {
                            "anyOf": [{"type": "string", "pattern": GPU_PATTERN}, {"type": "integer", "minimum": 0}]
                        },
                    },
                ]
            },
            list,
        ),
        "",
        'The only GPUs that it sees, or "auto": the planner places the model at each start. Default: what the command '
        "says.",
    ),
    key("enabled", ENABLED, "true", "Whether it is started."),
    key(
        "restart",
        values.choice("always", "on-failure", "never"),
        "on-failure",
        "When it is started again after it has ended: always, on-failure or never.",
    ),
    key(
        "restart_after",
        values.duration_s(0.1),
        "1s",
        "The pause before a restart; doubles with each failure in a row.",
        field="restart_after_s",
    ),
    key(
        "restart_limit",
        values.whole(0, 1000),
        "5",
        "Failures in a row that are answered with a restart; one more and it has failed. 0: no limit.",
    ),
    key(
        "restart_window",
        values.duration_s(1),
        "10m",
        "Once it was ready for so long, failures are counted anew.",
        field="restart_window_s",
    ),
    key(
        "start_timeout",
        values.duration_or_off_s,
        "10m",
        'Time that it has to load its model; "off": for ever.',
        field="start_timeout_s",
    ),
    key(
        "stop_timeout",
        values.duration_s(0),
        "10s",
        "Time between the request to end (SIGTERM) and its end by force (SIGKILL).",
        field="stop_timeout_s",
    ),
    key(
        "health",
        Kind(
            _health,
            {"anyOf": [{"type": "string", "pattern": "^(/[!-~]*|off)$"}, {"const": False}]},
            lambda path: path or "off",
        ),
        "/health",
        'What is asked while it starts, until it says 200; "off": it is ready when its port listens.',
    ),
    key(
        "health_every",
        values.duration_or_off_s,
        "off",
        "Ask again so often while it runs. Each time wakes its GPUs.",
        field="health_every_s",
    ),
    key("log", values.choice("auto", "journal", "file"), "auto", "Where its output goes: auto, journal or file."),
)
HOOK_KEYS = (
    key("name", NAME, "", "What it is called."),
    key("command", COMMAND, "", "The program and its arguments."),
    key("environment", ENVIRONMENT, "", "A table of variables."),
    key("enabled", ENABLED, "true", "Whether it is started."),
)
HOOK = "hook"
HOOK_HELP = "A program that runs beside it, from its first readiness to its end; [[server.hook]] may have hooks, too."


def ports_in(words: Iterable[str], variables: Pairs) -> dict[int, str]:
    """The ports that a command line and its environment name, and where. 0 (any) is none."""
    found: dict[int, str] = {}
    before = ""
    for each in words:
        digits = each.removeprefix("--port=") if each.startswith("--port=") else each if before == "--port" else ""
        _note(digits, "--port", found)
        before = each
    _note(dict(variables).get(PORT_VARIABLE, ""), PORT_VARIABLE, found)
    return found


def _note(digits: str, where: str, found: dict[int, str]) -> None:
    if digits.isascii() and digits.isdigit() and len(digits) <= len(str(MAX_PORT)) and 1 <= int(digits) <= MAX_PORT:
        found.setdefault(int(digits), where)
