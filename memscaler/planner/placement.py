"""Where each layer of a model goes. Pure: bytes in, llama.cpp's arguments out.

The slots of a model (its layers, then the output) fill the GPUs in the order given, each as far as its budget reaches:
one run of slots per GPU, which is all that llama.cpp can express. Filling leaves as many GPUs as possible without a
slot: these are not shown to the server, have no CUDA context, and can sleep. No other way of cutting the slots into
runs in this order reaches further, since a GPU that takes fewer leaves more to those behind it.

What does not fit is cut at the front: the first layers stay on the CPU (-ngl), or the experts of the first layers do
(--n-cpu-moe), or both, whichever lets the CPU read least for a token.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from memscaler.core.errors import MemscalerError
from memscaler.planner import rule, visible
from memscaler.planner.devices import Budget, Device, Offer, offers
from memscaler.planner.load import Load
from memscaler.planner.sizes import more, shortfall


@dataclass(frozen=True, slots=True)
class Share:
    """What one GPU gets, in bytes. first, last: its layers, None if it has only the output.

    context_bytes: KV cache and recurrent state. compute_bytes: what it computes in, a projector's among it.
    """

    device: Device
    budget_bytes: int
    first: int | None
    last: int | None
    has_output: bool
    weight_bytes: int
    context_bytes: int
    compute_bytes: int

    @property
    def slots(self) -> int:
        return (0 if self.first is None or self.last is None else self.last - self.first + 1) + self.has_output

    @property
    def used_bytes(self) -> int:
        return self.weight_bytes + self.context_bytes + self.compute_bytes


@dataclass(frozen=True)
class Placement:
    """A plan. shares: of the GPUs that get something, in the order in which llama.cpp sees them.

    layers: of the model. cpu_experts: the first so many layers have their experts on the CPU. idle: GPUs that were
    offered and get nothing. cpu_bytes: what is left to the CPU, the token embedding among it. notes: sentences.
    source: who planned it. overrides: -ot, where llama.cpp's own program planned it.
    """

    layers: int
    shares: tuple[Share, ...]
    cpu_experts: int
    cpu_bytes: int
    idle: tuple[Device, ...] = ()
    notes: tuple[str, ...] = ()
    source: str = "memscaler"
    overrides: str = ""

    @property
    def gpu_layers(self) -> int:
        """As -ngl counts: the output is one."""
        return sum(share.slots for share in self.shares)

    @property
    def whole(self) -> bool:
        """True if all but the token embedding is on GPUs."""
        return self.gpu_layers == self.layers + 1 and not self.cpu_experts and not self.overrides

    @property
    def split(self) -> tuple[int, ...]:
        """As -ts takes it: slots per GPU; () with fewer than two GPUs, where it says nothing."""
        return tuple(share.slots for share in self.shares) if len(self.shares) > 1 else ()

    @cached_property
    def arguments(self) -> tuple[str, ...]:
        """What makes llama-server do it, together with the environment."""
        words = ["-ngl", str(self.gpu_layers)]
        if self.split:
            words += ["-ts", ",".join(map(str, self.split))]
        if self.cpu_experts:
            words += ["--n-cpu-moe", str(self.cpu_experts)]
        if self.overrides:
            words += ["-ot", self.overrides]
        return tuple(words)

    @property
    def uuids(self) -> tuple[str, ...]:
        """The GPUs that the server uses: those that wake when it is asked something."""
        return tuple(share.device.uuid for share in self.shares)

    @property
    def environment(self) -> dict[str, str]:
        """Shows these GPUs to llama-server, in this order, and none for none; {} with GPUs that nobody has."""
        if any(share.device.hypothetical for share in self.shares):
            return {}
        return visible.environment(self.uuids)

    def slots(self) -> rule.Slots:
        """For every layer and the output: which of `shares` has it, None is the CPU."""
        on = tuple(index for index, share in enumerate(self.shares) for _ in range(share.slots))
        return (None,) * (self.layers + 1 - len(on)) + on


@dataclass(frozen=True, slots=True)
class Remedy:
    """What would make it fit, tried out. arguments: llama-server's; what else they need is in the text."""

    text: str
    arguments: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Shortfall:
    """The model does not fit whole.

    missing_bytes: what the last GPU would have to have more. needed_bytes: the whole on GPUs. budget_bytes: all GPUs
    together. best: what can be done with less on the GPUs.
    """

    missing_bytes: int
    needed_bytes: int
    budget_bytes: int
    best: Placement
    remedies: tuple[Remedy, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def split_bytes(self) -> int:
        """What the budgets lose to whole layers and to a buffer for every GPU: one large GPU would lose nothing."""
        return max(0, self.missing_bytes - self.needed_bytes + self.budget_bytes)

    def __str__(self) -> str:
        return shortfall(self.missing_bytes, self.budget_bytes, self.split_bytes)


@dataclass(frozen=True, slots=True)
class _Cut:
    """What stays on the CPU: the layers before `start`, the experts of those before `experts`."""

    start: int
    experts: int

    def __bool__(self) -> bool:
        return self.start > 0 or self.experts > 0


class _Costs:
    """Bytes of slots, as sums from the front, so that a run of them costs one subtraction."""

    def __init__(self, load: Load) -> None:
        self.load = load
        self.layers = len(load.layers) + load.later_layers
        self.weights, self.experts, self.context = [0], [0], [0]
        for layer in load.layers:
            self.weights.append(self.weights[-1] + layer.weight_bytes)
            self.experts.append(self.experts[-1] + layer.expert_bytes)
            self.context.append(self.context[-1] + layer.context_bytes)
        for output in (*[0] * load.later_layers, load.output_bytes):
            self.weights.append(self.weights[-1] + output)
            self.context.append(self.context[-1])
            self.experts.append(self.experts[-1])

    @property
    def slots(self) -> int:
        return self.layers + 1

    def weight_bytes(self, begin: int, end: int, cut: _Cut) -> int:
        """Of the slots from begin to before end, without experts on the CPU."""
        away = max(min(cut.experts, end), begin)
        return self.weights[end] - self.weights[begin] - (self.experts[away] - self.experts[begin])

    def context_bytes(self, begin: int, end: int) -> int:
        """On a GPU, if the cache goes there at all (not with -nkvo)."""
        return self.context[end] - self.context[begin] if self.load.offload_context else 0

    def compute_bytes(self, begin: int, end: int, cut: _Cut, *, shared: bool) -> int:
        """What a GPU with these slots computes in. shared: there are other GPUs with slots."""
        load = self.load
        total = load.compute_bytes + load.output_compute_bytes * (end == self.slots)
        if begin == cut.start:
            total += load.projector_bytes + load.copied_bytes * bool(cut)
        return total + load.shared_compute_bytes * (shared and not cut and load.offload_context)

    def run_bytes(self, begin: int, end: int, cut: _Cut, *, shared: bool) -> int:
        if begin == end:
            return 0
        placed = self.weight_bytes(begin, end, cut) + self.context_bytes(begin, end)
        return placed + self.compute_bytes(begin, end, cut, shared=shared)

    def cpu_bytes(self, cut: _Cut) -> int:
        """What stays on the CPU."""
        load = self.load
        context = self.context[cut.start if load.offload_context else -1]
        weights = load.embedding_bytes + self.weights[cut.start] + self._away_bytes(cut)
        return weights + context + load.cpu_compute_bytes

    def read_bytes(self, cut: _Cut) -> float:
        """What the CPU reads for one token: of the experts only those that are used."""
        load = self.load
        share = load.experts_used / load.experts if load.experts else 1.0
        experts = self.experts[cut.start] + self._away_bytes(cut)
        return self.weights[cut.start] - self.experts[cut.start] + self.context[cut.start] + experts * share

    def _away_bytes(self, cut: _Cut) -> int:
        """Experts on the CPU of layers on GPUs."""
        return self.experts[max(cut.experts, cut.start)] - self.experts[cut.start]


def place(load: Load, devices: Sequence[Device], budget: Budget) -> Placement | Shortfall:
    """Everything that is wanted on GPUs, if it fits; else how much is missing and what can be done instead."""
    costs, offered = _Costs(load), offers(devices, budget)
    usable = [offer for offer in offered if offer.budget_bytes]
    wanted = _wanted(costs)
    ends = _fill(costs, usable, wanted)
    if ends is not None:
        return _placement(costs, offered, usable, wanted, ends)
    return Shortfall(
        missing_bytes=_missing_bytes(costs, usable, wanted),
        needed_bytes=costs.run_bytes(wanted.start, costs.slots, wanted, shared=False),
        budget_bytes=sum(offer.budget_bytes for offer in usable),
        best=best_part(load, devices, budget),
    )


def fits(load: Load, devices: Sequence[Device], budget: Budget) -> bool:
    """Whether `place` answers with a Placement."""
    costs, usable = _Costs(load), [offer for offer in offers(devices, budget) if offer.budget_bytes]
    return _fill(costs, usable, _wanted(costs)) is not None


def best_part(
    load: Load, devices: Sequence[Device], budget: Budget, *, experts: bool = True, layers: bool = True
) -> Placement:
    """What leaves least for the CPU to read per token, of all that fits; nothing on GPUs always does.

    experts: some may stay on the CPU. layers: whole ones may.
    """
    costs, offered = _Costs(load), offers(devices, budget)
    usable = [offer for offer in offered if offer.budget_bytes]
    nothing = _Cut(costs.slots, 0)
    found = [(costs.read_bytes(nothing), 0, nothing)]
    for offloaded in range((costs.layers if experts and costs.experts[-1] else 0) + 1):
        cut = _longest(costs, usable, offloaded)
        if cut is not None and (layers or cut.start == 0):
            found.append((costs.read_bytes(cut), offloaded, cut))
    cut = min(found, key=lambda each: each[:2])[2]
    return _placement(costs, offered, usable, cut, _fill(costs, usable, cut) or [])


def _wanted(costs: _Costs) -> _Cut:
    """All, unless the demand says -ngl or --n-cpu-moe."""
    load = costs.load
    experts = costs.layers if load.experts_on_cpu < 0 else min(load.experts_on_cpu, costs.layers)
    if not costs.experts[experts]:
        experts = 0
    if load.layers_on_gpu is None or load.layers_on_gpu < 0:
        return _Cut(0, experts)
    return _Cut(max(costs.slots - load.layers_on_gpu, 0), experts)


def _longest(costs: _Costs, usable: Sequence[Offer], experts: int) -> _Cut | None:
    """The most slots that fit with the experts of the first so many layers on the CPU; None: not one."""
    # No bisection: with one slot more the first GPU may take part, and with it what only the first one has on top.
    for start in range(costs.slots):
        if _fill(costs, usable, _Cut(start, experts if experts > start else 0)) is not None:
            return _Cut(start, experts if experts > start else 0)
    return None


def _fill(costs: _Costs, usable: Sequence[Offer], cut: _Cut) -> list[int] | None:
    """Where each GPU's run of slots ends; None if some are left over. One GPU for all comes before several."""
    for position, offer in enumerate(usable):
        if costs.run_bytes(cut.start, costs.slots, cut, shared=False) <= offer.budget_bytes:
            return [cut.start] * position + [costs.slots] * (len(usable) - position)
    begin, ends = cut.start, []
    for offer in usable:
        begin = _reach(costs, offer.budget_bytes, begin, cut)
        ends.append(begin)
    return ends if begin == costs.slots else None


def _reach(costs: _Costs, budget_bytes: int, begin: int, cut: _Cut) -> int:
    """The end of the longest run from `begin` that fits into a GPU beside others."""
    low, high = begin, costs.slots
    while low < high:
        middle = (low + high + 1) // 2
        if costs.run_bytes(begin, middle, cut, shared=True) <= budget_bytes:
            low = middle
        else:
            high = middle - 1
    return low


def _missing_bytes(costs: _Costs, usable: Sequence[Offer], cut: _Cut) -> int:
    """What the last GPU, or one if there is none, needs more to take all that the others leave."""
    if not usable:
        return costs.run_bytes(cut.start, costs.slots, cut, shared=False)
    begin = cut.start
    for offer in usable[:-1]:
        begin = _reach(costs, offer.budget_bytes, begin, cut)
    return costs.run_bytes(begin, costs.slots, cut, shared=begin > cut.start) - usable[-1].budget_bytes


def _placement(
    costs: _Costs, offered: Sequence[Offer], usable: Sequence[Offer], cut: _Cut, ends: Sequence[int]
) -> Placement:
    runs, begin = [], cut.start
    for offer, end in zip(usable, ends, strict=False):  # no ends: nothing fits anywhere
        if end > begin:
            runs.append((offer, begin, end))
        begin = end
    shares = tuple(_share(costs, run, cut, shared=len(runs) > 1) for run in runs)
    busy = {share.device.uuid for share in shares}
    made = Placement(
        layers=costs.layers,
        shares=shares,
        cpu_experts=cut.experts,
        cpu_bytes=costs.cpu_bytes(cut),
        idle=tuple(offer.device for offer in offered if offer.device.uuid not in busy),
        notes=_older_rule(costs, runs, cut),
    )
    return prove(made)


def _share(costs: _Costs, run: tuple[Offer, int, int], cut: _Cut, *, shared: bool) -> Share:
    offer, begin, end = run
    last = min(end, costs.layers) - 1
    return Share(
        device=offer.device,
        budget_bytes=offer.budget_bytes,
        first=begin if last >= begin else None,
        last=last if last >= begin else None,
        has_output=end == costs.slots,
        weight_bytes=costs.weight_bytes(begin, end, cut),
        context_bytes=costs.context_bytes(begin, end),
        compute_bytes=costs.compute_bytes(begin, end, cut, shared=shared),
    )


def by_slots(load: Load, chosen: Sequence[Offer], offered: Sequence[Offer], slots: rule.Slots) -> Placement:
    """The placement that these slots are. chosen: the GPUs that they count; offered: all there are."""
    start = sum(device is None for device in slots)
    ends = [start + sum(device is not None and device <= index for device in slots) for index in range(len(chosen))]
    return _placement(_Costs(load), offered, chosen, _Cut(start, 0), ends)


def prove(made: Placement) -> Placement:
    """The same, after llama.cpp's rule has put every layer from the arguments where the plan has it.

    Raise MemscalerError if it has not, which would be a mistake of ours.
    """
    words = dict(zip(made.arguments[::2], made.arguments[1::2], strict=True))
    split = [float(word) for word in words.get("-ts", "").split(",") if word]
    free = [share.device.free_bytes for share in made.shares]
    found = rule.slots(made.layers, int(words["-ngl"]), rule.proportions(split, free))
    if found != made.slots():
        raise MemscalerError(f"llama.cpp would not follow this plan: {' '.join(made.arguments)}", hint="report this")
    return made


def _older_rule(costs: _Costs, runs: Sequence[tuple[Offer, int, int]], cut: _Cut) -> tuple[str, ...]:
    """What a llama.cpp before December 2025 makes of it: every run begins a layer earlier, no output is on GPUs."""
    if not runs or cut.start == 0:
        return ()
    over = []
    for offer, begin, end in runs:
        used = costs.run_bytes(begin - 1, end - 1, _Cut(cut.start - 1, cut.experts), shared=len(runs) > 1)
        if used > offer.budget_bytes:
            over.append(f"gpu{offer.device.index} would take {more(used - offer.budget_bytes)} more than it may")
    fits = "; ".join(over) if over else "that fits, too"
    means = (
        f"llama.cpp before December 2025 reads -ngl {costs.slots - cut.start} as that many layers without the output"
    )
    return (f"{means}: {fits}",)
