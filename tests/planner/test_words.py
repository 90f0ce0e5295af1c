"""llama-server's options, read into a demand."""

from pathlib import Path

import pytest

from memscaler.core.errors import UsageError
from memscaler.planner.memory import Demand
from memscaler.planner.words import Wanted, read


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("", Demand()),
        ("-c 8192 -np 2 -ub 256 -b 1024", Demand(context=8192, slots=2, ubatch=256, batch=1024)),
        ("--ctx-size=8192 --parallel=2", Demand(context=8192, slots=2)),
        ("-ctk q8_0 --cache-type-v Q4_0 -fa on", Demand(cache_type_k="q8_0", cache_type_v="q4_0", flash_attention="on")),
        ("-fa --host 0.0.0.0", Demand(flash_attention="on")),
        ("-fa 0 -c 1", Demand(flash_attention="off", context=1)),
        ("--flash-attn auto", Demand()),
        ("-ngl 20", Demand(layers_on_gpu=20)),
        ("-ngl all", Demand()),
        ("--n-gpu-layers 99 -ngl auto", Demand()),
        ("-ncmoe 12", Demand(experts_on_cpu=12)),
        ("--cpu-moe", Demand(experts_on_cpu=-1)),
        ("-nkvo --swa-full --no-mmap", Demand(offload_cache=False, swa_full=True, mmap=False)),
        ("-kvu", Demand(unified=True)),
        ("-no-kvu", Demand(unified=False)),
        ("--host 127.0.0.1 --metrics -a name --jinja -c 512", Demand(context=512)),
        ("-c 512 -c 1024", Demand(context=1024)),
        ("--flash_attn off --ctx_size=512 --n_gpu_layers 3", Demand(flash_attention="off", context=512, layers_on_gpu=3)),
    ],
)  # fmt: skip
def test_options(line, expected):
    """What matters is read, the rest stepped over; the last one of two counts."""
    assert read(line.split()) == Wanted(expected)


def test_the_projector_and_the_variables():
    """llama-server reads LLAMA_ARG_ variables; an option comes before them."""
    environ = {"LLAMA_ARG_CTX_SIZE": "4096", "LLAMA_ARG_N_PARALLEL": "3", "PATH": "/bin"}
    wanted = read(["--mmproj", "/m/mm.gguf", "-np", "2"], environ)
    assert wanted == Wanted(Demand(context=4096, slots=2), Path("/m/mm.gguf"))


def test_variables_that_switch():
    """On if they say so."""
    environ = {"LLAMA_ARG_SWA_FULL": "1", "LLAMA_ARG_NO_KV_OFFLOAD": "true", "LLAMA_ARG_KV_UNIFIED": "off"}
    assert read([], environ) == Wanted(Demand(swa_full=True, offload_cache=False))


@pytest.mark.parametrize("line", ["-ts 3,1", "--tensor-split=3,1", "-dev CUDA0", "-sm row", "-mg 1", "-ot x=CPU"])
def test_what_the_planner_decides(line):
    """Two deciders are one too many."""
    with pytest.raises(UsageError, match="the planner decides that"):
        read(line.split())


@pytest.mark.parametrize("line", ["-c", "-c many", "-np -2", "-c 1.5", "-ngl some", "-ctk", "--mmproj"])
def test_wrong_values(line):
    """One line."""
    with pytest.raises(UsageError, match=line.split()[0]):
        read(line.split())
