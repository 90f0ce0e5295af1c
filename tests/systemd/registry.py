"""What a scenario is, and lists of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Scenario:
    """after: what is looked at after a reboot; then `do` ends with one. needed: also when others are asked for."""

    name: str
    what: str
    do: Callable[[], None]
    after: Callable[[], None] | None = None
    needed: bool = False


class Scenarios(list[Scenario]):
    """In the order in which they run."""

    def add(
        self, *, after: Callable[[], None] | None = None, needed: bool = False
    ) -> Callable[[Callable[[], None]], None]:
        """Put a function among them; its docstring says what has to be true."""

        def put(function: Callable[[], None]) -> None:
            what = (function.__doc__ or "").strip()
            self.append(Scenario(function.__name__.replace("_", "-"), what, function, after, needed))

        return put
