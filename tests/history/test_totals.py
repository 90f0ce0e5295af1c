"""What was saved outlives the daemon; a disk that does not take it costs that figure and nothing else."""

import re
import subprocess
import time

import pytest

from memscaler.cli.client import Client
from memscaler.history import writer
from memscaler.history.reader import open_history
from memscaler.history.tables import FILE
from memscaler.history.writer import History
from tests.governor import eventually, governing, listener, port_of

GPU, OTHER = "GPU-a", "GPU-b"


def test_it_survives_a_restart(tmp_path):
    """The total goes on where it was; the metrics, as counters do, begin with 0. A dry run tells it and writes nothing."""
    folder = tmp_path / "state"
    with listener() as server:
        arguments = ["a40", "--port", f"{port_of(server)}:gpu0", "--idle-after", "2500ms", "--metrics", "127.0.0.1:0"]
        env = {"MEMSCALER_STATE_DIR": str(folder)}
        with governing(tmp_path / "run", *arguments, env=env) as governor:
            client = Client(str(governor.runtime_dir))
            gpu = eventually(
                lambda: next((gpu for gpu in client.status()["gpus"] if gpu["energy_saved_j"] > 60), None), within_s=30
            )
            assert gpu["energy_saved_today_j"] > 0
            assert not (folder / FILE).exists(), "it is not written every now and then"
            assert governor.stop() == 0
        with open_history(folder) as history:
            since_unix_s = history.since_unix_s()
            assert history.totals()[gpu["uuid"]][0] > gpu["energy_saved_j"] - 0.1
        with governing(tmp_path / "run", *arguments, env=env) as governor:
            again = client.status()
            assert again["gpus"][0]["energy_saved_j"] > gpu["energy_saved_j"] - 0.1
            assert again["saved_since_unix_s"] == round(since_unix_s)
            assert re.search(r"^memscaler_gpu_energy_saved_joules_total\{.*\} 0\.0$", governor.metrics(), re.MULTILINE)
            assert governor.stop() == 0
        before = (folder / FILE).stat().st_mtime_ns
        with governing(tmp_path / "run", *arguments, "--dry-run", env=env) as governor:
            assert client.status()["gpus"][0]["energy_saved_j"] > gpu["energy_saved_j"] - 0.1
            assert governor.stop() == 0
        assert [path.name for path in folder.iterdir()] == [FILE]
        assert (folder / FILE).stat().st_mtime_ns == before


def test_it_counts(tmp_path):
    """What an account says more than before; one that begins anew begins with 0."""
    saved = History(tmp_path)
    for told_j in (10.0, 10.0, 25.0):
        saved.count(GPU, told_j)
    saved.count(OTHER, 1.0)
    saved.forget_count(GPU)
    saved.count(GPU, 5.0)
    assert (saved.of(GPU), saved.of(OTHER), saved.of("GPU-c")) == ((30.0, 30.0), (1.0, 1.0), (0.0, 0.0))
    saved.close()
    again = History(tmp_path)
    again.count(GPU, 5.0)
    assert (again.of(GPU), again.of(OTHER)) == ((35.0, 35.0), (1.0, 1.0))
    assert abs(again.since_unix_s - saved.since_unix_s) < 1
    again.close()
    assert History(tmp_path).of(GPU) == (35.0, 35.0)


def test_a_day_is_a_local_one(tmp_path, monkeypatch):
    """On another day of the calendar today's figure is 0, and the total stays."""
    try:
        for zone, told in (("EAST-14", (7.0, 7.0)), ("WEST+12", (2.0, 9.0))):  # never the same date
            monkeypatch.setenv("TZ", zone)
            time.tzset()
            saved = History(tmp_path)
            saved.count(GPU, told[0])
            assert saved.of(GPU) == told
            saved.close()
            assert History(tmp_path).of(GPU) == told
    finally:
        monkeypatch.undo()
        time.tzset()


def test_it_is_written_now_and_then(tmp_path, monkeypatch):
    """By another thread, when it is due; nothing at all is written in a dry run, and nothing if nothing was saved."""
    for saved in (History(tmp_path, writes=False), History(tmp_path)):
        saved.count(GPU, 0.0)
        saved.close()
    dry = History(tmp_path, writes=False)
    dry.count(GPU, 5.0)
    dry.close()
    assert list(tmp_path.iterdir()) == []
    saved = History(tmp_path / "new" / "folder")
    saved.count(GPU, 5.0)
    time.sleep(0.1)
    assert list(tmp_path.iterdir()) == []
    monkeypatch.setattr(writer, "WRITE_AFTER_NS", 0)
    later = History(tmp_path / "new" / "folder")
    later.count(GPU, 6.0)
    eventually(lambda: History(tmp_path / "new" / "folder").of(GPU) == (6.0, 6.0))


def test_a_full_disk(small_disk, capfd):
    """What was written stays; that nothing more can be is said once; when there is room again it is made up for."""
    saved = History(small_disk)
    saved.count(GPU, 5.0)
    saved.close()
    with pytest.raises(OSError, match="No space left"):
        (small_disk / "ballast").write_bytes(b"x" * (1 << 20))
    saved.count(GPU, 9.0)
    saved.close()
    saved.count(GPU, 10.0)
    saved.close()
    assert capfd.readouterr().out.count("history.not_written") == 1
    assert saved.failures >= 2
    assert {FILE, "ballast"} <= {path.name for path in small_disk.iterdir()}
    assert History(small_disk).of(GPU) == (5.0, 5.0)
    (small_disk / "ballast").unlink()
    saved.close()
    assert History(small_disk).of(GPU) == (10.0, 10.0)


def test_a_disk_that_is_read_only(small_disk, capfd):
    """Costs the figure, and says so."""
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    saved = History(small_disk)
    saved.count(GPU, 5.0)
    saved.close()
    assert "Read-only file system" in capfd.readouterr().out
    assert saved.of(GPU) == (5.0, 5.0)


def test_a_disk_that_becomes_read_only(small_disk, capfd):
    """What is there is told; what comes is said to be unwritten once, and is written when the disk is well again."""
    saved = History(small_disk)
    saved.count(GPU, 5.0)
    saved.close()
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    again = History(small_disk)
    again.count(GPU, 7.0)
    again.close()
    with open_history(small_disk) as history:
        assert history.totals()[GPU][0] == 5.0
    assert capfd.readouterr().out.count("history.not_written") == 1
    subprocess.run(["mount", "-o", "remount,rw", str(small_disk)], check=True)
    again.close()
    assert again.of(GPU) == (12.0, 12.0)
    assert History(small_disk).of(GPU) == (12.0, 12.0)


@pytest.mark.parametrize("where", ["", "-journal"])
def test_what_lies_in_the_way(tmp_path, where):
    """What a link or a pipe leads to is not touched, and not waited for: nothing is written, and it is said."""
    target = tmp_path / "target"
    target.write_text("mine")
    folder = tmp_path / "state"
    folder.mkdir()
    (folder / f"{FILE}{where}").symlink_to(target)
    saved = History(folder)
    saved.count(GPU, 5.0)
    saved.close()
    assert target.read_text() == "mine"
    assert saved.of(GPU) == (5.0, 5.0)
    (folder / f"{FILE}{where}").unlink(missing_ok=True)
    saved.close()
    assert History(folder).of(GPU) == (5.0, 5.0)
