"""The GPUs of the simulated driver, what each gives, and which may be used."""

from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from memscaler.core.errors import UsageError
from memscaler.planner import devices, visible
from memscaler.planner.devices import Budget, Device, NoRoom, Survey, choose, hypothetical, offers, require_room
from memscaler.planner.sizes import GIB, MIB, more, parse_bytes, size
from memscaler.simulator import SimulatedDriver, loading

BOARDS = ("a40", "p40", "a100-mig")
GPUS = tuple(
    Device(i, f"GPU-{letter * 8}-0000", f"card {letter}", f"00000000:0{i + 1}:00.0", 24 * GIB, free * GIB)
    for i, (letter, free) in enumerate(zip("abc", (20, 4, 22), strict=True))
)


@pytest.fixture
def driver(tmp_path: Path, monkeypatch):
    """An A40, a P40 with nothing resident, and an A100 that is cut into instances, in this process."""
    monkeypatch.setenv("MEMSCALER_SIM_STATE", "")  # so that it is put back afterwards
    path = tmp_path / "run" / loading.STATE
    path.parent.mkdir(parents=True)
    made = SimulatedDriver.create(path, BOARDS)
    made.boards[1].set_context(False)
    loading.load(made.library_dir, path)
    yield made
    made.close()


def test_look(driver):
    """Index, UUID, name, address and memory as the driver has them; a MIG GPU is left out, with the reason."""
    found = devices.survey()
    assert [gpu.name for gpu in found.devices] == ["NVIDIA A40", "Tesla P40"]
    for gpu, board in zip(found.devices, driver.boards, strict=False):
        assert (gpu.index, gpu.uuid, gpu.pci) == (board.index, board.uuid, board.pci_bus_id)
        assert gpu.total_bytes == board.memory_bytes
    a40, p40 = found.devices
    assert a40.free_bytes < 0.41 * a40.total_bytes
    assert p40.free_bytes > 0.98 * p40.total_bytes
    assert found.notes == ("gpu2 is cut into MIG instances, which are not planned for",)


def test_memory_that_somebody_takes_is_not_free(driver):
    """It is read anew each time."""
    before = devices.look()[0]
    board = driver.boards[0]
    board.set_context(True, used_bytes=40 * GIB)
    after = devices.look()[0]
    assert after.total_bytes == before.total_bytes
    assert 7 * GIB < after.free_bytes < 8.1 * GIB


def test_looking_changes_nothing(driver):
    """No setter is called, and nobody needs rights for it."""
    driver.set_permission("deny")
    mark = driver.log_mark()
    assert len(devices.look()) == 2
    calls = {call.symbol for call in driver.call_log(after=mark)}
    assert calls
    assert not [name for name in calls if "Set" in name or "Reset" in name]


def test_a_gpu_that_fails_does_not_hide_the_others(driver):
    """It is told why it is missing."""
    driver.boards[0].inject("nvmlDeviceGetMemoryInfo", code=999)
    found = devices.survey()
    assert [gpu.index for gpu in found.devices] == [1]
    assert any(note.startswith("gpu0 does not tell its memory: nvmlDeviceGetMemoryInfo:") for note in found.notes)
    driver.boards[1].lose()
    found = devices.survey()
    assert not found.devices
    assert any("gpu1" in note for note in found.notes)


def test_look_starts_a_simulation_itself(tmp_path, driver):
    """For who has none running yet; here it finds the boards that are there."""
    found = devices.look(BOARDS, tmp_path / "run")
    assert [gpu.uuid for gpu in found] == [board.uuid for board in driver.boards[:2]]


def test_budgets():
    """Free less the reserve; too little is nothing; the order is the operator's."""
    given = [(each.device.index, each.budget_bytes) for each in offers(GPUS, Budget())]
    assert given == [(2, 21 * GIB), (0, 19 * GIB), (1, 3 * GIB)]
    assert [each.device.index for each in offers(GPUS, Budget(order="index"))] == [0, 1, 2]
    bigger = (replace(GPUS[1], total_bytes=80 * GIB), GPUS[0], GPUS[2])
    assert [each.device.index for each in offers(bigger, Budget(order="total_desc"))] == [1, 0, 2]
    strict = offers(GPUS, Budget(reserve_bytes=2 * GIB, minimum_bytes=3 * GIB, order="index"))
    assert [(each.device.index, each.budget_bytes) for each in strict] == [(0, 18 * GIB), (2, 20 * GIB), (1, 0)]
    edge = offers(GPUS, Budget(reserve_bytes=GIB, minimum_bytes=3 * GIB))
    assert edge[-1].budget_bytes == 3 * GIB


def test_no_room():
    """What is missing, and what to do."""
    require_room(GPUS, Budget())
    with pytest.raises(NoRoom, match=r"gpu2 has the most free, 22.0 GiB, of which 30.0 GiB are reserved") as raised:
        require_room(GPUS, Budget(reserve_bytes=30 * GIB))
    assert raised.value.exit_code == 2
    assert "--reserve-mib" in raised.value.hint
    with pytest.raises(NoRoom, match="no GPU may be used"):
        require_room((), Budget())


A, B, C = (gpu.uuid for gpu in GPUS)


