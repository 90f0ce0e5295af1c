"""What the real llama.cpp says of its own memory: a server of it in a process of its own loads a model and logs.

As a program it loads the model that its first argument names, with the settings in its second (JSON), and ends.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

MIB = 1 << 20
_FIGURE = re.compile(r"(model|KV|RS|compute|output) buffer size = +([\d.]+) MiB")
_ROW = re.compile(r"common_memory_breakdown_print: \| +- \S+ +\| +\d+ = +(\d+) \+ +(\d+) \+ +\d+ +\|")
_SETTING = re.compile(r"llama_context: (\w+) += (\w+)")


@dataclass(frozen=True)
class Real:
    """Its figures, in MiB. settings: of the context."""

    model: float
    kv: float
    rs: float
    compute: float
    settings: dict[str, str]
    log: str


def load(model: Path, **settings: Any) -> Real:
    """Load it. Raise AssertionError with the log when llama.cpp does not."""
    done = subprocess.run(
        [sys.executable, __file__, str(model), json.dumps(settings)],
        capture_output=True,
        text=True,
        errors="replace",
        timeout=60,
        check=False,
    )
    log = done.stderr + done.stdout
    assert "LOADED" in done.stdout, f"llama.cpp does not load {model.name}:\n" + "\n".join(_important(log)[-60:])
    sums: dict[str, float] = dict.fromkeys(("model", "KV", "RS", "compute", "output"), 0.0)
    for what, mib in _FIGURE.findall(log):
        sums[what] += float(mib)
    return Real(
        model=sums["model"],
        kv=sums["KV"],
        rs=sums["RS"],
        compute=sums["compute"],
        settings=dict(_SETTING.findall(log)),
        log=log,
    )


@dataclass(frozen=True)
class Projected:
    """What llama.cpp expects without allocating it. model, context: in MiB, each row of its table rounded down."""

    model: int
    context: int
    rows: int
    compute: float


def project(model: Path, **settings: Any) -> Projected:
    """Have llama.cpp lay out a model that no machine here could hold, and stop it before it loads it."""
    command = [sys.executable, __file__, str(model), json.dumps({**settings, "fit_params": True})]
    with subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, errors="replace"
    ) as process:
        assert process.stderr is not None
        lines = []
        for line in process.stderr:
            lines.append(line)
            if "common_params_fit_impl: projected" in line:
                break
        process.kill()
    log = "".join(lines)
    rows = [tuple(map(int, each)) for each in _ROW.findall(log)]
    compute = [float(mib) for what, mib in _FIGURE.findall(log) if what == "compute"]
    assert rows, f"llama.cpp does not lay out {model.name}:\n" + "\n".join(_important(log)[-40:])
    return Projected(sum(row[0] for row in rows), sum(row[1] for row in rows), len(rows), sum(compute))


def _important(log: str) -> list[str]:
    return [
        line
        for line in log.splitlines()
        if not re.search(r"create_tensor|n_input_tensors|print_info|- kv|init_listene", line)
    ]


def _serve(model: str, settings: dict[str, Any]) -> None:
    import xllamacpp

    parameters = xllamacpp.CommonParams()
    parameters.model.path = model
    parameters.hostnames = ["127.0.0.1"]
    parameters.port = 0
    parameters.n_gpu_layers = 0
    parameters.cpuparams.n_threads = 1
    parameters.cpuparams_batch.n_threads = 1
    parameters.warmup = False
    parameters.fit_params = False
    parameters.verbosity = 5
    enumerations = {
        "cache_type_k": xllamacpp.ggml_type,
        "cache_type_v": xllamacpp.ggml_type,
        "flash_attn_type": xllamacpp.llama_flash_attn_type,
    }
    for name, value in settings.items():
        kind = enumerations.get(name)
        setattr(parameters, name, value if kind is None else getattr(kind, value))
    server = xllamacpp.Server(parameters)
    print("LOADED", server.listening_address, flush=True)
    time.sleep(0.2)  # its log is written by a thread
    os._exit(0)  # its own end now and then waits for ever when it comes so soon


if __name__ == "__main__":
    _serve(sys.argv[1], json.loads(sys.argv[2]))
