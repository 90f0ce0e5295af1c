"""The link, the journal, and who is meant: what the sleeper's processes hand to each other."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import stat

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from memscaler.child.link import MOST_WAITING, GpuSeen, LinkLost, Seen, ServerSeen
from memscaler.config.hours import parse_windows
from memscaler.config.stages import StageRule, Suspend
from memscaler.core.plain import from_plain, to_plain
from memscaler.core.stages import MachineSleep, Rung, Sleep, SleepingServer, Stage, StageTotals
from memscaler.daemon.child_words import MOST_BYTES, Done, Guard, Look
from memscaler.daemon.sleeper_words import Announce, read
from memscaler.sleep.drivers.protocol import Target
from memscaler.sleep.journal import Journal
from memscaler.sleep.link import Do, Link, Rules, encode, from_governor
from memscaler.sleep.scope import names, rules_for

RULE = StageRule(stage=Stage.CHECKPOINT, after_s=1800.0, servers=("chat",), program="/opt/cuda-checkpoint")
SUSPEND = Suspend(never=parse_windows(["Mon-Fri 09:00-18:00"]), busy=(("pgrep", "rsync"),), users="any")
CHAT = Target("8080", 8080, name="chat", gpus=("GPU-1",))
WEB = Target("8080@container:web", 8080, scope="container:web", gpus=("GPU-2",))


@pytest.mark.parametrize(
    "message",
    [
        Seen(5, "a ring", {"GPU-1": GpuSeen("parked", 3, held=True)}, (ServerSeen("8080", 8080, pids=(1, 2)),), 7),
        Rules((RULE,), SUSPEND, {"gpu0": "GPU-1"}),
        Do(1, "sleep", ("8080",), Stage.CHECKPOINT, 3.0, "root"),
    ],
)
def test_the_governors_messages_come_back_as_they_were(message):
    """Windows, tuples, enumerations and all."""
    assert from_governor(encode(message)) == message


@pytest.mark.parametrize(
    "message",
    [
        Guard(1, ("8080", "8080@container:web"), on=True),
        Look(2),
        Announce(3, "8080", ("127.0.0.1", 4), ("127.0.0.1", 8080)),
        Done(4, ok=False, error="no", document={"a": [1, None]}),
        Sleep(
            1,
            (
                SleepingServer(
                    "chat",
                    8080,
                    stage=Stage.CHECKPOINT,
                    rung=Rung.DOWN,
                    totals={Stage.CHECKPOINT: StageTotals(1, 1, 0, 2.5, (0.5,))},
                ),
            ),
            MachineSleep(never="no", why_not=("a", "b")),
        ),
    ],
)
def test_the_sleepers_messages_come_back_as_they_were(message):
    """Likewise."""
    assert read(encode(message)) == message


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"7",
        b"{}",
        b'{"do": {"id": true, "what": "wake"}}',
        b'{"do": {"id": 1, "what": "reboot"}}',
        b'{"do": {"id": 1, "what": "wake", "servers": "8080"}}',
        b'{"do": {"id": 1, "what": "wake", "servers": [8080]}}',
        b'{"do": {"id": 1, "what": "sleep", "stage": "coma"}}',
        b'{"seen": {"at_ns": 1.5}}',
        b'{"seen": {"at_ns": 1, "gpus": []}}',
        b'{"seen": {"at_ns": 1, "servers": [[]]}}',
        b'{"seen": {}, "end": {}}',
        b"\xff",
    ],
)
def test_what_makes_no_sense_is_a_value_error(data):
    """And never anything else."""
    with pytest.raises(ValueError, match=r"."):
        from_governor(data)


@settings(max_examples=60, deadline=None)
@given(
    st.binary(max_size=200) | st.recursive(st.none() | st.booleans() | st.integers() | st.text(), st.lists).map(repr)
)
def test_no_bytes_raise_anything_else(data):
    """Whatever comes."""
    data = data if isinstance(data, bytes) else json.dumps({"seen": data}).encode()
    with contextlib.suppress(ValueError):
        from_governor(data)


def test_words_of_a_later_version_are_passed_over():
    """As fields are."""
    assert from_governor(b'{"dance": {}}') is None
    assert from_governor(b'{"end": {"why": "later"}}') is not None


def test_a_link_keeps_what_cannot_be_sent_and_never_waits():
    """The other side may stand still."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with theirs:
        link = Link(ours, encode)
        sent = 0
        while not link.waiting:
            link.send(Look(sent))
            sent += 1
        for number in range(sent, sent + 10):
            link.send(Look(number))
        heard = []
        while len(heard) < sent + 10:
            heard.append(read(theirs.recv(MOST_BYTES)).id)
            link.flush()
        assert heard == list(range(sent + 10))
        for _ in range(MOST_WAITING + sent):
            with contextlib.suppress(LinkLost):
                link.send(Look(0))
        with pytest.raises(LinkLost):
            link.send(Look(0))
        assert link.receive() is None
    with pytest.raises(LinkLost):
        link.receive()
    link.close()
    with pytest.raises(ValueError, match="bytes"):
        encode(Done(1, error="x" * MOST_BYTES))


