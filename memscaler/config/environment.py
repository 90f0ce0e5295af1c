"""Variables that look like ours and are none: somebody has misspelt one, and would wait for its effect in vain."""

from __future__ import annotations

import re
from collections.abc import Mapping

from memscaler.config.near import meant, nearest
from memscaler.config.schema import ENV_PREFIX, OPTIONS

SETTINGS = tuple(name for option in OPTIONS for name in option.env if name.startswith(ENV_PREFIX))
# What else has our prefix: read by the command line, by the simulated driver, by the tests.
OTHERS = ("MEMSCALER_DEBUG", "MEMSCALER_NVML_H", "MEMSCALER_SIM_CACHE", "MEMSCALER_SIM_STATE")
_OF_TESTS = re.compile("MEMSCALER_(TEST_.*|SOAK(_.*)?|FAULTS|FUZZ|UPDATE_GOLDEN)")
# Kubernetes sets these by itself for a service of our name, as Docker's links do.
_OF_KUBERNETES = re.compile(
    r"MEMSCALER_(SERVICE_(HOST|PORT(_.*)?)|PORT_\d+_(TCP|UDP)(_(PROTO|PORT|ADDR))?|NAME|ENV_.*)"
)


def unknown(environ: Mapping[str, str]) -> tuple[str, ...]:
    """A sentence for each variable that begins like ours and that nobody reads."""
    return tuple(
        _sentence(name) for name in sorted(environ) if name.startswith(ENV_PREFIX) and _is_stray(name, environ)
    )


def _is_stray(name: str, environ: Mapping[str, str]) -> bool:
    if name in (*SETTINGS, *OTHERS) or _OF_TESTS.fullmatch(name) or _OF_KUBERNETES.fullmatch(name):
        return False
    return not (name == "MEMSCALER_PORT" and "://" in environ[name])


def _sentence(name: str) -> str:
    known = (word.removeprefix(ENV_PREFIX) for word in (*SETTINGS, *OTHERS))  # with it, all would resemble each other
    near = "WATCH" if name == "MEMSCALER_PORT" else nearest(name.removeprefix(ENV_PREFIX), known)
    return f"{name}: nobody reads this variable" + meant(near and ENV_PREFIX + near)
