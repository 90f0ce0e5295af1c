"""What is wrong is said in one line, before anything is started, with the exit code that it deserves."""

import json
import os
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path

import pytest

from tests.governor import REPOSITORY, governing, watch_table
from tests.serve.conftest import program

pytestmark = pytest.mark.timeout(600)


def refused(serve, *arguments, **more):
    """The exit status and what was said; nothing was started."""
    with serve(*arguments, **more) as served:
        code = served.wait()
        assert "starting the" not in served.said
        return code, served.said


@pytest.mark.parametrize(
    ("arguments", "code", "told"),
    [
        (["--host", "/run/llama.sock"], 2, "one address"),
        (["--host", "203.0.113.9"], 1, "cannot listen on port"),
        (["--json"], 2, "--json goes with --dry-run"),
        (["--devices", "gpu7"], 2, "'gpu7' is no GPU that can be used"),
        (["--cache-type-k", "q9"], 2, "q9"),
        (["--idle-after", "soon"], 2, "soon"),
        (["--", "--port", "8080"], 2, "write --port before --"),
        (["other.gguf"], 2, "two models: other.gguf and "),
        (["-ngl", "9"], 2, "-ngl is llama-server's, and goes behind --\nhint: memscaler serve ... -- -ngl 9\n"),
        (["-fa"], 2, "memscaler serve ... -- -fa\n"),
        (["--prallel", "2"], 2, "did you mean --parallel?"),
        (["--lora", "a.gguf"], 2, "if it is llama-server's: memscaler serve ... -- --lora"),
        (["-hf", "someone/model"], 2, "serve takes a model that is here, and downloads none"),
        (["--", "-c", "8192"], 2, "write --n-ctx before --"),
        (["--", "-ts", "1,1"], 2, "--no-smart-split"),
        (["--", "--device", "CUDA0"], 2, "--no-smart-split"),
        (["--n-ctx", "100000000"], 2, "does not fit"),
        (["--reserve-mib", "100000"], 2, "no GPU has memory to give"),
    ],
)
def test_arguments(serve, arguments, code, told):
    """Each with its reason."""
    got, said = refused(serve, *arguments)
    assert (got, told in said) == (code, True), said


def test_models(serve, tmp_path):
    """None, no file, and a file that is no model."""
    done = subprocess.run(
        [sys.executable, "-m", "memscaler", "serve"], capture_output=True, text=True, check=False, cwd=REPOSITORY
    )
    assert (done.returncode, done.stderr) == (2, "memscaler: no model\nhint: memscaler serve --model FILE.gguf\n")
    assert refused(serve, model=tmp_path / "none.gguf") == (
        2,
        f"memscaler: cannot read {tmp_path}/none.gguf: No such file or directory\nhint: name a GGUF file with --model\n",
    )
    (tmp_path / "text.gguf").write_text("once upon a time")
    code, said = refused(serve, model=tmp_path / "text.gguf")
    assert code == 2
    assert "text.gguf: 16 bytes are no model" in said


def test_a_wrong_model_for_the_cpu(tmp_path):
    """The same, where there is no GPU to plan for."""
    (tmp_path / "text.gguf").write_text("once upon a time")
    words = [sys.executable, "-m", "memscaler", "serve", str(tmp_path / "text.gguf"), "--port", "0", "--dry-run"]
    done = subprocess.run(words, capture_output=True, text=True, check=False, cwd=REPOSITORY)
    assert (done.returncode, done.stdout) == (2, "")
    assert "text.gguf: 16 bytes are no model" in done.stderr


def test_the_words_of_llama_server(model, tmp_path):
    """Its names for our options, and plan's, mean the same; a model needs no --model."""
    words = [str(model), "-np", "3", "--ctx-size=8192", "-ctk", "bf16", "--batch_size", "1024", "--ubatch", "256"]
    words += ["--simulate", "p40", "--runtime-dir", str(tmp_path / "run"), "--port", "0", "--dry-run", "--json"]
    command = [sys.executable, "-m", "memscaler", "serve", *words, "--", "--metrics"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=REPOSITORY)
    assert (done.returncode, done.stderr) == (0, "")
    server = " ".join(json.loads(done.stdout)["server"])
    assert f"-m {model} " in server
    assert " -c 8192 -np 3 -b 1024 -ub 256 -ctk bf16 --metrics -ngl " in server


