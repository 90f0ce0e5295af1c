"""What the page's plots say of a GPU: what was, and nothing of what nobody knows."""

import dataclasses

import pytest

from memscaler.core.model import SECOND_NS
from memscaler.core.snapshot import Transition
from memscaler.observe.view import WINDOW_S, view


@pytest.mark.parametrize(
    ("states", "shown"),
    [
        ((), ((5.0, "parked"),)),  # its own past is not known: the present state, from its beginning
        (((9.0, "awake"), (5.0, "parked")), ((9.0, "awake"), (5.0, "parked"))),
        (((WINDOW_S + 20, "awake"), (WINDOW_S + 9, "held"), (5.0, "parked")), ((WINDOW_S, "held"), (5.0, "parked"))),
        (((-1.0, "parked"),), ((0.0, "parked"),)),  # it began while the snapshot was made
    ],
)
def test_states_of_a_plot(snapshot, states, shown):
    """As many seconds ago; none before the first that is known, whatever other GPUs have done."""
    others = tuple(Transition(1.7e9 + nth, snapshot.gpus[1].identity.uuid, "awake", "held", "") for nth in range(100))
    told = tuple((snapshot.at_ns - round(ago_s * SECOND_NS), state) for ago_s, state in states)
    gpu = dataclasses.replace(snapshot.gpus[0], states=told)
    now = view(dataclasses.replace(snapshot, gpus=(gpu,), transitions=others))
    plot = now.plots[gpu.identity.uuid]
    assert tuple((round(now.at_s - since_s, 1), state) for since_s, state in plot.states) == shown
