"""What `memscaler top` shows: lines of text for a width and a height, made from what is known. Draws nothing itself."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from rich.text import Text

from memscaler.cli import gpuctl_text
from memscaler.cli.output import plain, span
from memscaler.cli.sleep_text import machine_texts, wake_text
from memscaler.cli.sleep_text import server_text as sleep_text_of
from memscaler.cli.status_text import (
    hold_text,
    idle_text,
    lever_text,
    mhz,
    next_text,
    open_text,
    server_state,
    server_text,
    shortened,
)
from memscaler.cli.top.history import Histories, connections_of, sparkline
from memscaler.core.text import energy

STATES = {"awake": "cyan", "cooling": "yellow", "parked": "green", "held": "magenta", "unmanaged": "bold red"}
KEYS = (("up/down", "select"), ("h", "hold 1h"), ("u", "unhold"), ("p", "park"), ("P", "pause"), ("?", "help"))
SERVER_STATES = {
    "ready": "green",
    "failed": "bold red",
    "starting": "yellow",
    "waiting": "yellow",
    "stopping": "yellow",
}
RUNGS = ("stuck", "entering", "leaving", "down", "up")  # as they need attention
RUNG_STYLES = {"down": "green", "entering": "yellow", "leaving": "yellow", "stuck": "bold red"}
RULE_STYLES = {"held": "magenta", "unmanaged": "bold red"}
SERVER_WIDTH = 24
MOST_SERVERS = 8
QUIT = ("q", "quit")
HELP = """\
up, down, j, k   select a GPU
h                hold: keep the selected GPU awake for one hour
u                unhold: end every hold on it, whoever began it
p                park it now, without waiting for the idle time
P                pause: keep every GPU awake for one hour; again: go on
?                this help
q, Ctrl-C        quit; Ctrl-Z: for a while

POWER is what the card says, OPEN the connections to the ports that drive it;
the bars are the last seconds, the latest one on the right, from 0 to the
highest value since top was started. SAVED is an estimate.

