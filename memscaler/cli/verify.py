"""`memscaler verify`: is every GPU as memscaler means it to be? By a fresh look at the driver, not from memory."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from typing import Any

import typer

from memscaler.cli.options import Gpus, Json, RuntimeDir
from memscaler.cli.output import labelled, plain, print_json, show
from memscaler.cli.paint import Paint, paint

FAILED = 1
OK, DRIFT = "ok", "drift"
NOT_YET = (DRIFT, "changing")
AGAIN_S = 1.0  # a card may move its clock for an instant, and a GPU may be on its way to another state
MOST_LOOKS = 6
STYLES = {OK: "ok", DRIFT: "bad"}

Entry = Mapping[str, Any]


def verify(gpus: Gpus = None, runtime_dir: RuntimeDir = None, as_json: Json = False) -> None:
    """Compare what memscaler has set with what the driver says now, by a fresh look at every GPU.

    A parked GPU has its clocks down; nothing of memscaler's is set on any other. What is not as it is meant to be is
    looked at twice, a second apart. The exit code is 1 if a GPU has drifted, or does not answer.
    """
    document = _settled(runtime_dir, gpus or [])
    if as_json:
        print_json(document)
    else:
        show(_text(document, paint()))
    if not document["ok"]:
        raise typer.Exit(FAILED)


def _settled(runtime_dir: str | None, names: list[str]) -> dict[str, Any]:
    """The first look after which nothing is to be looked at again: a drift counts if the look before saw it, too."""
    from memscaler.cli.chosen import chosen
    from memscaler.cli.client import Client

    client, before = Client(runtime_dir), dict[str, str]()
    document = client.verify()
    for look in range(MOST_LOOKS):
        if look:
            time.sleep(AGAIN_S)
            document = client.verify()
        document["gpus"] = chosen(names, document["gpus"])
        document["ok"] = all(gpu["verdict"] == OK for gpu in document["gpus"])
        verdicts = {gpu["uuid"]: gpu["verdict"] for gpu in document["gpus"]}
        if all(now == before.get(uuid) or now not in NOT_YET for uuid, now in verdicts.items()):
            break
        before = {uuid: now for uuid, now in verdicts.items() if now == DRIFT}
    return document


def _text(document: Entry, colour: Paint) -> str:
    if document["mode"] == "released":
        return "the driver is let go of: nothing is set, until `memscaler resume`"
    if not document["gpus"]:
        return "no GPU is governed: there is nothing to verify"
    return "\n".join(_lines(document["gpus"], colour))


def _lines(gpus: Iterable[Entry], colour: Paint) -> Iterable[str]:
    gpus = list(gpus)
    width, wide = max(len(plain(gpu["gpu"])) for gpu in gpus), max(len(gpu["verdict"]) for gpu in gpus)
    for gpu in gpus:
        verdict = plain(gpu["verdict"])
        word = colour(STYLES.get(verdict, "unsure"), verdict if verdict == OK else verdict.upper())
        padding = " " * (wide - len(verdict))
        yield f"{plain(gpu['gpu']):{width}}  {word}{padding}  {plain(gpu['state'])}: {plain(gpu['detail'])}"
        yield from labelled("do:", plain(gpu["remedy"]))
