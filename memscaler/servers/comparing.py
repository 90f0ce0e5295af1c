"""What is another one in a description, and whether a running process can be made like it."""

from __future__ import annotations

from dataclasses import fields

from memscaler.config.servers import Server

# What can be another without another process.
_ADJUSTABLE = frozenset(
    {
        "enabled",
        "health",
        "health_every_s",
        "hooks",
        "restart",
        "restart_after_s",
        "restart_limit",
        "restart_window_s",
        "start_timeout_s",
        "stop_timeout_s",
        "user",
    }
)


def differences(before: Server, after: Server) -> tuple[str, ...]:
    """The names of the fields that differ."""
    return tuple(
        item.name for item in fields(Server) if item.compare and getattr(before, item.name) != getattr(after, item.name)
    )


def needs_restart(before: Server, after: Server) -> bool:
    """Whether only another process can be as the later description says."""
    # the port of a command is in the command: what stands beside it only says where to look
    adjustable = {*_ADJUSTABLE, "port"} if after.command else _ADJUSTABLE
    return not adjustable.issuperset(differences(before, after))
