"""Which levers a GPU has, and what is said about it."""

from __future__ import annotations

import pytest

from memscaler.core.errors import GpuUnsupported, UsageError
from memscaler.gpu.capability import choose
from tests.gpu.benches import Simulate

BOARDS = {
    "a40": (("memory-clock", 405), ("pstate", 8), ("graphics-clock", 210)),
    "p40": (("pstate", 8),),
    "l40s": (("memory-clock", 405), ("pstate", 8), ("graphics-clock", 210)),
    "rtx3090": (("memory-clock", 405), ("pstate", 8), ("graphics-clock", 210)),
    "a100": (("graphics-clock", 210),),
    "a100-mig": (),
    "h100": (("graphics-clock", 345), ("pstate", 8)),
    "t4": (("pstate", 8), ("graphics-clock", 300)),
    "v100": (("graphics-clock", 135),),
    "vgpu": (),
}


@pytest.mark.parametrize("board", BOARDS)
def test_choice_per_board(simulate: Simulate, board: str) -> None:
    """Every board of the catalogue gets its levers in order, and every lever is either offered or refused."""
    choice = choose(simulate(board).driver().gpus[0])
    assert tuple((lever.name, lever.target) for lever in choice.levers) == BOARDS[board]
    names = [lever.name for lever in choice.levers] + [name for name, _ in choice.refused]
    assert sorted(names) == ["graphics-clock", "memory-clock", "pstate"]
    assert choice.why
    assert all(reason for _, reason in choice.refused)


@pytest.mark.parametrize(
    ("board", "words"),
    [
        ("a40", "7251 and 405 MHz are supported"),
        ("a100", "the memory clock is fixed at 1215 MHz; graphics clocks go down to 210 MHz"),
        ("p40", "performance state 8"),
        ("vgpu", "hypervisor"),
        ("a100-mig", "MIG"),
    ],
)
def test_why(simulate: Simulate, board: str, words: str) -> None:
    """The reason can be read by a person."""
    assert words in choose(simulate(board).driver().gpus[0]).why


@pytest.mark.parametrize(("switch_type", "words"), [(0, "cannot switch"), (1, "reloaded"), (2, "at run time")])
def test_field_298_decides(simulate: Simulate, switch_type: int, words: str) -> None:
    """Where the driver says how the memory clock switches, that is what counts."""
    machine = simulate("a40", mclk_fields=True)
    machine.boards[0].set_memory_switching(switch_type)
    choice = choose(machine.driver().gpus[0])
    said = choice.why if switch_type == 2 else dict(choice.refused)["memory-clock"]
    assert words in said
    assert (choice.levers[0].name == "memory-clock") == (switch_type == 2)


def test_old_driver_is_tried(simulate: Simulate) -> None:
    """A driver that does not know field 298 leaves it to the first park."""
    machine = simulate("a40")
    machine.boards[0].inject("nvmlDeviceGetFieldValues", code=3)
    assert "tries it" in choose(machine.driver().gpus[0]).why


def test_forced_lever(simulate: Simulate) -> None:
    """An operator's choice leaves one lever, or is refused with the reason."""
    a40, v100 = simulate("a40", "v100").driver().gpus
    assert [lever.name for lever in choose(a40, "graphics-clock").levers] == ["graphics-clock"]
    with pytest.raises(GpuUnsupported, match="fixed at 877 MHz"):
        choose(v100, "memory-clock")
    with pytest.raises(UsageError):
        choose(a40, "voltage")


def test_ambiguous_nvapi_is_not_used(simulate: Simulate) -> None:
    """Two GPUs on the same bus number of different domains cannot be told apart by NVAPI."""
    machine = simulate("p40", "p40", "p40")
    machine.boards[0].set_pci(bus=0x3B)
    machine.boards[1].set_pci(bus=0x3B, domain=1)
    gpus = machine.driver().gpus
    assert "tell them apart" in choose(gpus[0]).why
    assert "tell them apart" in choose(gpus[1]).why
    assert [lever.name for lever in choose(gpus[2]).levers] == ["pstate"]


def test_nvapi_order_does_not_matter(simulate: Simulate) -> None:
    """NVAPI may list its GPUs in any order: the state of the right one is forced."""
    machine = simulate("p40", "p40", nvapi_reversed=True)
    choose(machine.driver().gpus[1]).levers[0].apply()
    assert (machine.boards[0].forced_pstate, machine.boards[1].forced_pstate) == (None, 8)


@pytest.mark.parametrize("call", ["nvmlDeviceGetMigMode", "nvmlDeviceGetVirtualizationMode"])
def test_not_knowing_whether_clocks_may_be_touched(simulate: Simulate, call: str) -> None:
    """A driver that fails to say so is a doubt, and told from one that refuses."""
    machine = simulate("a40")
    machine.boards[0].inject(call, code=999)
    choice = choose(machine.driver().gpus[0])
    assert not choice.levers
    assert choice.unsure
    assert f"{call}: Unknown Error" in choice.why
    machine.boards[0].clear_faults()
    machine.boards[0].inject(call, code=3)
    assert choose(machine.driver().gpus[0]).levers


def test_nvapi_that_fails_is_told_from_one_that_is_not_there(simulate: Simulate) -> None:
    """A card whose only lever is NVAPI, which fails to open: asking again may help, and does."""
    machine = simulate("p40")
    machine.simulated.inject("NvAPI_Initialize", code=-1)
    driver = machine.driver()
    choice = choose(driver.gpus[0])
    assert (choice.levers, choice.unsure) == ((), True)
    machine.simulated.clear_faults()
    again = driver.reopen(driver.gpus[0].identity.uuid, probe=True)
    assert [lever.name for lever in choose(again).levers] == ["pstate"]


def test_success_that_tells_nothing_is_no_answer(simulate: Simulate) -> None:
    """A field that the driver reports as told, and has not filled in, decides nothing."""
    machine = simulate("a40")
    machine.boards[0].inject("nvmlDeviceGetFieldValues", ignore=True)
    assert "tries it" in choose(machine.driver().gpus[0]).why