@pytest.mark.parametrize(
    ("mask", "chosen", "told"),
    [
        ("0,2", (A, C), None),
        ("2,0", (C, A), None),
        (" 1 , 0 ", (B, A), None),
        (C, (C,), None),
        ("GPU-c,GPU-a", (C, A), None),
        ("", (), "it hides every GPU"),
        (" ", (), "it hides every GPU"),
        ("-1", (), "'-1' is neither a number nor"),
        ("NoDevFiles", (), "is neither a number nor the beginning"),
        ("0,-1,2", (A,), "'-1' is no number, as the first one is, and hides the 1 after it"),
        ("0,7,1,2", (A,), "'7' is no GPU that can be used, and hides the 2 after it"),
        ("7", (), "'7' is no GPU that can be used"),
        ("0,GPU-c", (A,), "'GPU-c' is no number"),
        ("GPU-c,0,1", (C,), "'0' is neither a number nor the beginning of a GPU's UUID, and hides the 1 after it"),
        ("GPU-", (), "'GPU-' means several GPUs"),
        ("GPU-f", (), "'GPU-f' is no GPU"),
        ("0,2,0", (), "a second time"),
        ("GPU-a,GPU-aaa", (), "a second time"),
        ("MIG-1234,GPU-a", (), "is a MIG instance, which is not planned for, and hides the 1 after it"),
        ("GPU-a,MIG-GPU-a/1/0", (A,), "is a MIG instance"),
        ("0,,2", (A,), "'' is no number"),
        ("2gpus", (C,), None),
    ],
)
def test_cuda_visible_devices(mask, chosen, told):
    """As CUDA reads it: what is not valid hides all that follows."""
    uuids, notes = visible.devices(mask, [(gpu.index, gpu.uuid) for gpu in GPUS])
    assert uuids == chosen
    assert bool(notes) == (told is not None)
    assert told is None or told in notes[0]


@given(st.text(alphabet="0123,-GPUabMI /x", max_size=12))
def test_any_mask_is_read(mask):
    """Whatever stands there: GPUs that there are, each once."""
    uuids, notes = visible.devices(mask, [(gpu.index, gpu.uuid) for gpu in GPUS])
    assert len(set(uuids)) == len(uuids)
    assert set(uuids) <= {A, B, C}
    assert uuids or notes


def test_what_may_be_used():
    """The variable counts unless --devices says otherwise; numbers of different GPUs are doubtful without the order."""
    found = Survey(GPUS, ("gpu9 is lost",))
    assert choose(found, {}).devices == GPUS
    masked = choose(found, {"CUDA_VISIBLE_DEVICES": "2,0"})
    assert masked.devices == (GPUS[2], GPUS[0])
    assert masked.notes[0] == "gpu9 is lost"
    assert "in PCI bus order" in masked.notes[1]
    sure = choose(found, {"CUDA_VISIBLE_DEVICES": "2,0", "CUDA_DEVICE_ORDER": "PCI_BUS_ID"})
    assert sure.notes == ("gpu9 is lost",)
    assert choose(found, {"CUDA_VISIBLE_DEVICES": "2"}, ["gpu0", "GPU-bbbb"]).devices == (GPUS[0], GPUS[1])
    assert choose(found, {}, ["03:00.0"]).devices == (GPUS[2],)


@pytest.mark.parametrize(
    ("spec", "why"), [("gpu7", "is no GPU"), ("GPU-", "is no GPU"), ("voodoo", "is no GPU"), ("gpu0 ", "twice")]
)
def test_devices_that_are_not_there(spec, why):
    """One line that lists those that are."""
    with pytest.raises(UsageError, match=why):
        choose(Survey(GPUS), {}, ["0", spec])


def test_hypothetical_gpus():
    """Empty, and nobody takes one for a real one."""
    one, two = hypothetical([24 * GIB, 8 * GIB])
    assert (one.free_bytes, two.total_bytes, two.index) == (24 * GIB, 8 * GIB, 1)
    assert one.hypothetical
    assert not GPUS[0].hypothetical
    assert visible.environment([A, C]) == {"CUDA_DEVICE_ORDER": "PCI_BUS_ID", "CUDA_VISIBLE_DEVICES": f"{A},{C}"}


@pytest.mark.parametrize(
    ("text", "expected"),
    [("1024", GIB), ("0", 0), ("24GiB", 24 * GIB), ("1.5g", 3 * GIB // 2), ("512 MiB", 512 * MIB), ("24GB", 24 * 10**9), ("7b", 7)],
)  # fmt: skip
def test_amounts(text, expected):
    """A number alone is MiB."""
    assert parse_bytes(text, "--gpu") == expected


@pytest.mark.parametrize("text", ["", "x", "-1", "1e3", "24 GiBs", "1,5G", "nan", "٣", "9999999999", "1" * 400])
def test_wrong_amounts(text):
    """One line that names the flag."""
    with pytest.raises(UsageError, match="--gpu"):
        parse_bytes(text, "--gpu")


def test_amounts_for_people():
    """Two or three digits; what is missing is rounded up."""
    assert [size(each) for each in (0, 600 << 10, 12 * MIB, GIB, 39.57 * GIB)] == [
        "0",
        "0.6 MiB",
        "12 MiB",
        "1.0 GiB",
        "39.6 GiB",
    ]
    assert [more(each) for each in (1, MIB + 1, GIB + 1)] == ["1 MiB", "2 MiB", "1.1 GiB"]
