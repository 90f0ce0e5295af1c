"""Every line of a child's process is one of the governor's log, whoever in it has something to say."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from tests.child_end import ChildEnd
from tests.governor import eventually
from tests.gvm.governor_end import governor_end
from tests.patience import patience
from tests.sleep.governor import GPU, governor

NOISY = """
import asyncio, logging, sys, threading, warnings
from memscaler.child.lines import speak, watch_loop
speak("child", "json", "info")
warnings.warn("old thing", DeprecationWarning)
warnings.warn("two\\nlines", UserWarning)
logging.getLogger("a.library").warning("so it says %d", 1)
try:
    1 / 0
except ZeroDivisionError:
    logging.getLogger("a.library").exception("failed")
thread = threading.Thread(target=lambda: 1 / 0, name="a driver's")
thread.start(); thread.join()
class Bad:
    def __del__(self): raise ValueError("in the end")
Bad()
async def loop():
    watch_loop("child")
    asyncio.get_running_loop().call_soon(lambda: 1 / 0)
    await asyncio.sleep(0.05)
asyncio.run(loop())
raise RuntimeError("the process dies")
"""


def test_every_line_of_the_process_is_json():
    """Warnings, what libraries log, tracebacks of threads, callbacks and destructors, and its own death."""
    done = subprocess.run(
        [sys.executable, "-c", NOISY], capture_output=True, text=True, check=False, timeout=60 * patience()
    )
    assert done.returncode == 1
    told = [json.loads(line) for line in done.stderr.splitlines()]
    assert all({"timestamp", "level", "event"} <= set(each) for each in told)
    text = done.stderr
    for words in ("two\\nlines", "so it says 1", "failed", "a driver's", "in the end", "the process dies"):
        assert words in text
    assert text.count("ZeroDivisionError: division by zero") >= 3
    assert not done.stdout


NUISANCE = """
import asyncio, sys, threading, time, warnings
class Bad:
    def __del__(self): raise ValueError("in the end")
def loop():
    frame = sys._current_frames()[threading.main_thread().ident]
    while frame is not None and not isinstance(frame.f_locals.get("self"), asyncio.SelectorEventLoop):
        frame = frame.f_back
    return None if frame is None else frame.f_locals["self"]
def nuisance():
    while (found := loop()) is None or found.get_exception_handler() is None:
        time.sleep(0.01)
    warnings.warn("two\\nlines", UserWarning)
    Bad()
    found.call_soon_threadsafe(lambda: 1 / 0)
    raise RuntimeError("a library's thread dies")
threading.Thread(target=nuisance, name="a library's", daemon=True).start()
"""


def end_of(name: str, environment: dict[str, str]) -> AbstractContextManager[ChildEnd]:
    if name == "arbiter":
        return governor_end(GPU, environment=environment)
    return governor(environment=environment)


@pytest.mark.parametrize("name", ["arbiter", "sleeper"])
def test_what_python_says_in_a_child_is_a_line_of_json(tmp_path: Path, name: str) -> None:
    """A warning, and tracebacks of a thread, a callback and a destructor; it goes on, and ends well."""
    (tmp_path / "sitecustomize.py").write_text(NUISANCE)  # as a library that is loaded with the child
    path = os.pathsep.join(filter(None, (str(tmp_path), os.environ.get("PYTHONPATH"))))
    with end_of(name, {"PYTHONPATH": path}) as end:
        end.start()
        wanted = ("two\\nlines", "in the end", "a library's thread dies", "ZeroDivisionError")
        eventually(lambda: all(words in end.said() for words in wanted), within_s=60, what="what python says")
        assert end.end() == 0
        told = [json.loads(line) for line in end.said().splitlines()]
    assert all({"timestamp", "level", "event"} <= set(each) for each in told)
    assert sum(each["event"] == "python.warned" for each in told) == 1
    broken = [each for each in told if each["event"] == f"{name}.broken"]
    assert sorted(each["err"].partition(":")[0] for each in broken) == [
        "RuntimeError",
        "ValueError",
        "ZeroDivisionError",
    ]
    assert all("Traceback" in each["traceback"] for each in broken)
