"""llama.cpp's rule, against the same arithmetic compiled by a C++ compiler, and by what it promises."""

import random
import subprocess

import pytest
from hypothesis import given
from hypothesis import strategies as st

from memscaler.planner import rule

PROGRAM = r"""
#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <vector>
// Reads: layers ngl output_first devices p1 p2 ...; prints the device of every slot, -1 for the CPU.
int main() {
    int layers, ngl, newer, devices;
    while (scanf("%d %d %d %d", &layers, &ngl, &newer, &devices) == 4) {
        std::vector<float> split(devices);
        for (auto &p : split) { char word[64]; scanf("%63s", word); p = strtof(word, nullptr); }
        float sum = 0.0f;
        for (auto &p : split) { sum += p; p = sum; }
        for (auto &p : split) p /= sum;
        const int start = std::max(layers + newer - ngl, 0), active = std::min(ngl, layers + 1);
        for (int slot = 0; slot <= layers; slot++) {
            int device = -1;
            if (slot >= start && slot - start < active)
                device = std::upper_bound(split.begin(), split.end(), float(slot - start) / active) - split.begin();
            printf("%d ", device);
        }
        printf("\n");
    }
}
"""


@pytest.fixture(scope="module")
def compiled(tmp_path_factory):
    """A function that answers many cases by the compiled program."""
    folder = tmp_path_factory.mktemp("rule")
    (folder / "rule.cpp").write_text(PROGRAM)
    subprocess.run(["g++", "-O2", "-o", folder / "rule", folder / "rule.cpp"], check=True, timeout=100)

    def ask(cases):
        lines = (f"{n} {ngl} {int(new)} {len(p)} {' '.join(map(repr, p))}" for n, ngl, new, p in cases)
        result = subprocess.run([folder / "rule"], input="\n".join(lines), capture_output=True, text=True, check=True)
        return [
            tuple(None if word == "-1" else int(word) for word in line.split()) for line in result.stdout.splitlines()
        ]

    return ask


def test_it_computes_as_cpp_does(compiled):
    """5000 cases: free bytes, fractions, small numbers, zeros among them; both versions of the rule."""
    dice = random.Random(1)
    cases = []
    for _ in range(5000):
        layers, devices = dice.randint(1, 130), dice.randint(1, 8)
        proportions = dice.choice(
            [
                [float(dice.randint(0, 96 << 30)) for _ in range(devices)],
                [round(dice.random(), dice.randint(1, 9)) for _ in range(devices)],
                [float(dice.randint(0, 9)) for _ in range(devices)],
                [1 / 3, 0.1, 0.7, 1e-3, 2 / 3, 5e-8, 3e8, 1.0][:devices],
            ]
        )
        if any(proportions):
            cases.append((layers, dice.randint(1, layers + 3), dice.random() < 0.7, proportions))
    answers = compiled(cases)
    assert len(answers) == len(cases)
    for (layers, ngl, new, proportions), answer in zip(cases, answers, strict=True):
        assert rule.slots(layers, ngl, proportions, output_first=new) == answer, (layers, ngl, new, proportions)


@given(counts=st.lists(st.integers(0, 60), min_size=1, max_size=8).filter(any), below=st.integers(0, 60))
def test_numbers_of_slots_are_reproduced(counts, below):
    """With numbers of slots as proportions, each device gets that number, in order, whatever is below on the CPU."""
    on = sum(counts)
    expected = (None,) * below + tuple(device for device, count in enumerate(counts) for _ in range(count))
    assert rule.slots(on + below - 1, on, counts) == expected


def test_fractions_that_look_right_are_not():
    """Why numbers of slots are written and no rounded fractions: 26 of 81 slots are not 0.32 of them."""
    exact, rounded = rule.slots(80, 81, (55, 26)), rule.slots(80, 81, (0.68, 0.32))
    assert [exact.count(device) for device in range(2)] == [55, 26]
    assert [rounded.count(device) for device in range(2)] == [56, 25]


def test_the_output_comes_first_now_and_came_last_once():
    """-ngl 2 of 4 layers: since December 2025 the last layer and the output, before that the last two layers."""
    assert rule.slots(4, 2, (1.0,)) == (None, None, None, 0, 0)
    assert rule.slots(4, 2, (1.0,), output_first=False) == (None, None, 0, 0, None)
    assert rule.slots(4, 5, (1.0,)) == rule.slots(4, 5, (1.0,), output_first=False) == (0,) * 5


@pytest.mark.parametrize(("ngl", "on"), [(0, 0), (1, 1), (5, 5), (99, 5), (-1, 5)])
def test_how_many_slots_are_on_devices(ngl, on):
    """None, some, all; more than there are, and a negative number, are all."""
    assert sum(device is not None for device in rule.slots(4, ngl, (1.0, 2.0))) == on


def test_no_devices():
    """Then everything is on the CPU."""
    assert rule.slots(2, 3, ()) == (None, None, None)


def test_proportions():
    """-ts is filled up with zeros; without it, and where it is all zeros, the free memory counts."""
    assert rule.proportions((2, 1), (10, 20, 30)) == (2, 1, 0.0)
    assert rule.proportions((), (10, 20)) == (10.0, 20.0)
    assert rule.proportions((0, 0), (10, 20)) == (10.0, 20.0)
