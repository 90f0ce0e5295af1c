"""What the status page shows: the status document in words, and less of it.

Every user of the machine can open the page, and the control socket is for few: so what people wrote (reasons of holds,
pauses, releases), who they are, and process ids are left out. What is left, /metrics tells everybody as well, but for
the sentences about states and servers; those their supervisor has in a file that everybody may read.
"""

from __future__ import annotations

import re
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from itertools import pairwise
from typing import Any

from memscaler.core.model import SECOND_NS
from memscaler.core.snapshot import GpuSnapshot, Snapshot
from memscaler.core.text import energy, idle_time
from memscaler.observe import gpuctl
from memscaler.observe.status import document
from memscaler.observe.words import NONE, span

Fields = Mapping[str, str]
Document = Mapping[str, Any]

LISTS = ("ports", "servers", "asleep", "rules", "changes", "notes")  # hidden while they are empty
STUCK = "It could not be brought back: memscaler status tells why."
SLEEPER_DOWN = "Nothing goes down the ladder now: memscaler status tells why."
WINDOW_S = 600.0  # of the plots
MOST_CHANGES = 12
_PID = re.compile(r"\s*\(?\bpid \d+\)?")
_HEARD = {"connection": "a client connected", "ledger": "a client was found connected"}
_USUAL = {"awake": "a client is connected", "cooling": "no connection is at work", "held": "something holds it"}
_OF_CLIENTS = {_USUAL["awake"], *_HEARD.values()}
_OF_OTHER_STATES = ("", "quiet", "hold", *_HEARD)  # reasons of the park or wake before
_NEXT = {"parked": "Parks in {} if it stays quiet.", "trusted again": "Is tried again in {}."}


@dataclass(frozen=True, slots=True)
class Entry:
    """One of a list. key: tells it apart from its neighbours."""

    key: str
    fields: Fields


@dataclass(frozen=True, slots=True)
class Plot:
    """One GPU's last WINDOW_S. Times are seconds of CLOCK_MONOTONIC.

    states: (since when, state), the oldest first; what was before the first of them is not known. power: (when, watts).
    """

    states: tuple[tuple[float, str], ...]
    power: tuple[tuple[float, float], ...]


@dataclass(frozen=True, slots=True)
class View:
    """The page's texts: single ones, and lists of entries. plots: by the key of the GPU's entry. at_s: now."""

    at_s: float
    fields: Fields
    lists: Mapping[str, tuple[Entry, ...]] = field(default_factory=dict)
    plots: Mapping[str, Plot] = field(default_factory=dict)


def unknown() -> View:
    """The governor does not answer."""
    return View(0.0, {"title": "memscaler", "no_gpus": "The governor does not answer just now."})


def view(snapshot: Snapshot) -> View:
    """Everything that the page shows."""
    told, now_unix_s = document(snapshot), time.time()
    gpus, ports = told["gpus"], told["watches"]
    driven = frozenset(name for port in ports for name in port["gpus"])
    lists = {
        "gpus": tuple(Entry(gpu["uuid"], _clean(_gpu(gpu, driven))) for gpu in gpus),
        "ports": tuple(Entry(_printable(f"{port['port']}@{port['scope']}"), _clean(_port(port))) for port in ports),
        "servers": tuple(Entry(server["name"], _clean(_server(server))) for server in told["servers"]),
        "asleep": tuple(_asleep(told["sleep"])),
        "rules": tuple(Entry(name, _clean(texts)) for name, texts in gpuctl.rows(told["gpuctl"])),
        "changes": tuple(_changes(told["transitions"], now_unix_s)),
        "notes": tuple(_notes(told, snapshot)),
    }
    fields = _page(told) | {name: "some" if lists[name] else "" for name in LISTS}
    plots = {gpu.identity.uuid: _plot(gpu, snapshot.at_ns / SECOND_NS) for gpu in snapshot.gpus}
    return View(snapshot.at_ns / SECOND_NS, _clean(fields), lists, plots)


# ---- the page as a whole --------------------------------------------------------------------------------------------


def _page(told: Document) -> dict[str, str]:
    gpus = told["gpus"]
    counts = Counter(gpu["state"] for gpu in gpus)
    states = ", ".join(f"{count} {state}" for state, count in sorted(counts.items())) or "none"
    watts = [gpu["power_w"] for gpu in gpus if gpu["power_w"] is not None]
    mode, mode_text = _mode(told)
    return {
        "title": f"{states} · memscaler on {told['hostname']}",
        "hostname": told["hostname"],
        "version": told["version"],
        "driver": told["driver_version"],
        "uptime": span(told["uptime_s"]),
        "as_of": datetime.now(tz=UTC).strftime("%Y-%m-%d %H:%M:%S UTC"),
        "mode": mode,
        "mode_text": mode_text,
        "gpus": states,
        "power": f"{sum(watts):.0f} W" if watts else NONE,
        "saved": energy(sum(gpu["energy_saved_j"] for gpu in gpus)),
        "saved_today": energy(sum(gpu["energy_saved_today_j"] for gpu in gpus)),
        "connections": str(sum(port["connections"] for port in told["watches"])),
        "no_gpus": "" if gpus else "No GPU is governed.",
    }


