"""Deeper sleep and gateways as they stand in a file: their rows of `config show`, their JSON Schema, their sample."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from memscaler.config.gateway_keys import GATEWAY_KEYS
from memscaler.config.schema import Settings
from memscaler.config.stage_keys import STAGE_KEYS, SUSPEND_KEYS
from memscaler.config.stages import Gateway, StageRule, Suspend
from memscaler.config.tables import Key

SAMPLE = """
# ---- deeper sleep ------------------------------------------------------------
# What follows parking if nobody comes, each stage after more quiet time. None
# of this happens by itself. memscaler.toml(5) has all keys, docs/sleep.md what
# each stage saves and what it costs.

#[[stage]]
#after = "10m"
#do = "server-sleep"

#[[stage]]
#after = "1h"
#do = "stop-server"
#servers = ["chat"]

#[[stage]]
#after = "2h"
#do = "suspend"

#[suspend]
#never = ["Mon-Fri 09:00-18:00"]

# ---- gateways ----------------------------------------------------------------
# Where `memscaler gateway` lets clients wait for a server, or a machine, that
# sleeps.

#[[gateway]]
#listen = "0.0.0.0:9080"
#to = "127.0.0.1:8080"
#server = "chat"
"""

_STAGE = StageRule(stage=STAGE_KEYS[1].parse("park"), after_s=0)
_SUSPEND = Suspend()
_GATEWAY = Gateway(listen=GATEWAY_KEYS[0].parse("[::]:0"), to=GATEWAY_KEYS[1].parse("[::1]:1"))
_SECRETS = ("secure_on",)

Document = dict[str, object]
Table = StageRule | Suspend | Gateway


def effective(settings: Settings) -> Iterator[tuple[str, object, str]]:
    """(key, value as the file has it, where it comes from) of what is not the default."""
    for rule in settings.stages:
        whom = f"({','.join(rule.servers)})" if rule.servers else ""
        head = f"stage.{rule.stage}{whom}"
        yield f"{head}.after", STAGE_KEYS[0].parse.write(rule.after_s), rule.origin
        for key, value in _told(rule, _STAGE, STAGE_KEYS):
            if key not in ("after", "do", "servers"):
                yield f"{head}.{key}", value, rule.origin
    for key, value in _told(settings.suspend, _SUSPEND, SUSPEND_KEYS):
        yield f"suspend.{key}", value, settings.origins.get(f"suspend.{key}", settings.suspend.origin)
    for gateway in settings.gateways:
        head = f"gateway.{gateway.name or gateway.listen}"
        yield from (
            (f"{head}.{key}", value, gateway.origin)
            for key, value in _told(gateway, _GATEWAY, GATEWAY_KEYS)
            if key != "name"
        )


def _told(table: Table, plain: Table, keys: Iterable[Key]) -> Iterator[tuple[str, object]]:
    for key in keys:
        value = getattr(table, key.field)
        if value != getattr(plain, key.field):
            yield key.key, "..." if key.key in _SECRETS else key.parse.write(value)


def schemas() -> Document:
    """Of each table, by its key at the top of the file."""
    return {
        "stage": {
            "description": "What follows parking, each after more quiet time.",
            "type": "array",
            "items": {**_of_keys(STAGE_KEYS, _STAGE), "required": ["after", "do"]},
        },
        "suspend": {
            "description": 'What the stage "suspend" goes by.',
            **_of_keys(SUSPEND_KEYS, _SUSPEND),
        },
        "gateway": {
            "description": "Where `memscaler gateway` listens, and what is behind it.",
            "type": "array",
            "items": {**_of_keys(GATEWAY_KEYS, _GATEWAY), "required": ["listen", "to"]},
        },
    }


def _of_keys(keys: Iterable[Key], plain: Table) -> Document:
    properties = {}
    for key in keys:
        shown = {"default": key.parse.write(getattr(plain, key.field))} if key.default else {}
        properties[key.key] = {"description": key.help, **key.parse.schema, **shown}
    return {"type": "object", "properties": properties, "additionalProperties": False}
