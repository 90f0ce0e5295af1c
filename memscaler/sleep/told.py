"""How the sleeper names things to people. Pure."""

from __future__ import annotations


def who(by: str) -> str:
    """Who wants something: a user, also one without a name."""
    return f"user {by}" if by.isdecimal() else by or "an operator"


def span(seconds: float) -> str:
    """A length of time, for people: "2 h 5 min"."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"
