"""A picture of a plan for the terminal: a bar per GPU, as long as its memory."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from memscaler.cli.planning.text import label, layers, short_name
from memscaler.planner.devices import Budget, Device
from memscaler.planner.placement import Placement, Share
from memscaler.planner.sizes import size

if TYPE_CHECKING:
    from rich.text import Text

# What a part is, its style, and its sign where there is no colour.
PARTS = (
    ("others", "bright_black", "x"),
    ("weights", "cyan", "W"),
    ("context", "magenta", "C"),
    ("compute", "yellow", "c"),
    ("reserve", "blue", "r"),
    ("free", "green", "."),
)


def amounts(gpu: Device, share: Share | None, reserve_bytes: int) -> tuple[int, ...]:
    """Bytes in the order of PARTS; their sum is the whole memory."""
    weights, context, compute = (
        (share.weight_bytes, share.context_bytes, share.compute_bytes) if share is not None else (0, 0, 0)
    )
    others = gpu.total_bytes - gpu.free_bytes
    left = max(gpu.free_bytes - weights - context - compute, 0)
    reserve = min(reserve_bytes, left)
    return others, weights, context, compute, reserve, left - reserve


def cells(parts: Sequence[int], width: int) -> list[int]:
    """How many cells each part gets: their sum is the width, and what there is at all has one if there is room."""
    total = sum(parts)
    if not total:
        return [0] * len(parts)
    exact = [part * width / total for part in parts]
    counts = [max(int(each), 1 if part else 0) for each, part in zip(exact, parts, strict=True)]
    while sum(counts) != width:
        step = 1 if sum(counts) < width else -1
        able = [index for index, count in enumerate(counts) if parts[index] and (step > 0 or count > 1)]
        if not able:
            break
        worst = max(able, key=lambda index: step * (exact[index] - counts[index]))
        counts[worst] += step
    return counts


def draw(made: Placement, devices: Sequence[Device], budget: Budget) -> None:
    """Print it."""
    from rich.console import Console
    from rich.text import Text

    console = Console(highlight=False)
    width, most = max(20, min(console.width, 100) - 24), max((gpu.total_bytes for gpu in devices), default=0)
    coloured = console.color_system is not None and not console.no_color  # NO_COLOR would leave nothing of the bars
    by_uuid = {share.device.uuid: share for share in made.shares}
    order = [*(share.device for share in made.shares), *(gpu for gpu in devices if gpu.uuid not in by_uuid)]
    for gpu in order:
        share = by_uuid.get(gpu.uuid)
        length = max(len(PARTS), width * gpu.total_bytes // max(most, 1))
        bar = _bar(amounts(gpu, share, budget.reserve_bytes), length, coloured=coloured)
        console.print(Text(f"{label(gpu):<6}"), bar, Text(f" {size(gpu.total_bytes)}"), sep="", soft_wrap=True)
        what = f"layers {layers(share)}, {size(share.used_bytes)}" if share else "not used"
        console.print(Text(f"      {short_name(gpu)}: {what}", style="dim"), soft_wrap=True)
    legend = Text("      ")
    for name, style, sign in PARTS:
        legend.append("  " if coloured else f"{sign} ", style=f"on {style}" if coloured else "")
        legend.append(f" {name}  ")
    console.print(legend, soft_wrap=True)


def _bar(parts: Sequence[int], width: int, *, coloured: bool) -> Text:
    from rich.text import Text

    bar = Text()
    for (_, style, sign), count in zip(PARTS, cells(parts, width), strict=True):
        bar.append((" " if coloured else sign) * count, style=f"on {style}" if coloured else "")
    return bar
