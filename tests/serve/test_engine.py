"""llama.cpp's server from the wheel, as a program with llama-server's flags."""

import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import pytest
import xllamacpp

from memscaler.core.errors import Unavailable, UsageError
from memscaler.daemon.servers import server_of
from memscaler.servers import engine, flags
from memscaler.servers.programs import ENGINE, find_server

ASKED = {"prompt": "Once", "n_predict": 4000, "ignore_eos": True, "stream": True}


@contextmanager
def engine_of(*words, env=None, port="0"):
    """The program, listening; its port."""
    command = [sys.executable, "-P", str(ENGINE), *map(str, words), "--port", port, "-t", "1", "--no-warmup"]
    process = subprocess.Popen(
        command, cwd="/", stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env={**os.environ, **(env or {})},
    )  # fmt: skip
    try:
        line = process.stdout.readline()
        process.port = int(line.rpartition(":")[2]) if line else 0
        yield process
    finally:
        process.kill()
        process.communicate()


def ended(*words, env=None):
    """The exit status and what it said, of one that does not serve."""
    command = [sys.executable, "-P", str(ENGINE), *map(str, words)]
    done = subprocess.run(
        command, cwd="/", capture_output=True, text=True, check=False, timeout=60, env={**os.environ, **(env or {})}
    )
    return done.returncode, done.stderr


def get(port, path, **headers):
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
    connection.request("GET", path, headers=headers)
    answer = connection.getresponse()
    return answer.status, answer.read()


def test_flags_and_variables(model):
    """A variable goes behind a flag; the model's name, the metrics page and the key are as they were told."""
    variables = {"LLAMA_ARG_CTX_SIZE": "512", "LLAMA_ARG_ENDPOINT_METRICS": "1", "LLAMA_ARG_ALIAS": "other"}
    with engine_of("-m", model, "-a", "named", "--api-key", "sesame", "-np", 2, "--no-slots", env=variables) as served:
        assert get(served.port, "/health")[0] == 200
        assert get(served.port, "/props")[0] == 401
        key = {"Authorization": "Bearer sesame"}
        assert json.loads(get(served.port, "/v1/models", **key)[1])["data"][0]["id"] == "named"
        props = json.loads(get(served.port, "/props", **key)[1])
        assert props["total_slots"] == 2
        assert props["default_generation_settings"]["n_ctx"] == 256
        assert get(served.port, "/metrics", **key)[0] == 200
        assert get(served.port, "/slots", **key)[0] == 501


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_ends_it_while_it_answers(model, number):
    """At once, with status 0."""
    with engine_of("-m", model, "-c", 8192) as served:
        connection = http.client.HTTPConnection("127.0.0.1", served.port, timeout=20)
        connection.request("POST", "/completion", json.dumps(ASKED), {"Content-Type": "application/json"})
        assert connection.getresponse().readline()
        began_s = time.monotonic()
        served.send_signal(number)
        assert served.wait(20) == 0
        assert time.monotonic() - began_s < 2
        connection.close()