@pytest.mark.parametrize(("said", "shown"), [("99", "99"), ("3", "3"), ("1", "1")])
def test_one_count_of_layers(model, tmp_path, said, shown):
    """What the operator says of -ngl is in the command line, and nothing of the plan's that contradicts it."""
    words = ["--model", str(model), "--simulate", "p40", "--runtime-dir", str(tmp_path / "run"), "--port", "0"]
    command = [sys.executable, "-m", "memscaler", "serve", *words, "--dry-run", "--json", "--force", "--", "-ngl", said]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=REPOSITORY)
    assert (done.returncode, done.stderr) == (0, "")
    server = json.loads(done.stdout)["server"]
    assert [server[at + 1] for at, word in enumerate(server) if word == "-ngl"] == [shown]


def test_a_url_is_no_model():
    """As -hf: nothing is downloaded, and it is said how."""
    command = [sys.executable, "-m", "memscaler", "serve", "https://example.org/m.gguf", "--dry-run"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=REPOSITORY)
    assert done.returncode == 2
    assert "serve takes a model that is here, and downloads none\nhint: download it first" in done.stderr


def test_a_model_that_only_root_can_read(serve, tmp_path, model):
    """With sudo the server is the caller's, who cannot: refused before anything is started."""
    secret = tmp_path / "secret.gguf"
    secret.write_bytes(model.read_bytes())
    secret.chmod(0o600)
    code, said = refused(serve, model=secret, env={"SUDO_UID": "65534", "SUDO_GID": "65534"})
    assert code == 2
    assert f"cannot read {secret} as nobody, who called sudo: Permission denied" in said


def test_what_does_not_fit_can_be_forced(serve):
    """The advice is there; --force serves what fits."""
    code, said = refused(serve, "--n-ctx", "60000000", "--dry-run")
    assert code == 2
    assert "would fit: " in said
    assert "hint: --force" in said
    with serve("--n-ctx", "60000000", "--dry-run", "--force") as served:
        assert served.wait() == 0
        assert "CPU: " in served.told


def test_a_taken_port(serve):
    """Who has it, before a model is read."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        code, said = refused(serve, "--port", str(port))
    assert code == 1
    assert f"port {port} is taken: " in said
    assert f"(pid {os.getpid()})" in said


def test_a_dry_run_takes_no_port(serve):
    """That somebody listens there is only said."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with serve("--port", str(port), "--dry-run") as served:
            assert served.wait() == 0
            assert f"port {port} is taken: " in served.said
            assert "; without --dry-run it refuses\n" in served.said
            assert f" --port {port} " in served.told


def test_a_governor_that_does_not_watch_the_port(serve, tmp_path):
    """It could park our GPU: refused, with what makes it watch; it may be served all the same."""
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        with governing(tmp_path / "run", "a40", "--port", f"{port}:gpu0"):
            code, said = refused(serve)
            assert code == 1
            assert "does not watch port" in said
            assert "it was started with --port" in said
            assert "conf.d" not in said
        config = tmp_path / "config.toml"
        config.write_text(watch_table(other, "gpu0"))
        with governing(tmp_path / "run", "a40", "--config", str(config)):
            code, said = refused(serve)
            assert code == 1
            assert "conf.d/serve-" in said
            assert "another `memscaler serve`" not in said
            with serve("--ungoverned") as served:
                served.wait_ready()
                assert served.stop() == 130