def test_plain_values_and_back():
    """What JSON cannot say is said otherwise."""
    assert to_plain(SUSPEND)["never"] == [{"days": [0, 1, 2, 3, 4], "begin_min": 540, "end_min": 1080}]
    assert from_plain(Suspend, json.loads(json.dumps(to_plain(SUSPEND)))) == SUSPEND
    assert from_plain(StageRule, {"stage": "park", "after_s": 3}).after_s == 3.0
    with pytest.raises(ValueError, match=r"StageRule\.after_s is missing"):
        from_plain(StageRule, {"stage": "park"})
    with pytest.raises(ValueError, match="no float"):
        from_plain(StageRule, {"stage": "park", "after_s": True})


# ---- the journal -------------------------------------------------------------------------------------------------------

SLEEPS = StageRule(stage=Stage.SERVER_SLEEP, after_s=1.0)


def test_the_journal_keeps_stages_in_order_and_forgets_them(tmp_path):
    """One file for each server, for root alone."""
    journal = Journal(tmp_path)
    journal.add(CHAT, SLEEPS, {"port": 1})
    journal.add(CHAT, RULE, {"pid": 2})
    journal.add(WEB, RULE, {"pid": 3})
    chat, web = Journal(tmp_path).found().entries
    assert chat.server == CHAT
    assert [(spell.rule, spell.memo) for spell in chat.spells] == [(SLEEPS, {"port": 1}), (RULE, {"pid": 2})]
    assert chat.pid == os.getpid()
    assert web.server == WEB
    for path in (tmp_path / "sleep").glob("*.json"):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
    journal.take(CHAT, RULE)
    assert [spell.rule.stage for spell in journal.found().entries[0].spells] == [Stage.SERVER_SLEEP]
    journal.take(CHAT, SLEEPS)
    journal.take(CHAT, SLEEPS)
    assert [entry.server for entry in journal.found().entries] == [WEB]


def test_a_stage_that_is_entered_again_is_there_once(tmp_path):
    """With its last memo, as the deepest."""
    journal = Journal(tmp_path)
    journal.add(CHAT, RULE, {"pid": 1})
    journal.add(CHAT, RULE, {"pid": 2})
    assert [spell.memo for spell in journal.found().entries[0].spells] == [{"pid": 2}]


def test_names_that_are_paths_stay_in_the_folder(tmp_path):
    """A key may be a path of a network namespace, and long."""
    journal = Journal(tmp_path)
    keys = ["8080@netns:/run/netns/a", "8080@netns:../../x", "8080@netns:" + "/y" * 300, "8080@netns:" + "/z" * 300]
    for key in keys:
        journal.add(Target(key, 8080), RULE, {})
    assert len(list((tmp_path / "sleep").iterdir())) == len(keys)
    assert {entry.server.key for entry in journal.found().entries} == set(keys)


def test_an_earlier_boot_is_void_and_rubbish_is_told(tmp_path):
    """What was asleep then is up now, or gone."""
    Journal(tmp_path, boot_id="earlier").add(CHAT, RULE, {})
    folder = tmp_path / "sleep"
    (folder / "broken.json").write_text("{")
    (folder / "link.json").symlink_to("/etc/passwd")
    (folder / "deep.json").write_text("[" * 50_000)
    found = Journal(tmp_path).found()
    assert found.entries == ()
    assert [path.name for path in found.unreadable] == ["broken.json", "deep.json", "link.json"]
    assert not (folder / "8080.json").exists()


def test_one_owner_at_a_time(tmp_path):
    """As long as he lives."""
    journal = Journal(tmp_path)
    fd = journal.own()
    with pytest.raises(BlockingIOError):
        Journal(tmp_path).own()
    os.close(fd)
    os.close(journal.own())


# ---- who is meant ------------------------------------------------------------------------------------------------------


def test_rules_for_one_server_go_before_those_for_all():
    """One for each stage, in the ladder's order, whatever the order of the file."""
    every = StageRule(stage=Stage.STOP_SERVER, after_s=9.0)
    mine = StageRule(stage=Stage.STOP_SERVER, after_s=5.0, servers=("chat",))
    machine = StageRule(stage=Stage.SUSPEND, after_s=99.0)
    gpu = StageRule(stage=Stage.SERVER_SLEEP, after_s=1.0, servers=("gpu1",))
    rules = Rules((every, mine, gpu, machine), gpu_names={"gpu1": "GPU-2"})
    assert rules_for(CHAT, rules) == (mine,)
    assert rules_for(WEB, rules) == (gpu, every)


@pytest.mark.parametrize(
    ("word", "meant"),
    [("chat", [CHAT]), ("8080", [CHAT, WEB]), ("8080@container:web", [WEB]), ("GPU-2", [WEB]), ("gpu9", [])],
)
def test_words_that_mean_servers(word, meant):
    """Names, ports, keys, GPUs."""
    assert [server for server in (CHAT, WEB) if names((word,), server, {"gpu0": "GPU-1"})] == meant
    assert names((), CHAT, {})
