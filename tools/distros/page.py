"""The generated part of docs/kernels.md: tests/distros/results.json as tables."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from tools.distros.roots import RECIPES, REPOSITORY

RESULTS = REPOSITORY / "tests" / "distros" / "results.json"
PAGE = REPOSITORY / "docs" / "kernels.md"
BEGIN, END = "<!-- made by make test-distros, from here -->\n", "<!-- to here -->\n"

Result = Mapping[str, Any]


def _loader(result: Result) -> str:
    loader = result["loader"]
    return loader["error"] if "error" in loader else f"{loader['python']} ({result['distribution_python']})"


ROWS: tuple[tuple[str, Callable[[Result], object]], ...] = (
    ("kernel", lambda result: result["kernel"]),
    ("bcc", lambda result: result["bcc"]),
    ("LLVM", lambda result: result["llvm"] or "?"),
    ("systemd", lambda result: result["systemd"]),
    ("python of the daemon", lambda result: result["python"]),
    ("python of the loader", _loader),
    ("headers used", lambda result: result["loader"].get("headers", "")),
    ("hooks attached", lambda result: ", ".join(result["loader"].get("hooks", ()))),
    ("namespaces told apart", lambda result: "yes" if result["loader"].get("namespaces") else "no"),
    ("notices of the loader", lambda result: "; ".join(result["loader"].get("notices", ())) or "none"),
    ("tests passed", lambda result: result["passed"]),
    ("tests failed", lambda result: len(result["failed"])),
    ("tests skipped", lambda result: len(result["skipped"])),
    ("tests left out", lambda result: sum(map(len, result["left_out"].values()))),
    ("minutes, emulated", lambda result: round(result["took_s"] / 60)),
    ("on", lambda result: result["date"]),
)


def load() -> dict[str, dict[str, Any]]:
    """Name of the machine -> its results, in the order of the recipes."""
    found = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    return {name: found[name] for name in RECIPES if name in found}


def save(results: Mapping[str, Result]) -> None:
    """Write the results, and the page anew."""
    ordered = {name: results[name] for name in RECIPES if name in results}
    RESULTS.write_text(json.dumps(ordered, indent=1, ensure_ascii=False) + "\n")
    PAGE.write_text(with_tables(PAGE.read_text(), ordered))


def with_tables(page: str, results: Mapping[str, Result]) -> str:
    """The page, with what is between the two marks made anew."""
    before, _, rest = page.partition(BEGIN)
    _, mark, after = rest.partition(END)
    if not mark:
        raise ValueError(f"{PAGE} lacks the marks {BEGIN!r} and {END!r}")
    return before + BEGIN + "\n" + tables(results) + "\n" + END + after


def tables(results: Mapping[str, Result]) -> str:
    """All of it."""
    done = {name: result for name, result in results.items() if "error" not in result}
    parts = [_line(["", *done]), _line(["---"] * (len(done) + 1))] if done else []
    parts += [_line([title, *(str(cell(result)) for result in done.values())]) for title, cell in ROWS if done]
    untold = {name: {"error": "not yet"} for name in RECIPES} | dict(results)
    broken = [f"- {name}: {result['error']}" for name, result in untold.items() if "error" in result]
    for title, lines in (
        ("Not tested", broken),
        ("Failed", _by_test(done, "failed")),
        ("Skipped by themselves", _by_reason(done, _skipped)),
        ("Left out", _by_reason(done, lambda result: result["left_out"])),
    ):
        if lines:
            parts += ["", f"**{title}**", "", *lines]
    return "\n".join(parts).lstrip() + "\n"


def _line(cells: list[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def _by_test(results: Mapping[str, Result], what: str) -> list[str]:
    return [
        f"- {name}: `{test}`: {_one_line(message)}"
        for name, result in results.items()
        for test, message in result[what].items()
    ]


def _skipped(result: Result) -> dict[str, list[str]]:
    """Reason -> tests."""
    reasons: dict[str, list[str]] = {}
    for test, reason in result["skipped"].items():
        reasons.setdefault(reason.removeprefix("Skipped: "), []).append(test)
    return reasons


def _by_reason(results: Mapping[str, Result], ask: Callable[[Result], Mapping[str, list[str]]]) -> list[str]:
    """One line for each reason: where, which, why."""
    where: dict[str, list[str]] = {}
    which: dict[str, dict[str, None]] = {}
    for name, result in results.items():
        for reason, tests in ask(result).items():
            where.setdefault(reason, []).append(name)
            which.setdefault(reason, {}).update((test.split("[")[0].split("::")[-1], None) for test in tests)
    everywhere = len(results) if len(results) > 1 else 0
    return [
        f"- {'everywhere' if len(names) == everywhere else ', '.join(names)}: {_list(which[reason])}: {reason}"
        for reason, names in where.items()
    ]


def _list(tests: Iterable[str]) -> str:
    return ", ".join(f"`{test}`" for test in tests)


def _one_line(text: str) -> str:
    return " ".join(text.split())[:200]