def _mode(told: Document) -> tuple[str, str]:
    """What is out of the ordinary, in a word and in a sentence."""
    if told["mode"] == "released":
        ago = span(time.time() - told["released"]["since_unix_s"])
        return "Released.", f"The driver was let go of {ago} ago, and nothing is governed until `memscaler resume`."
    if told["mode"] == "paused":
        return "Paused.", f"Every GPU is kept awake {_until(told['paused']['expires_in_s'])}."
    if told["dry_run"]:
        return "Dry run.", "Decisions are only logged, and no GPU is touched."
    return "", ""


def _changes(transitions: Sequence[Document], now_unix_s: float) -> Iterator[Entry]:
    """The latest one first."""
    for each in reversed(transitions[-MOST_CHANGES:]):
        at_unix_s = each["at_unix_s"]
        fields = {
            "at": datetime.fromtimestamp(at_unix_s, tz=UTC).isoformat(timespec="seconds"),
            "ago": f"{span(now_unix_s - at_unix_s)} ago",
            "gpu": each["gpu"],
            "was": each["was"],
            "state": each["state"],
            "why": _why(each["state"], each["reason"], was=each["was"]),
        }
        yield Entry(f"{at_unix_s} {each['gpu']}", _clean(fields))


def _notes(told: Document, snapshot: Snapshot) -> Iterator[Entry]:
    notes = [(f"{each['gpu']} is left alone", each["reason"]) for each in told["ungoverned"]]
    notes += [(f"{each['watch']} is not watched", each["reason"]) for each in told["waiting"]]
    notes += [("The kernel", notice) for notice in snapshot.kernel.notices]
    notes += [("Servers", notice) for notice in snapshot.supervised.notices]
    notes += _of_sleep(told["sleep"])
    notes += gpuctl.remarks(told["gpuctl"])
    for number, (about, text) in enumerate(notes):
        yield Entry(str(number), _clean({"about": f"{about}:", "text": text}))


# ---- a GPU, a port --------------------------------------------------------------------------------------------------


def _gpu(gpu: Document, driven: frozenset[str]) -> dict[str, str]:
    """driven: the GPUs that a watched port drives."""
    state, intent, left_s = gpu["state"], gpu["intent"], gpu["next_in_s"]
    held = [_until(hold["expires_in_s"]) for hold in gpu["holds"]]
    why = _why(state, gpu["reason"])
    if state == "awake" and why in _OF_CLIENTS and gpu["gpu"] not in driven:
        why = "no port that drives it is watched"
    return {
        "gpu": gpu["gpu"],
        "name": gpu["name"],
        "state": state,
        "state_word": state,
        "why": f"For {span(gpu['since_s'])}" + f": {why}" * bool(why) + "." * (not why.endswith(".")),
        "next": "" if left_s is None else _next(gpu["next"], left_s),
        "auto": gpu["idle_why"] and f"Parks after {idle_time(gpu['idle_after_s'])}: {gpu['idle_why']}.",
        "lever": gpu["lever"] or "none",
        "intent": _target(intent) if intent else "nothing",
        "watts": _number(gpu["power_w"], "{:.1f} W"),
        "memory_clock": _number(gpu["memory_clock_mhz"], "{} MHz"),
        "graphics_clock": _number(gpu["graphics_clock_mhz"], "{} MHz"),
        "pstate": _number(gpu["pstate"], "P{}"),
        "utilization": _number(gpu["utilization_ratio"], "{:.0%}"),
        "temperature": _number(gpu["temperature_c"], "{} °C"),
        "parked": span(gpu["parked_s"]),
        "saved_today": energy(gpu["energy_saved_today_j"]),
        "saved": energy(gpu["energy_saved_j"]),
        "holds": "; ".join(held),
        "conflict": gpu["conflict"],
        "remedy": gpu["remedy"],
        "errors": ", ".join(f"{op}: {count}" for op, count in sorted(gpu["errors"].items())),
    }


def _next(what: str, left_s: float) -> str:
    return _NEXT.get(what, what + " in {}.").format(span(left_s))


def _target(intent: Document) -> str:
    return f"P{intent['target']}" if intent["lever"] == "pstate" else f"{intent['target']} MHz"


def _port(port: Document) -> dict[str, str]:
    silent = port["silent"]
    return {
        "port": str(port["port"]),
        "scope": "" if port["scope"] == "host" else port["scope"],
        "server": port["server"] or NONE,
        "gpus": ", ".join(port["gpus"]) or NONE,
        "connections": str(port["connections"]),
        "silent": f"{silent} silent" if silent else "",
        "idle": span(port["idle_s"]) if port["idle_s"] else NONE,
    }