def test_loading_is_told(model):
    """Nobody listens, then 503 in llama.cpp's words, then 200: whoever asks all the time sees each."""
    port = free_port()
    command = [sys.executable, "-P", str(ENGINE), "-m", str(model), "-c", "131072", "--port", str(port)]
    seen, end_s = [], time.monotonic() + 60
    with subprocess.Popen(command, cwd="/", stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        try:
            while seen[-1:] != [200] and time.monotonic() < end_s:
                try:
                    status, body = get(port, "/health")
                except OSError:
                    status, body = 0, b""
                if status == 503:
                    assert json.loads(body)["error"]["message"] == "Loading model"
                seen += [status] if seen[-1:] != [status] else []
        finally:
            process.kill()
    assert seen == [0, 503, 200]


def test_models_that_are_none(tmp_path):
    """A sentence each, and status 1."""
    assert ended("-m", tmp_path / "none.gguf") == (
        1, f"memscaler: cannot read the model {tmp_path}/none.gguf: No such file or directory\n",
    )  # fmt: skip
    (tmp_path / "text.gguf").write_text("once upon a time")
    assert "text.gguf is no GGUF file" in ended("-m", tmp_path / "text.gguf")[1]
    (tmp_path / "cut.gguf").write_bytes(b"GGUF\3\0\0\0")
    code, said = ended("-m", tmp_path / "cut.gguf", "--port", 0)
    assert code == 1
    assert f"memscaler: cannot serve {tmp_path}/cut.gguf\nhint: llama.cpp says why, above\n" in said
    assert ended()[0] == 2


def test_a_taken_port(model):
    """Status 1, and who has it."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        code, said = ended("-m", model, "--port", taken.getsockname()[1])
    assert code == 1
    assert f"is taken: python (pid {os.getpid()}) listens there" in said or f"(pid {os.getpid()})" in said


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--ctx-sise", "1"], "did you mean --ctx-size?"),
        (["--no-warmpu"], "did you mean --no-warmup?"),
        (["--rpc", "host:1"], "unknown flag: --rpc"),
        (["--port=1"], "a flag and its value are two words"),
        (["-c"], "-c needs a value"),
        (["-c", "many"], "-c many: must be a whole number"),
        (["-ctk", "q9"], "must be one of f32, f16"),
        (["--port", "70000"], "0 to 65535"),
        (["--chat-template-file", "/none"], "must be a file that can be read"),
        (["model.gguf"], "'model.gguf' is no flag"),
    ],
)
def test_words_that_are_not_understood(words, told):
    """Named, with the nearest that is."""
    with pytest.raises(UsageError) as caught:
        flags.parse(words, {})
    assert told in f"{caught.value} {caught.value.hint}"


def test_a_wrong_variable():
    """It is named."""
    with pytest.raises(UsageError, match="LLAMA_ARG_CTX_SIZE=many"):
        flags.parse([], {"LLAMA_ARG_CTX_SIZE": "many"})


def test_spellings():
    """As llama.cpp reads them: switches and their opposites, underscores, values that may be left out, lists."""
    read = flags.parse(["--ctx_size", "5", "-fa", "-ts", "3,1", "--no-mmap", "--no-slots", "-fit", "off"], {})
    assert read == {
        "n_ctx": 5,
        "flash_attn_type": "on",
        "tensor_split": (3.0, 1.0),
        "load_mode": "none",
        "endpoint_slots": False,
        "fit_params": "off",
    }
    assert flags.parse(["-fa", "off", "-v"], {}) == {"flash_attn_type": "off", "verbosity": 5}
    assert flags.parse(["-ot", "a=CPU", "-ot", "b=CPU"], {"LLAMA_ARG_OVERRIDE_TENSOR": "c=CPU"}) == {
        flags.OVERRIDES: "a=CPU,b=CPU"
    }
    assert flags.parse([], {"LLAMA_ARG_NO_WARMUP": "1", "LLAMA_ARG_NO_CACHE_PROMPT": "1"}) == {"cache_prompt": False}


SAMPLES = {"model.path": "/m", "chat_template": "chatml", flags.OVERRIDES: r"blk\.0\.=CPU", flags.HTTP_TIMEOUT: 9}


@pytest.mark.parametrize("flag", flags.FLAGS, ids=lambda flag: flag.names[-1])
def test_the_library_has_every_field(flag, tmp_path):
    """Each flag sets something that this xllamacpp has, to what it was told."""
    file = tmp_path / "words"
    file.write_text("word\n")
    for text in ("2", "q8_0", "on", "layer", "mmap", "none", "isolate", "mean", "auto", str(file)):
        try:
            value = True if flag.read is None else flag.read(text)
        except ValueError:
            continue
        value = SAMPLES.get(flag.field, value)
        parameters = engine._parameters(xllamacpp, {flag.field: value})
        if "." not in flag.field and hasattr(parameters, flag.field):
            assert getattr(parameters, flag.field) not in (None, "")
        return
    raise AssertionError(f"no sample for {flag.names}")


def test_experts_on_the_cpu():
    """As llama.cpp's own flags say it, beside what is overridden anyway."""
    made = engine._parameters(xllamacpp, flags.parse(["-ot", "a=CPU", "-ncmoe", "2"], {}))
    assert made.tensor_buft_overrides == ",".join(
        ["a=CPU", *(rf"blk\.{layer}{engine.EXPERTS}=CPU" for layer in range(2))]
    )
    made = engine._parameters(xllamacpp, flags.parse(["--cpu-moe"], {}))
    assert made.tensor_buft_overrides == f"{engine.EXPERTS}=CPU"


def test_it_is_known_as_a_server(model):
    """By its name: so it is discovered, and asked whether it works before a GPU is parked."""
    with engine_of("-m", model, "-c", 512) as served:
        process = Path(f"/proc/{served.pid}")
        words = (process / "cmdline").read_text().split("\0")[:-1]
        found = server_of(words, (process / "comm").read_text().strip())
    assert found is not None
    assert found.kind == "llama.cpp"


def test_which_program_serves(tmp_path, programs):
    """llama-server, then `llama serve`, then our engine; and what to install where there is none."""
    assert find_server(str(programs)) == (str(programs / "llama-server"),)
    (programs / "llama-server").rename(programs / "llama")
    assert find_server(str(programs)) == (str(programs / "llama"), "serve")
    assert find_server(str(tmp_path)) == (sys.executable, "-P", str(ENGINE))
    code = f"from memscaler.servers.programs import find_server; find_server({str(tmp_path)!r})"
    told = subprocess.run(
        [sys.executable, "-S", "-c", code], capture_output=True, text=True, check=False, cwd=ENGINE.parents[2]
    )
    assert Unavailable.__name__ in told.stderr


def free_port():
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]
