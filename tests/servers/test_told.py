"""What operators are told of their servers: by the names that they gave, what is not applied, what the planner chose."""

import pytest

from demo import model
from tests.servers.bench import NOBODY, eventually, free_port
from tests.servers.steered import steered


@pytest.fixture(scope="module")
def b():
    """Two simulated boards, one server on a named GPU, one that the planner places, one off."""
    with steered() as made:
        made.governor = made.runtime  # where the simulated driver's memory may be written
        model.write(made.folder / "tiny.gguf")
        (made.folder / "tiny.gguf").chmod(0o644)
        describe(made)
        made.begin(words=("--simulate", "a40,p40"))
        for name in ("named", "placed"):
            made.until(name, "ready", 90)
        yield made


PORTS = {"named": free_port(), "placed": free_port(), "off": free_port()}


def describe(b, **options):
    of_model = {"model": str(b.folder / "tiny.gguf"), "options": {"ctx-size": 256, **options}}
    b.describe(
        {"name": "named", "command": b.small("--port", PORTS["named"]), "gpus": ["gpu1"]},
        {"name": "placed", **of_model, "port": PORTS["placed"], "gpus": "auto"},
        {"name": "off", "command": b.small("--port", PORTS["off"]), "gpus": ["gpu0"], "enabled": False},
    )


def rows(b):
    done = b.ask("list")
    assert done.returncode == 0, done.stderr
    return {line.split()[0]: line.split() for line in done.stdout.splitlines() if line}, done.stdout


def test_gpus_have_the_operators_names(b):
    """In the list, whether the server runs or not; their UUIDs are for programs, and for who looks at one."""
    table, text = rows(b)
    assert {name: row[4] for name, row in table.items() if name in PORTS} == {
        "named": "gpu1", "placed": "gpu0", "off": "gpu0",
    }  # fmt: skip
    assert "GPU-" not in text
    told = {each["name"]: each for each in b.told("list")["servers"]}
    assert told["named"]["gpus"][0].startswith("GPU-")
    assert told["named"]["names"] == ["gpu1"]
    assert f"gpus        gpu1 ({told['named']['gpus'][0]})\n" in b.ask("show", "named").stdout


def test_what_the_planner_chose(b):
    """`show` says that it was asked, which words it added, and where the layers are."""
    text = b.ask("show", "placed").stdout
    uuid = b.server("placed")["gpus"][0]
    assert f"gpus        auto: gpu0 ({uuid})\n" in text
    assert "planned     gpu0 (NVIDIA A40): layers 0-1 and the output, " in text
    assert "arguments   -ngl 3\n" in text
    b.kill()
    b.begin(words=("--simulate", "a40,p40"))
    assert "planned     gpu0 (NVIDIA A40)" in b.ask("show", "placed").stdout, "an adopted one"
    assert b.told("show", "placed")["planned"]["arguments"] == ["-ngl", "3"]


def test_what_is_not_applied_is_marked(b):
    """By a star, and a line that says what to do; also for who may only look."""
    assert rows(b)[0]["placed"][1] == "ready"
    describe(b, parallel=2)
    try:
        for done in (b.ask("list"), b.ask("list", user=NOBODY)):
            table = {line.split()[0]: line.split() for line in done.stdout.splitlines() if line}
            assert table["placed"][1] == "ready*"
            assert table["named"][1] == "ready"
            said = " ".join(done.stdout.split())
            assert "* described otherwise than it runs: placed (options); sudo memscaler servers apply" in said
        assert {each["name"]: each["pending"] for each in b.told("list")["servers"]}["placed"] == ["options"]
    finally:
        describe(b)
    assert rows(b)[0]["placed"][1] == "ready"


def test_who_runs_it_by_hand_is_named(b):
    """In the log of the supervisor: nobody is called default."""
    assert [event["user"] for event in b.events("supervisor.started")][-1:] == ["nobody"]


def test_logs_of_who_has_said_nothing():
    """A server that was never started has no more to say; one that was silent is said to have been."""
    with steered() as b:
        b.describe(
            {"name": "never", "command": ["/nothing/here"]},
            {"name": "silent", "command": ["/bin/false"], "restart_limit": 1},
        )
        b.begin()
        for name in ("never", "silent"):
            b.until(name, "failed")
        said = " ".join(b.ask("list").stdout.split())
        assert "memscaler servers logs never" not in said
        assert "memscaler servers logs silent has more" in said
        done = b.ask("logs", "silent")
        assert (done.returncode, done.stdout) == (0, "")
        assert "silent.log is empty: nothing has been written yet" in done.stderr


@pytest.mark.parametrize(
    ("words", "content", "told"),
    [
        (("-m", "weights"), None, "model {}: no such file"),
        (("--model", "weights"), b"once upon a time", "model {}: not a GGUF file"),
        (("--model=weights.gguf",), b"once upon a time", "model {}.gguf: not a GGUF file"),
    ],
)
def test_a_command_with_a_bad_model_fails_at_once(words, content, told):
    """Not after restarts in vain: where only the command names it, too."""
    with steered() as b:
        if content is not None:
            for name in ("weights", "weights.gguf"):
                (b.folder / name).write_bytes(content)
                (b.folder / name).chmod(0o644)
        more = [word.replace("weights", str(b.folder / "weights")) for word in words]
        b.describe({"name": "a", "command": ["llama-server", "--port", str(free_port()), *more]})
        b.begin()
        report = b.until("a", "failed")
        assert told.format(b.folder / "weights") in report["reason"]
        assert report["restarts"] == 0


def test_a_model_that_is_fetched_need_not_be_there():
    """llama.cpp writes it to where -m says; and what others call a model is theirs."""
    with steered() as b:
        ports = [free_port() for _ in range(2)]
        fetched = ["--model", str(b.folder / "weights.gguf"), "--hf-repo", "a/b"]
        b.describe(
            {"name": "fetched", "command": ["/bin/sleep", "1000", *fetched], "port": ports[0]},
            {"name": "other", "command": b.small("--port", ports[1], "-m", "module")},
        )
        b.begin()
        b.until("other", "ready")
        eventually(lambda: b.events("server.ended", server="fetched"), what=b.said)