def test_a_governor_that_watches_other_gpus(serve, tmp_path):
    """It could park ours while they work: refused, with what to do; a dry run says so."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    with governing(tmp_path / "run", "a40,p40", "--port", f"{port}:gpu1") as governor:
        uuid = governor.driver.boards[0].uuid
        code, said = refused(serve, "--port", str(port), boards="a40,p40")
        assert code == 1
        assert f"watches port {port} for other GPUs than {uuid}" in said
        assert f"start it again with --port {port}:{uuid}" in said
        with serve("--port", str(port), "--dry-run", boards="a40,p40") as served:
            assert served.wait() == 0
            assert f"watches port {port} for other GPUs than {uuid}" in served.said


def test_the_governor_of_another_serve(serve, model, tmp_path):
    """It reads no tables, and ends with its server: the advice that fits stands alone."""
    with serve() as first:
        first.wait_ready()
        words = ["--simulate", "a40", "--runtime-dir", str(tmp_path / "run"), "--port", "0"]
        second = subprocess.run(
            [sys.executable, "-m", "memscaler", "serve", "--model", str(model), *words],
            capture_output=True,
            text=True,
            check=False,
            cwd=REPOSITORY,
        )
        assert second.returncode == 1
        assert "it is that of another `memscaler serve`" in second.stderr
        assert "conf.d" not in second.stderr
        assert first.stop() == 130


@pytest.mark.parametrize("number", ["4294967295", "nobody", "99999999999999999999"])
def test_a_caller_who_is_none(serve, number):
    """The first is to the kernel "as it is", which would be root."""
    code, said = refused(serve, "--ungoverned", env={"SUDO_UID": number})
    assert code == 1
    assert f"SUDO_UID={number} SUDO_GID={number} are no user's" in said


def test_a_key_in_a_file(serve, tmp_path):
    """As a flag or a variable: it must not be left out, or everybody would be answered."""
    (tmp_path / "key").write_text("sesame\n")
    file = str(tmp_path / "key")
    for arguments, env in (((), {"LLAMA_ARG_API_KEY_FILE": file}), (("--", "--api-key-file", file), {})):
        with serve("--ungoverned", *arguments, env=env) as served:
            served.wait_ready()
            with pytest.raises(urllib.error.HTTPError, match="401"):
                urllib.request.urlopen(f"{served.address}/v1/completions", data=b'{"prompt": "a"}', timeout=30)


def test_the_log_that_is_shown_is_the_servers(serve, programs, tmp_path):
    """Whoever may write the log may put another file's name in its place: root does not read that out."""
    secret = tmp_path / "secret"
    secret.write_text("root's own words\n")
    program(
        programs / "llama-server",
        f'echo all is lost; log=$(readlink /proc/$$/fd/1); cd {tmp_path}; ln -sf {secret} "$log"; exit 3',
    )
    with serve("--ungoverned") as served:
        assert served.wait() == 1
        assert "all is lost" in served.said
        assert "root's own words" not in served.said


def test_a_dry_run_starts_nothing(serve, tmp_path):
    """The plan and both command lines; as JSON for programs. No secret among them."""
    with serve("--dry-run", "--port", "18080", env={"LLAMA_API_KEY": "sesame"}) as served:
        assert served.wait() == 0
        plan, governor, server = (served.told.splitlines()[0], *served.told.splitlines()[-2:])
        assert plan.startswith("gpu0 (NVIDIA A40): layers 0-1 and the output, ")
        assert governor.startswith(f"memscaler run --port 18080:{served.board.uuid} --simulate a40")
        assert f"CUDA_VISIBLE_DEVICES={served.board.uuid} {tmp_path}/bin/llama-server -m " in server
        assert server.endswith("-c 4096 -ngl 3")
        assert "sesame" not in served.told
    with serve("--dry-run", "--json", "--parallel", "2", "--", "--metrics") as served:
        assert served.wait() == 0
        told = json.loads(served.told)
        assert told["plan"]["gpus"][0]["uuid"] == served.board.uuid
        assert told["server"][-7:] == ["4096", "-np", "2", "--metrics", "-ngl", "3"][-7:] or told["server"][-2:] == [
            "-ngl",
            "3",
        ]
        assert "--metrics" in told["server"]
        assert told["governor"][:2] == ["memscaler", "run"]


