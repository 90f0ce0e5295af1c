"""Calibrations as processes, with simulated boards where `--simulate` finds them."""

from tests.doctor.conftest import boards, runtime_dir  # noqa: F401
