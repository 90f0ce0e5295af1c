"""[[gateway]] tables become gateways, or sentences about everything that is wrong with them."""

from __future__ import annotations

import itertools
from collections.abc import Collection, Mapping
from functools import partial
from typing import Any

from memscaler.config import tables
from memscaler.config.gateway_keys import GATEWAY_KEYS
from memscaler.config.gateway_loops import ANY, LEADS_ELSEWHERE, leads_back
from memscaler.config.stages import Gateway
from memscaler.config.tables import Place

TABLE = "gateway"
_OTHER_WORDS = {"backend": "to", "target": "to", "port": "listen", "timeout": "wait", "health": "ready"}


def read_list(raw: object, place: Place, problems: list[str]) -> list[Gateway]:
    """All [[gateway]] tables of a file. place: of the list."""
    if not isinstance(raw, list):
        problems.append(f"{place()}: write each gateway as a [[gateway]] table")
        return []
    found = []
    for nth, entry in enumerate(raw):
        at = partial(place, nth)
        if not isinstance(entry, dict):
            problems.append(f"{at()}: gateway: {entry!r} is not a table")
            continue
        gateway = read(entry, at, problems)
        found += [gateway] if gateway else []
    return found


def read(raw: Mapping[str, object], place: Place, problems: list[str]) -> Gateway | None:
    """One gateway, of a table or of flags (by the table's keys). None, and the problems, if it is none."""
    before = len(problems)
    told = tables.read(raw, GATEWAY_KEYS, place, problems, other_words=_OTHER_WORDS)
    for key, example in (("listen", 'listen = "0.0.0.0:8080"'), ("to", 'to = "127.0.0.1:8081"')):
        if key not in raw:
            problems.append(f"{place()}: a gateway needs {key}, as in {example}")
    problems += _together(told, place)
    if len(problems) > before:
        return None
    if told.get("protocol") == "tcp":
        told["ready"] = ""
    return Gateway(**told, origin=place())


def _together(told: Mapping[str, Any], place: Place) -> list[str]:
    """What does not go together."""
    wrong = []
    if told.get("mac") and told.get("server"):
        wrong.append(f"{place('server')}: server is of this machine, mac of another one: leave one of them out")
    wrong += [
        f"{place(key)}: {key} belongs to a machine that is woken: write its mac"
        for key in ("secure_on", "wake_to")
        if told.get(key) and not told.get("mac")
    ]
    if told.get("protocol") == "tcp":
        wrong += [
            f'{place(key)}: {key} needs protocol = "http": with tcp nobody looks at what is said'
            for key in ("no_wake_paths", "ready")
            if told.get(key)
        ]
    if "listen" in told and "to" in told and leads_back(told["listen"], told["to"]):
        wrong.append(
            f"{place('to')}: {told['to']} is where the gateway itself listens ({told['listen']}): {LEADS_ELSEWHERE}"
        )
    return wrong


def conflicts(gateways: Collection[Gateway]) -> list[str]:
    """Sentences: two that listen at the same place, or that have the same name; one that leads to another one."""
    problems = [
        f"{each.origin}: {each.to} is where the gateway {door.name or door.listen.port} listens ({door.listen}): "
        f"{LEADS_ELSEWHERE}"
        for each, door in itertools.permutations(gateways, 2)
        if leads_back(door.listen, each.to)
    ]
    for first, second in itertools.combinations(gateways, 2):
        one, other = first.listen, second.listen
        met = one.host == other.host or one.host in ANY or other.host in ANY
        if one.port and one.port == other.port and met:
            problems.append(
                f"{second.origin}: {other} is taken by the gateway in {first.origin}, which listens on {one}"
            )
        elif first.name and first.name == second.name:
            problems.append(f"{second.origin}: two gateways are called {first.name} (the first is in {first.origin})")
    return problems