def test_variables_that_would_change_the_plan(serve):
    """They are left out, and it is said."""
    with serve(
        env={
            "LLAMA_ARG_TENSOR_SPLIT": "1,9",
            "LLAMA_ARG_PORT": "1",
            "LLAMA_ARG_TOP_K": "7",
            "LLAMA_ARG_NO_KV_OFFLOAD": "1",
        }
    ) as served:
        served.wait_ready()
        assert "LLAMA_ARG_TENSOR_SPLIT is left out" in served.said
        assert "LLAMA_ARG_NO_KV_OFFLOAD is left out" in served.said
        environment = Path(f"/proc/{served.server}/environ").read_text()
        assert "LLAMA_ARG_TENSOR_SPLIT" not in environment
        assert "LLAMA_ARG_TOP_K=7" in environment


def test_llama_places_it_itself(serve):
    """--no-smart-split: its own words are its own, and every GPU that it sees is watched."""
    with serve("--no-smart-split", "--dry-run", "--", "-ngl", "1", "-ts", "1,1", boards="a40,p40") as served:
        assert served.wait() == 0
        assert served.told.splitlines()[-1].endswith("-c 4096 -ngl 1 -ts 1,1")
        assert served.told.count("GPU-") == 4  # two for the governor, two shown to the server


def as_user(model, folder, *arguments):
    """As somebody who may read all files, for ours may be in root's home."""
    reading = ["--inh-caps", "+dac_read_search", "--ambient-caps", "+dac_read_search"]
    command = ["setpriv", "--reuid", "65534", "--regid", "65534", "--clear-groups", *reading, sys.executable, "-m"]
    command += ["memscaler", "serve", "--model", str(model), "--runtime-dir", str(folder / "run"), *arguments]
    environment = {**os.environ, "MEMSCALER_METRICS": "off"}
    return subprocess.Popen(
        command, cwd=REPOSITORY, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def test_without_root_and_governor(model, tmp_path):
    """Exit 4 and what to type."""
    (tmp_path / "run").mkdir()
    (tmp_path / "run").chmod(0o777)
    process = as_user(model, tmp_path, "--simulate", "a40", "--port", "0")
    said, _ = process.communicate(timeout=180)
    assert process.returncode == 4, said
    assert "no memscaler runs here, and parking GPUs needs root" in said
    assert "sudo memscaler serve --model" in said
    assert "--ungoverned" in said


def test_without_a_gpu(model, tmp_path):
    """The CPU serves; there is nothing to park, so no right is needed for it."""
    process = as_user(model, tmp_path, "--port", "0", "--dry-run")
    said, _ = process.communicate(timeout=180)
    assert process.returncode == 0, said
    assert "no GPU can be used: " in said
    assert "placed by llama.cpp itself on the CPU" in said
    assert "memscaler run" not in said


def test_an_unknown_flag_for_the_server(serve):
    """The server refuses it, and its words are shown."""
    with serve("--", "--no-warmpu") as served:
        assert served.wait() == 1
        assert "unknown flag: --no-warmpu" in served.said
        assert "did you mean --no-warmup?" in served.said
        served.assert_nothing_is_left()


def test_no_server_at_all(serve, programs):
    """Without llama-server our engine serves."""
    (programs / "llama-server").unlink()
    with serve(env={"PATH": "/usr/bin:/bin"}) as served:
        served.wait_ready()
        assert "engine.py" in Path(f"/proc/{served.server}/cmdline").read_text()


def test_llama_serve_is_a_server(serve, programs):
    """The unified program of newer llama.cpp."""
    (programs / "llama-server").rename(programs / "engine")
    program(programs / "llama", f'[ "$1" = serve ] && shift && exec {programs}/engine "$@"')
    with serve("--dry-run", env={"PATH": f"{programs}:/usr/bin:/bin"}) as served:
        assert served.wait() == 0
        assert f"{programs}/llama serve -m " in served.told