def _server(server: Document) -> dict[str, str]:
    """Nothing about its command, its variables or its model: these are its user's."""
    again_s = server["starts_in_s"]
    again = "" if again_s is None else f"It is started again in {span(again_s)}."
    state = server["state"] if server["supervised"] else "unknown"
    last = "" if server["supervised"] else f"Its supervisor has ended; it was {server['state']}."
    return {
        "server": server["name"],
        "user": server["user"],
        "state": state,
        "port": str(server["port"] or NONE),
        "gpus": ", ".join(server["gpus"]) or NONE,
        "restarts": str(server["restarts"]),
        "since": span(server["since_s"]),
        "why": " ".join(_sentence(each) for each in (last, server["reason"], again) if each),
    }


# What a GPU is painted as that is in such a state.
_RUNG_STATES = {"down": "parked", "entering": "cooling", "leaving": "cooling", "stuck": "unmanaged", "up": "awake"}


def _asleep(told: Document | None) -> Iterator[Entry]:
    """The servers of the ladder. What keeps one up may be a person's word, and is left out."""
    for server in () if told is None else told["servers"]:
        stage = next((each for each in server["stages"] if each["stage"] == server["stage"]), None)
        wake = None if stage is None else stage["wake"]
        coming = "" if server["next_in_s"] is None else f"{server['next']} in {span(server['next_in_s'])}"
        fields = {
            "server": server["name"],
            "gpus": ", ".join(server["gpus"]) or NONE,
            "rung": _RUNG_STATES[server["rung"]],
            "standing": server["standing"],
            "since": "" if server["since_s"] is None else f"for {span(server['since_s'])}",
            "why": " ".join(filter(None, (_by(server), STUCK if server["rung"] == "stuck" else ""))),
            "next": coming or NONE,
            "wakes_in": NONE if wake is None else f"{wake['median_s']:.1f} s",
        }
        yield Entry(f"{server['port']}@{server['scope']}", _clean(fields))


def _by(server: Document) -> str:
    return f"{server['asleep_by']} has put it to sleep." if server["asleep_by"] else ""


def _of_sleep(told: Document | None) -> Iterator[tuple[str, str]]:
    """What is to be noted: no words of people."""
    if told is None:
        return
    machine = told["machine"]
    if told["problem"]:
        yield "Deeper stages", SLEEPER_DOWN
    if machine["rung"] != "up":
        yield "Suspend", f"The machine is {machine['rung']} for {span(machine['since_s'] or 0.0)}."
    elif machine["never"]:
        yield "Suspend", "An operator keeps the machine up."
    elif machine["next_in_s"] is not None and not machine["why_not"]:
        yield "Suspend", f"In {span(machine['next_in_s'])}, if everything stays quiet."
    if machine["suspends"]:
        yield "Suspend", f"The machine slept {span(machine['asleep_s'])} in all."


def _sentence(text: str) -> str:
    return text if text.endswith(".") else f"{text}."


def _plot(gpu: GpuSnapshot, at_s: float) -> Plot:
    states = [(since_ns / SECOND_NS, state) for since_ns, state in gpu.states or ((gpu.since_ns, gpu.state),)]
    shown = [each for each, (until_s, _) in pairwise([*states, (at_s, "")]) if until_s > at_s - WINDOW_S]
    power = ((at_ns / SECOND_NS, power_w) for at_ns, power_w in gpu.power)
    return Plot(
        tuple((min(at_s, round(max(since_s, at_s - WINDOW_S), 1)), state) for since_s, state in shown),
        tuple((round(when_s, 1), round(power_w, 1)) for when_s, power_w in power if when_s > at_s - WINDOW_S),
    )


# ---- words ----------------------------------------------------------------------------------------------------------


def _until(left_s: float | None) -> str:
    return "until that is ended" if left_s is None else f"for another {span(left_s)}"


def _why(state: str, reason: str, was: str = "parked") -> str:
    """A park's reason says nothing about what follows, nor does a wake's, but for the state that it led to."""
    if state == "awake" and was == "parked" and reason in _HEARD:
        return _HEARD[reason]
    return _USUAL[state] if state in _USUAL and reason in _OF_OTHER_STATES else reason


def _number(value: float | None, form: str) -> str:
    return NONE if value is None else form.format(value)


def _clean(fields: Fields) -> Fields:
    """No process ids, and nothing that has no shape of its own (control characters, marks that turn text around)."""
    return {name: _printable(_PID.sub("", text)) for name, text in fields.items()}


def _printable(text: str) -> str:
    return text if text.isprintable() else "".join(char if char.isprintable() else "\ufffd" for char in text)
