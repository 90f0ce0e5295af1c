"""A simulated NVIDIA driver: real shared libraries, shared boards, and a remote control. See README.md here."""

from __future__ import annotations

from memscaler.simulator.binding import CallRecord, SimulatorError
from memscaler.simulator.board import Lock, Locks, SimulatedBoard
from memscaler.simulator.builder import build
from memscaler.simulator.loading import boards_of, load, start
from memscaler.simulator.remote import SimulatedDriver, check_boards, known_boards, parse_boards

__all__ = [
    "CallRecord",
    "Lock",
    "Locks",
    "SimulatedBoard",
    "SimulatedDriver",
    "SimulatorError",
    "boards_of",
    "build",
    "check_boards",
    "known_boards",
    "load",
    "parse_boards",
    "start",
]
