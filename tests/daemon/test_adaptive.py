"""idle_after = "auto" in a whole daemon: it goes by the history, says why, and changes with a reload."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path

import pytest

from memscaler.cli.client import Client
from memscaler.core.adaptive import Limits, break_even_s
from memscaler.core.calibration import Calibration, Spread
from memscaler.core.costs import ASSUMED
from memscaler.core.energy import open_account
from memscaler.core.gaps import Gap
from memscaler.core.model import Public
from memscaler.history.calibration import save
from memscaler.history.reader import open_history
from memscaler.history.writer import History
from tests.governor import Governor, connect, eventually, governing, listener, watch_table

pytestmark = pytest.mark.usefixtures("quick_settings")

SECOND_NS = 1_000_000_000
NOTHING = "nothing known yet, break-even with the price of waiting"


def told(governor: Governor) -> dict[str, object]:
    (gpu,) = Client(str(governor.runtime_dir)).status()["gpus"]
    return dict(gpu)


def uuid_of(runtime: Path, config: Path) -> str:
    with governing(runtime, "a40", "--config", str(config)) as governor:
        return str(told(governor)["uuid"])


def remember(runtime: Path, uuid: str, gaps_s: list[float]) -> None:
    """As a daemon that has run here before would have."""
    history = History(runtime)
    history.take_on(uuid, 0, "NVIDIA A40", open_account(Public.AWAKE, time.monotonic_ns()))
    end_ns = time.monotonic_ns() - SECOND_NS
    for gap_s in gaps_s:
        history.gap(Gap(uuid, end_ns - round(gap_s * SECOND_NS), end_ns))
        end_ns -= round((gap_s + 5) * SECOND_NS)
    history.close()
    with open_history(runtime) as kept:
        assert len(kept.gaps(uuid)) == len(gaps_s)


def test_it_goes_by_the_history_and_says_so(tmp_path):
    """Sixty gaps of ten minutes: it parks after the time that they say, and the status has the figures."""
    config, runtime = tmp_path / "config.toml", tmp_path / "run"
    with listener() as server:
        config.write_text('idle_after = "auto"\nwait_price = 200\n' + watch_table(server, "gpu0"))
        uuid = uuid_of(runtime, config)
        remember(runtime, uuid, [600.0] * 60)
        with governing(runtime, "a40", "--config", str(config)) as governor:
            assert governor.events("gaps.recalled")[0]["gaps"] == {uuid: 60}
            gpu = told(governor)
            idle_after_s = gpu["idle_after_s"]
            assert 1 <= idle_after_s < 3, gpu
            assert gpu["idle_why"] == f"gaps longer than {idle_after_s:.2g} s last 10 min in the median"
            eventually(lambda: governor.driver.boards[0].locks)
            with connect(server), server.accept()[0]:
                eventually(lambda: not governor.driver.boards[0].locks)
            eventually(lambda: governor.driver.boards[0].locks)


def test_nothing_is_known(tmp_path):
    """Without a history it is the break-even timer; a damaged one costs nothing but what it held."""
    config, runtime = tmp_path / "config.toml", tmp_path / "run"
    runtime.mkdir()
    (runtime / "history.sqlite").write_bytes(b"no database at all" * 100)
    with listener() as server:
        config.write_text('idle_after = "auto"\n' + watch_table(server, "gpu0"))
        with governing(runtime, "a40", "--config", str(config)) as governor:
            gpu = told(governor)
            assert gpu["idle_why"] == NOTHING
            assert 5 < gpu["idle_after_s"] < 10


def test_between_auto_and_a_time_by_reload(tmp_path):
    """What is learned is kept while a fixed time is in force; it is a fixed time's turn without a reason."""
    config, runtime = tmp_path / "config.toml", tmp_path / "run"
    with listener() as server:
        table = watch_table(server, "gpu0")
        config.write_text('idle_after = "1h"\n' + table)
        uuid = uuid_of(runtime, config)
        remember(runtime, uuid, [900.0] * 40)
        with governing(runtime, "a40", "--config", str(config)) as governor:
            operator = Client(str(governor.runtime_dir))
            assert (told(governor)["idle_after_s"], told(governor)["idle_why"]) == (3600.0, "")
            config.write_text('idle_after = "auto"\n' + table)
            assert operator.change("reload")["changes"] == ["idle_after: 3600s -> auto"]
            assert "15 min in the median" in str(told(governor)["idle_why"])
            eventually(lambda: governor.driver.boards[0].locks, within_s=20)
            config.write_text('idle_after = "2h"\n' + table)
            operator.change("reload")
            assert (told(governor)["idle_after_s"], told(governor)["idle_why"]) == (7200.0, "")


