"""[[gpuctl]] and [gvm] as they stand in a file: their rows of `config show`, their JSON Schema, their sample."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from memscaler.config.gpuctl import GpuctlRule, Gvm
from memscaler.config.gpuctl_keys import GPUCTL_KEYS, GVM_KEYS
from memscaler.config.schema import Settings
from memscaler.config.tables import Key

SAMPLE = """
# ---- other programs on the GPUs ----------------------------------------------
# What is set on them while clients are at work, or while all is quiet.
# memscaler.toml(5) has all keys, docs/gpuctl.md what works on which machine.

#[[gpuctl]]
#name = "batch-waits"
#processes = ["unit:batch.service"]
#freeze = true

#[[gpuctl]]
#name = "training-steps-back"
#watches = [8080]
#processes = ["user:trainer"]
#cpu_nice = 10
#compute_priority = 12
"""

_RULE = GpuctlRule(name="")
_GVM = Gvm()

Document = dict[str, object]
Table = GpuctlRule | Gvm


def effective(settings: Settings) -> Iterator[tuple[str, object, str]]:
    """(key, value as the file has it, where it comes from) of what is not the default; of rules also when."""
    for rule in settings.gpuctl:
        head = f"gpuctl.{rule.name}"
        yield f"{head}.while", rule.when, rule.origin
        for key, value in _told(rule, _RULE, GPUCTL_KEYS):
            if key not in ("name", "while"):
                yield f"{head}.{key}", value, rule.origin
    for key, value in _told(settings.gvm, _GVM, GVM_KEYS):
        yield f"gvm.{key}", value, settings.origins.get(f"gvm.{key}", "default")


def _told(table: Table, plain: Table, keys: Iterable[Key]) -> Iterator[tuple[str, object]]:
    for key in keys:
        value = getattr(table, key.field)
        if value != getattr(plain, key.field):
            yield key.key, key.parse.write(value)


def schemas() -> Document:
    """Of each table, by its key at the top of the file."""
    return {
        "gpuctl": {
            "description": "What is set on other programs of the GPUs, and when.",
            "type": "array",
            "items": {**_of_keys(GPUCTL_KEYS, _RULE), "required": ["name", "processes"]},
        },
        "gvm": {"description": "Where GVM's driver is.", **_of_keys(GVM_KEYS, _GVM)},
    }


def _of_keys(keys: Iterable[Key], plain: Table) -> Document:
    properties = {}
    for key in keys:
        shown = {"default": key.parse.write(getattr(plain, key.field))} if key.default else {}
        properties[key.key] = {"description": key.help, **key.parse.schema, **shown}
    return {"type": "object", "properties": properties, "additionalProperties": False}
