"""What the commands have in common: how a model is served, which GPUs there are, and how much of them may be taken.

All are words, not numbers: those need no pydantic (memscaler.cli.quick), and their errors are ours.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from memscaler.planner.devices import Budget, Order, Survey
    from memscaler.planner.memory import Demand
    from memscaler.planner.plan import Adviser

AUTO, OFF = "auto", "off"


def _option(*names: str, metavar: str, text: str) -> Any:
    return typer.Option(*names, metavar=metavar, help=text, show_default=False)


Model = Annotated[
    Path | None, _option("--model", metavar="FILE", text="The same as the argument, for who is used to llama-server's.")
]
Context = Annotated[
    str | None,
    _option("--n-ctx", "--ctx-size", "-c", metavar="N", text="Tokens of all slots. Default: the model's own."),
]
Slots = Annotated[
    str | None, _option("--slots", "--parallel", metavar="N", text="Requests at once. Default: llama-server's choice.")
]
CacheTypeK = Annotated[
    str | None, _option("--cache-type-k", metavar="TYPE", text="Of keys: f16, q8_0, q4_0, ... Default: f16.")
]
CacheTypeV = Annotated[str | None, _option("--cache-type-v", metavar="TYPE", text="Of values. Default: f16.")]
Batch = Annotated[str | None, _option("--batch", "--batch-size", metavar="N", text="Logical batch. Default: 2048.")]
Ubatch = Annotated[str | None, _option("--ubatch", "--ubatch-size", metavar="N", text="Physical batch. Default: 512.")]
FlashAttention = Annotated[str | None, _option("--flash-attn", metavar="on|off|auto", text="Default: auto.")]
Projector = Annotated[Path | None, _option("--mmproj", metavar="FILE", text="The multimodal projector's file.")]
SwaFull = Annotated[bool, typer.Option("--swa-full", help="A full-size cache in layers with a sliding window, too.")]
NoKvOffload = Annotated[bool, typer.Option("--no-kv-offload", help="The KV cache stays on the CPU.")]
GpuLayers = Annotated[
    str | None,
    _option("--n-gpu-layers", "--ngl", metavar="N", text="Layers on GPUs, of which the output is one. Default: all."),
]
CpuMoe = Annotated[
    str | None, _option("--n-cpu-moe", metavar="N", text="The experts of the first N layers stay on the CPU.")
]
Devices = Annotated[
    str | None,
    _option(
        "--devices",
        metavar="GPU,...",
        text="Only these: gpu0 or 0, a beginning of a UUID, a PCI address. Default: CUDA_VISIBLE_DEVICES, else all.",
    ),
]
DeviceOrder = Annotated[
    str | None,
    _option(
        "--device-order",
        metavar="ORDER",
        text="Which is filled first: free_desc, total_desc or index. Default: free_desc.",
    ),
]
Reserve = Annotated[
    str | None,
    _option("--reserve-mib", metavar="SIZE", text="Left free on every GPU, in MiB or with a unit. Default: 1024."),
]
MinBudget = Annotated[
    str | None,
    _option(
        "--min-budget-mib",
        metavar="SIZE",
        text="A GPU with less than this above its reserve is not used. Default: 1024.",
    ),
]
Gpu = Annotated[
    list[str] | None,
    _option(
        "--gpu",
        metavar="SIZE",
        text="Plan for an empty GPU of this size, for example 24GiB, not for those of this machine. Repeatable; "
        "2x24GiB is two.",
    ),
]
FitParams = Annotated[
    str | None,
    _option(
        "--fit-params",
        metavar="PROGRAM",
        text="llama.cpp's own llama-fit-params, to be asked first; auto: if it is installed; off. Default: auto.",
    ),
]


@dataclass(frozen=True, slots=True)
class Served:
    """The words for how a model is served."""

    context: str | None = None
    slots: str | None = None
    cache_type_k: str | None = None
    cache_type_v: str | None = None
    batch: str | None = None
    ubatch: str | None = None
    flash_attention: str | None = None
    swa_full: bool = False
    no_kv_offload: bool = False
    gpu_layers: str | None = None
    cpu_moe: str | None = None

    def demand(self) -> Demand:
        """Checked. Raise UsageError."""
        from memscaler.planner import words

        given = (
            ("--ctx-size", self.context),
            ("--parallel", self.slots),
            ("--cache-type-k", self.cache_type_k),
            ("--cache-type-v", self.cache_type_v),
            ("--batch-size", self.batch),
            ("--ubatch-size", self.ubatch),
            ("--flash-attn", self._flash()),
            ("--n-gpu-layers", self.gpu_layers),
            ("--n-cpu-moe", self.cpu_moe),
        )
        options = [word for name, value in given if value is not None for word in (name, value)]
        options += ["--swa-full"] * self.swa_full + ["--no-kv-offload"] * self.no_kv_offload
        return words.read(options).demand

    def _flash(self) -> str | None:
        from memscaler.core.errors import UsageError

        if self.flash_attention not in (None, "on", "off", "auto"):
            raise UsageError(
                f"--flash-attn {self.flash_attention}: on, off or auto", hint="auto is llama-server's default"
            )
        return self.flash_attention


@dataclass(frozen=True, slots=True)
class Where:
    """The words for the GPUs."""

    devices: str | None = None
    order: str | None = None
    reserve: str | None = None
    minimum: str | None = None
    gpus: Sequence[str] | None = None
    simulate: str | None = None
    runtime_dir: str | None = None
    fit_params: str | None = None

    def budget(self) -> Budget:
        """Raise UsageError."""
        from memscaler.core.errors import UsageError
        from memscaler.planner.devices import ORDERS, Budget
        from memscaler.planner.sizes import parse_bytes

        usual = Budget()
        orders: dict[str, Order] = {each: each for each in ORDERS}
        order = orders.get(self.order or usual.order)
        if order is None:
            raise UsageError(f"--device-order {self.order}: no such order", hint=f"one of {', '.join(ORDERS)}")
        return Budget(
            usual.reserve_bytes if self.reserve is None else parse_bytes(self.reserve, "--reserve-mib"),
            usual.minimum_bytes if self.minimum is None else parse_bytes(self.minimum, "--min-budget-mib"),
            order,
        )

    def survey(self, environ: Mapping[str, str] = os.environ) -> Survey:
        """The GPUs that may be used. Raise UsageError, DriverUnavailable."""
        from memscaler.core.errors import DriverUnavailable, UsageError
        from memscaler.planner import devices

        only = None if self.devices is None else [word for word in self.devices.split(",") if word.strip()]
        if self.devices is not None and not only:
            raise UsageError("--devices names none", hint="for example --devices gpu0,gpu2")
        if self.gpus:
            found = devices.Survey(devices.hypothetical(_sizes(self.gpus)))
            return devices.choose(found, {}, only)
        from memscaler.cli.options import settings_anyway
        from memscaler.cli.simulated import at_home, simulate

        settings = at_home(settings_anyway({"simulate": self.simulate, "runtime_dir": self.runtime_dir}))
        simulate(settings.simulate, settings.runtime_dir)
        try:
            return devices.choose(devices.survey(), environ, only)
        except DriverUnavailable as error:
            hint = "--gpu 24GiB plans for a GPU that is not here, --simulate a40 for a simulated one"
            raise DriverUnavailable(
                str(error), code=error.code, hint=f"{error.hint.partition(';')[0]}; {hint}"
            ) from error

    def adviser(self, environ: Mapping[str, str] = os.environ) -> Adviser | None:
        """Whom to ask first. By itself nobody about GPUs that are not there. Raise UsageError."""
        import shutil

        from memscaler.core.errors import UsageError
        from memscaler.planner.plan import Adviser, adviser_in

        word = self.fit_params or AUTO
        if word == OFF:
            return None
        if word == AUTO:
            return None if self.gpus or self.simulate else adviser_in(environ)
        program = shutil.which(word)
        if program is None:
            raise UsageError(f"--fit-params {word}: no such program", hint="the path of llama-fit-params, auto or off")
        return Adviser(program)


_MOST_GPUS = 64
_LEAST_BYTES = 256 << 20  # of a number without a unit: nobody means less


def _sizes(words: Sequence[str]) -> list[int]:
    """`["24GiB", "2x80GiB"]` in bytes."""
    from memscaler.core.errors import UsageError
    from memscaler.planner.sizes import parse_bytes

    sizes: list[int] = []
    for word in words:
        count, times, size = word.strip().lower().rpartition("x")
        if times and not (count.isascii() and count.isdigit() and 1 <= int(count[:9]) <= _MOST_GPUS):
            raise UsageError(f"--gpu {word}: {count!r} is no number of GPUs", hint="for example --gpu 2x24GiB")
        each = parse_bytes(size, "--gpu")
        if 0 < each < _LEAST_BYTES and size.replace(".", "", 1).isdigit():
            raise UsageError(f"--gpu {word} means {size} MiB", hint=f"with a unit: --gpu {word}GiB")
        sizes += [each] * int(count or 1)
    if min(sizes) == 0 or len(sizes) > _MOST_GPUS:
        raise UsageError(f"--gpu {' '.join(words)}: no machine has that", hint="for example --gpu 24GiB --gpu 24GiB")
    return sizes
