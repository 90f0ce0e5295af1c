"""Runs checks, one after the other, each in a thread of its own: one that hangs is left behind and said so."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator, Sequence

from memscaler.core.errors import MemscalerError, UsageError
from memscaler.daemon.doctor.context import Context, NoAnswer
from memscaler.daemon.doctor.model import NEEDS_ROOT, NO_DRIVER, SEE_DRIVER, Check, Finding, Result, Verdict, unknown
from memscaler.daemon.doctor.table import CHECKS

RANK = (Result.FAIL, Result.WARN, Result.UNKNOWN, Result.PASS)
HUNG = "a driver call or a process in state D hangs; see `dmesg`"


class Runner:
    """hung: a thread was left behind, which only the end of the process ends (os._exit)."""

    def __init__(self, context: Context) -> None:
        self.hung = False
        self._context = context
        # Not Thread.join: interrupted by a signal's exception, that of Python 3.11 takes the thread for ended.
        self._done = threading.Event()
        self._done.set()

    def run(self, checks: Iterable[Check]) -> Iterator[Finding]:
        """What each check found, as it is found."""
        for check in checks:
            yield from grouped(check, self._verdicts(check))

    def _verdicts(self, check: Check) -> Sequence[Verdict]:
        found: list[Verdict] = []
        self._done = done = threading.Event()
        arguments = (check, self._context, found, done)
        threading.Thread(target=_look, args=arguments, name=check.id, daemon=True).start()
        if not self.wait(check.deadline_s):
            return [*found, unknown(f"did not answer in {check.deadline_s:.0f} s", HUNG)]
        return found or [unknown(NO_DRIVER, SEE_DRIVER)]

    def wait(self, patience_s: float) -> bool:
        """For the check under way; False if it takes longer."""
        in_time = self._done.wait(patience_s)
        self.hung |= not in_time
        return in_time


def _look(check: Check, context: Context, found: list[Verdict], done: threading.Event) -> None:
    try:
        looked = check.look(context)
        found.extend([looked] if isinstance(looked, Verdict) else looked)  # each at once: the next may not come
    except NoAnswer as error:
        found.append(unknown(str(error), HUNG))
    except PermissionError as error:
        found.append(unknown(f"may not be looked at: {error.filename or error.strerror}"))
    except MemscalerError as error:
        found.append(unknown(str(error), error.hint or NEEDS_ROOT))
    except Exception as error:  # noqa: BLE001  # one mistake of ours must not hide the other checks
        found.append(unknown(f"the check itself failed: {type(error).__name__}: {error}", "please report this"))
    finally:
        done.set()


def grouped(check: Check, verdicts: Sequence[Verdict]) -> Iterator[Finding]:
    """One finding for all subjects with the same verdict, the worst first."""
    groups: dict[tuple[Result, str, str], list[str]] = {}
    for verdict in sorted(verdicts, key=lambda each: RANK.index(each.result)):
        seen, remedy = " ".join(verdict.seen.split()), " ".join(verdict.remedy.split())
        groups.setdefault((verdict.result, seen, remedy), []).append(verdict.subject)
    for (result, seen, remedy), subjects in groups.items():
        yield Finding(check.id, check.title, tuple(filter(None, subjects)), result, seen, remedy, check.docs)


def chosen(ids: Sequence[str], *, probe: bool) -> tuple[Check, ...]:
    """Those with these ids, or whose ids begin so (MS-GPU); none given: all. Raise UsageError for one that is not.

    probe: also those that do things; one of those that is named is there anyway, and says that it was not tried.
    """
    if not ids:
        return tuple(check for check in CHECKS if probe or not check.probe)
    found: list[Check] = []
    for word in ids:
        wanted = word.strip().upper()
        mine = [check for check in CHECKS if check.id == wanted or check.id.startswith(f"{wanted}-")]
        if not mine:
            raise UsageError(f"no check {word!r}", hint=f"there are {', '.join(check.id for check in CHECKS)}")
        found += mine
    return tuple(dict.fromkeys(found))