def test_a_gpu_that_comes_with_a_reload_has_its_history(tmp_path):
    """It begins with what earlier runs have seen, as it would after a restart."""
    config, runtime = tmp_path / "config.toml", tmp_path / "run"
    with listener() as first, listener() as second:
        both = watch_table(first, "gpu0") + watch_table(second, "gpu1")
        config.write_text('idle_after = "auto"\n' + both)
        with governing(runtime, "a40,a40", "--config", str(config)) as governor:
            uuids = [str(gpu["uuid"]) for gpu in Client(str(governor.runtime_dir)).status()["gpus"]]
        remember(runtime, uuids[1], [900.0] * 40)
        config.write_text('idle_after = "auto"\n' + watch_table(first, "gpu0"))
        with governing(runtime, "a40,a40", "--config", str(config)) as governor:
            assert told(governor)["idle_why"] == NOTHING
            config.write_text('idle_after = "auto"\n' + both)
            Client(str(governor.runtime_dir)).change("reload")
            old, new = Client(str(governor.runtime_dir)).status()["gpus"]
            assert old["idle_why"] == NOTHING
            assert "last 15 min in the median" in str(new["idle_why"])


def test_a_calibration_counts_at_once(tmp_path):
    """Without a single gap: at the start, and with a reload; another price of waiting, too."""
    config, runtime = tmp_path / "config.toml", tmp_path / "run"
    with listener() as server:
        table = watch_table(server, "gpu0")
        config.write_text('idle_after = "auto"\n' + table)
        with governing(runtime, "a40", "--config", str(config)) as governor:
            operator = Client(str(governor.runtime_dir))
            uuid, assumed_s = str(told(governor)["uuid"]), break_even_s(ASSUMED, Limits())
            assert told(governor)["idle_after_s"] == pytest.approx(assumed_s, abs=0.001)
            dear = calibrated(uuid, slow_s=1.0)
            save(runtime, [dear])
            operator.change("reload")
            gpu = told(governor)
            expected_s = break_even_s(dear.costs(), Limits())
            assert (gpu["idle_after_s"], gpu["idle_why"]) == (pytest.approx(expected_s, abs=0.001), NOTHING)
            assert expected_s > assumed_s + 5
            config.write_text('idle_after = "auto"\nwait_price = 600\n' + table)
            operator.change("reload")
            expected_s = break_even_s(dear.costs(), Limits(wait_price_w=600))
            assert told(governor)["idle_after_s"] == pytest.approx(expected_s, abs=0.001)
        with governing(runtime, "a40", "--config", str(config)) as governor:
            assert told(governor)["idle_after_s"] == pytest.approx(expected_s, abs=0.001)


def calibrated(uuid: str, slow_s: float) -> Calibration:
    """An A40 that takes so long to wake."""

    def sure(value: float) -> Spread:
        return Spread(value, value, value)

    known = Calibration(uuid, "NVIDIA A40", time.time(), "0", "1", rounds=1, back_s=sure(slow_s), down_s=sure(0.1))
    return replace(known, awake_w=sure(80.0), parked_w=sure(18.0), switch_j=sure(19.0))
