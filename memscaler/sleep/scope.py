"""Which rules hold for which server. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

from memscaler.config.stages import StageRule
from memscaler.core.stages import LADDER, Stage
from memscaler.sleep.drivers.protocol import Target
from memscaler.sleep.link import Rules

OF_SERVERS = frozenset(LADDER) - {Stage.PARK, Stage.SUSPEND}


def rules_for(server: Target, rules: Rules) -> tuple[StageRule, ...]:
    """One for each stage, in the ladder's order: of several, one that names the server goes before one for all."""
    chosen: dict[Stage, StageRule] = {}
    for rule in rules.stages:
        if rule.stage in OF_SERVERS and names(rule.servers, server, rules.gpu_names):
            before = chosen.get(rule.stage)
            if before is None or (rule.servers and not before.servers):
                chosen[rule.stage] = rule
    return tuple(chosen[stage] for stage in LADDER if stage in chosen)


def names(words: Iterable[str], server: Target, gpu_names: Mapping[str, str]) -> bool:
    """Whether one of these words means it: its name, its port, its key, or a GPU of its. No words mean all."""
    known = {server.name, server.key, str(server.port), *server.gpus} - {""}
    wanted = tuple(words)
    return not wanted or any(word in known or gpu_names.get(word) in server.gpus for word in wanted)


def suspend_rule(rules: Rules) -> StageRule | None:
    """The [[stage]] that suspends the machine."""
    return next((rule for rule in rules.stages if rule.stage is Stage.SUSPEND), None)


def names_by_uuid(rules: Rules) -> dict[str, str]:
    """What people call the GPUs: "gpu0", whatever else a rule calls them."""
    return {uuid: word for word, uuid in rules.gpu_names.items() if re.fullmatch("gpu[0-9]+", word)}