Only root may steer; members of group memscaler may watch."""
LEAST_SPARK, MOST_POWER, MOST_OPEN = 4, 60, 24
FIXED = 59  # columns of a row without its sparklines
LOWEST_BODY = 4

Document = dict[str, Any]


@dataclass(slots=True)
class View:
    """What is known. problem: why nothing new is; message: the last word about a key, "" if there is none."""

    document: Document | None = None
    problem: str = ""
    message: str = ""
    selected: str = ""
    helps: bool = False
    unicode: bool = True
    histories: Histories = field(default_factory=Histories)

    @property
    def gpus(self) -> list[Document]:
        """Those that are governed."""
        return [] if self.document is None else self.document["gpus"]

    def selected_gpu(self) -> Document | None:
        """The one with the cursor; the first if that is gone."""
        return next((gpu for gpu in self.gpus if gpu["uuid"] == self.selected), self.gpus[0] if self.gpus else None)

    def move(self, by: int) -> None:
        """Put the cursor so many rows further down."""
        gpu = self.selected_gpu()
        if gpu is not None:
            at = min(len(self.gpus) - 1, max(0, self.gpus.index(gpu) + by))
            self.selected = self.gpus[at]["uuid"]


def try_out(document: Document) -> None:
    """Raise whatever drawing it would raise, whichever GPU is selected."""
    view = View(document)
    view.histories.add(document)
    _headline(view, 0)
    _transitions(document, len(document["transitions"]) + 2)
    _servers(document, len(document.get("servers", ())) + 2)
    _sleep(document, MOST_SERVERS + 4)
    _rules(document, MOST_SERVERS + 3)
    for gpu in view.gpus:
        view.selected = gpu["uuid"]
        _gpu_row(view, gpu, (LEAST_SPARK, LEAST_SPARK), is_chosen=True)
        _details(view, LEAST_SPARK)


def lines(view: View, width: int, height: int) -> list[Text]:
    """Exactly `height` lines of at most `width` columns."""
    body = _body(view, width, max(0, height - 2))
    body += [Text()] * (height - 2 - len(body))
    whole = [*body[: height - 2], _message(view), _keys()]
    for line in whole:
        line.truncate(width, overflow="ellipsis" if view.unicode else "crop")
    return whole[-height:]


def _body(view: View, width: int, height: int) -> list[Text]:
    head = _headline(view, width)
    if view.helps:
        return [*head, Text(), *map(Text, HELP.splitlines())]
    if view.document is None:
        return head
    detail = _details(view, width)
    room = max(1, height - len(head) - len(detail) - LOWEST_BODY - 2)
    rows = _gpu_rows(view, width, room)
    parts = [*head, Text(), *rows, Text(), *detail, Text()]
    parts += _servers(view.document, min(MOST_SERVERS + 2, height - len(parts) - LOWEST_BODY))
    parts += _sleep(view.document, min(MOST_SERVERS + 4, height - len(parts) - LOWEST_BODY))
    parts += _rules(view.document, min(MOST_SERVERS + 3, height - len(parts) - LOWEST_BODY))
    return parts + _transitions(view.document, height - len(parts))


def _headline(view: View, width: int) -> list[Text]:
    document, clock = view.document, time.strftime("%H:%M:%S")
    if document is None:
        return [_ends(Text("memscaler top", "bold"), clock, width), Text()]
    does = {"released": "has let go of the driver", "paused": "is paused"}.get(document["mode"], "governs")
    style = "bold" if document["mode"] == "governing" else "bold yellow"
    if view.problem:
        does, style = "does not answer; this was the last", "bold red"
    first = Text.assemble((f"memscaler {plain(document['version'])} {does}", style))
    first.append(", dry run" if document["dry_run"] else "", "bold yellow")
    first.append(f"  {plain(document['hostname'])}, up {span(document['uptime_s'])}", "dim")
    gpus = document["gpus"]
    today_j = sum(gpu.get("energy_saved_today_j") or 0.0 for gpu in gpus)
    power_w = sum(gpu["power_w"] or 0.0 for gpu in gpus)
    second = Text(f"{power_w:.0f} W now, saved {energy(today_j)} today, ", "dim")
    second.append(f"{energy(sum(gpu['energy_saved_j'] for gpu in gpus))} in total", "dim")
    if document["mode"] == "paused":
        second = Text(f"paused by {hold_text(document['paused'])}", "yellow")
    elif document["mode"] == "released":
        second = Text("`memscaler resume` when the driver is back", "yellow")
    return [_ends(first, clock, width), second]


def _ends(left: Text, right: str, width: int) -> Text:
    gap = width - left.cell_len - len(right)
    return Text.assemble(left, " " * gap, (right, "dim")) if gap > 0 else left


# ---- GPUs ----------------------------------------------------------------------------------------------------------


def _gpu_rows(view: View, width: int, room: int) -> list[Text]:
    """The heading and as many rows as there is room for, among them the selected one."""
    power, connections = _spark_widths(width)
    heading = f"  {'GPU':5} {'STATE':9} {'SINCE':>7} {'POWER':>7} {'':{power}} {'OPEN':>4} {'':{connections}} "
    heading += f"{'MEMORY':>8} {'GRAPHICS':>8}"
    chosen = view.selected_gpu()
    at = view.gpus.index(chosen) if chosen is not None else 0
    first = max(0, min(at - room // 2, len(view.gpus) - room))
    shown = view.gpus[first : first + room]
    rows = [_gpu_row(view, gpu, (power, connections), is_chosen=gpu is chosen) for gpu in shown]
    hidden = len(view.gpus) - len(shown)
    return [Text(heading.rstrip() + f"  (+{hidden})" * bool(hidden), "dim"), *rows]


def _spark_widths(width: int) -> tuple[int, int]:
    """Of the power and of the connections; what the columns leave."""
    left = max(0, width - FIXED)
    connections = min(MOST_OPEN, left * 2 // 5)
    power = min(MOST_POWER, left - connections)
    return (power, connections) if min(power, connections) >= LEAST_SPARK else (0, 0)


def _gpu_row(view: View, gpu: Document, sparks: tuple[int, int], *, is_chosen: bool) -> Text:
    history, open_now = view.histories.of(gpu["uuid"]), connections_of(gpu, view.document["watches"])  # type: ignore[index]
    style = STATES.get(gpu["state"], "")
    power = "-" if gpu["power_w"] is None else f"{gpu['power_w']:.1f} W"
    row = Text("> " if is_chosen else "  ", "bold")
    row.append(f"{plain(gpu['gpu']):5} ", "bold" if is_chosen else "")
    row.append(f"{plain(gpu['state']):9}", style)
    row.append(f" {span(gpu['since_s']):>7} {power:>7} ")
    row.append(_spark(history.power_w, sparks[0], view), style)
    row.append(f" {open_now:>4} ")
    row.append(_spark(history.connections, sparks[1], view), "cyan")
    row.append(f" {mhz(gpu['memory_clock_mhz']):>8} {mhz(gpu['graphics_clock_mhz']):>8}")
    return row


def _spark(values: Sequence[float | None], width: int, view: View) -> str:
    highest = max((value for value in values if value is not None), default=0.0)
    return sparkline(values, width, highest=highest, unicode=view.unicode)


def _details(view: View, width: int) -> list[Text]:
    """Of the selected GPU."""
    gpu = view.selected_gpu()
    if gpu is None or view.document is None:
        return [Text("no GPU is governed; see `memscaler ports`")]
    told = [("why", plain(gpu["reason"])), ("next", next_text(gpu)), ("auto", idle_text(gpu))]
    told.append(("open", open_text(gpu, view.document["watches"])))
    told += [("held", hold_text(hold)) for hold in gpu["holds"]]
    told += [("conflict", plain(gpu["conflict"])), ("remedy", plain(gpu["remedy"]))]
    today_j = gpu.get("energy_saved_today_j") or 0.0
    told.append(("saved", f"{energy(today_j)} today, {energy(gpu['energy_saved_j'])} in total"))
    title = Text.assemble((f"{plain(gpu['gpu'])}  {plain(gpu['name'])}", "bold"), (f"  {lever_text(gpu)}", "dim"))
    found = [title]
    for label, text in told:
        if text:
            style = "red" if label in ("conflict", "remedy") else ""
            found.append(Text.assemble((f"  {label:9}", "dim"), (text, style)))
    found.append(_power_line(view, gpu, width))
    return found


def _power_line(view: View, gpu: Document, width: int) -> Text:
    values = view.histories.of(gpu["uuid"]).power_w
    known = [value for value in values if value is not None]
    scale = f" {min(known):.0f} to {max(known):.0f} W" if known else ""
    spark = _spark(values, max(0, min(len(values), width - 11 - len(scale))), view)
    return Text.assemble(("  power    ", "dim"), (spark, STATES.get(gpu["state"], "")), (scale, "dim"))


# ---- servers -------------------------------------------------------------------------------------------------------


def _servers(document: Document, room: int) -> list[Text]:
    """Those that supervisors keep running, the troubled ones first if there is not room for all; an empty line."""
    servers = document.get("servers", ())
    if not servers or room < 3:  # noqa: PLR2004  # heading, one of them, the empty line
        return []
    shown = servers
    if len(servers) > room - 2:
        shown = sorted(servers, key=lambda server: server_state(server) in ("ready", "disabled"))[: room - 2]
    hidden = len(servers) - len(shown)
    heading = f"  {'SERVER':{SERVER_WIDTH}} {'STATE':9} {'SINCE':>7}  {'PORT':5}  {'RESTARTS':8}"
    found = [Text(heading.rstrip() + f"  (+{hidden})" * bool(hidden), "dim")]
    for server in shown:
        state = server_state(server)
        line = Text(f"  {shortened(plain(server['name']), SERVER_WIDTH):{SERVER_WIDTH}} ")
        line.append(f"{plain(state):9}", SERVER_STATES.get(state, ""))
        line.append(f" {span(server['since_s']):>7}  {plain(server['port'] or '-'):5}  {plain(server['restarts']):8}")
        line.append(f"  {server_text(server)}", "dim")
        found.append(line)
    return [*found, Text()]


# ---- deeper stages -------------------------------------------------------------------------------------------------


def _sleep(document: Document, room: int) -> list[Text]:
    """Servers in deeper stages, the stuck and the sleeping ones first; the machine; an empty line."""
    told = document.get("sleep")
    if not told or room < 3:  # noqa: PLR2004  # heading, one of them, the empty line
        return []
    about = [Text(f"  {label} {text}", "bold red" if "stuck" in label else "dim") for label, text in _of_machine(told)]
    about = about[: room - 2]
    fit = room - 2 - len(about)
    servers = sorted(told["servers"], key=lambda server: RUNGS.index(server["rung"]))[: max(0, fit)]
    hidden = len(told["servers"]) - len(servers)
    heading = f"  {'STAGE OF':{SERVER_WIDTH}} {'STAGE':21} {'SINCE':>7}  {'WAKES IN':8}"
    found = [Text(heading.rstrip() + f"  (+{hidden})" * bool(hidden), "dim")]
    for server in servers:
        line = Text(f"  {shortened(plain(server['name']), SERVER_WIDTH):{SERVER_WIDTH}} ")
        line.append(f"{plain(server['standing']):21}", RUNG_STYLES.get(server["rung"], ""))
        line.append(f" {span(server['since_s']):>7}  {wake_text(server):8}")
        line.append(f"  {sleep_text_of(server)}", "dim")
        found.append(line)
    return [*found, *about, Text()]


def _of_machine(told: Document) -> list[tuple[str, str]]:
    problem = [("sleeper stuck:", plain(told["problem"]))] if told["problem"] else []
    return [*problem, *machine_texts(told["machine"])]


# ---- other programs ------------------------------------------------------------------------------------------------


def _rules(document: Document, room: int) -> list[Text]:
    """Rules for other programs, those in force first; what is wrong with the arbiter; an empty line."""
    told = document.get("gpuctl")
    if not told or not (told["rules"] or told["problem"]) or room < 3:  # noqa: PLR2004  # heading, one, the empty line
        return []
    about = [Text(f"  arbiter: {plain(told['problem'])}", "bold red")] if told["problem"] else []
    shown = sorted(told["rules"], key=lambda rule: not rule["holds"])[: room - 2 - len(about)]
    hidden = len(told["rules"]) - len(shown)
    heading = f"  {'RULE':{SERVER_WIDTH}} {'NOW':9} {'SINCE':>7}  {'ACTS IN':8}"
    found = [Text(heading.rstrip() + f"  (+{hidden})" * bool(hidden), "dim")]
    for rule in shown:
        line = Text(f"  {shortened(plain(rule['name']), SERVER_WIDTH):{SERVER_WIDTH}} ")
        line.append(f"{gpuctl_text.standing(rule):9}", RULE_STYLES.get(gpuctl_text.paint_of(rule, told), ""))
        line.append(f" {span(rule['since_s']):>7}  {gpuctl_text.acts_in(rule):8}")
        line.append(f"  {gpuctl_text.rule_text(rule, told['controlled'], problems_first=True)}", "dim")
        found.append(line)
    return [*found, *about, Text()]


# ---- what was ------------------------------------------------------------------------------------------------------


def _transitions(document: Document, room: int) -> list[Text]:
    """The latest first, as many as there is room for below their heading."""
    if room < 2:  # noqa: PLR2004  # the heading alone says nothing
        return []
    found = [Text("RECENTLY", "dim")]
    for each in reversed(document["transitions"][1 - room :]):
        at = time.strftime("%H:%M:%S", time.localtime(each["at_unix_s"]))
        line = Text.assemble((f"  {at}  ", "dim"), f"{plain(each['gpu']):5} {plain(each['was']):9} -> ")
        line.append(f"{plain(each['state']):9}", STATES.get(each["state"], ""))
        line.append(f"  {plain(each['reason'])}", "dim")
        found.append(line)
    return found if len(found) > 1 else [*found, Text("  nothing has changed yet", "dim")]


def _keys() -> Text:
    return Text("   ").join(Text.assemble((key, "bold"), (f" {does}", "dim")) for key, does in (*KEYS, QUIT))


def _message(view: View) -> Text:
    if view.problem:
        return Text(view.problem, "bold red")
    return Text(view.message, "yellow")
