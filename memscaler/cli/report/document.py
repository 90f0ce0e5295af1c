"""A report as JSON. Its keys are a contract: docs/report.md names them."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from memscaler.cli.report import stages, words
from memscaler.cli.report.gather import GpuReport, Report
from memscaler.cli.report.price import Price
from memscaler.core.summary import Day, Latency, Sums
from memscaler.core.what_if import Row, WhatIf

Document = dict[str, Any]


def report_document(report: Report) -> Document:
    """The whole."""
    period, price = report.period, report.price
    return {
        "since_unix_s": period.start_unix_s,
        "until_unix_s": period.end_unix_s,
        "recorded_until_unix_s": report.recorded_until_unix_s,
        "price": None if price is None else {"per_kwh": price.per_kwh, "currency": price.currency},
        "total": _sums(report.total, price) | {"margin_j": report.margin_j, "latency": _latency(report.latency)},
        "days": _days(period.days, report.days, price),
        "gpus": [_gpu(gpu, period.days, price) for gpu in report.gpus],
        "stages": stages.stages_document(report),
        "machine_could_sleep": stages.machine_document(report),
    }


def _gpu(gpu: GpuReport, days: tuple[Day, ...], price: Price | None) -> Document:
    return {
        "gpu": gpu.gpu,
        "uuid": gpu.uuid,
        "name": gpu.name,
        "first_unix_s": gpu.first_unix_s,
        "last_unix_s": gpu.last_unix_s,
        "gone": gpu.gone,
        "total": _sums(gpu.total, price)
        | {
            "margin_j": gpu.ground.margin_j,
            "latency": _latency(gpu.latency),
            "other_ends": dict(gpu.other_ends),
        },
        "baseline": {
            "parks": gpu.ground.parks,
            "parks_with_baseline": gpu.ground.based,
            "median_w": gpu.ground.baseline_w,
            "low_quartile_w": gpu.ground.low_w,
            "high_quartile_w": gpu.ground.high_w,
            "energy_sources": list(gpu.sources),
        },
        "days": _days(days, gpu.days, price),
        "what_if": _what_if(gpu.what_if),
        "deeper": stages.gpu_document(gpu),
    }


def _days(days: tuple[Day, ...], sums: tuple[Sums, ...], price: Price | None) -> list[Document]:
    return [
        {"day": day.name, "start_unix_s": day.start_unix_s, "end_unix_s": day.end_unix_s, **_sums(each, price)}
        for day, each in zip(days, sums, strict=True)
    ]


def _sums(sums: Sums, price: Price | None) -> Document:
    cost = {}
    if price is not None:
        used = None if sums.energy_j is None else price.cost(sums.energy_j)
        cost = {"cost_used": used, "cost_saved": price.cost(sums.saved_j)}
    return {
        "energy_j": sums.energy_j,
        "saved_j": sums.saved_j,
        **cost,
        "state_s": dict(sums.state_s),
        "state_energy_j": dict(sums.state_energy_j),
        "unknown_energy_s": sums.unknown_s,
        "recorded_s": sums.recorded_s,
        "unrecorded_s": sums.unrecorded_s + sums.outside_s,
        "parks": sums.parks,
        "wakes": sums.wakes,
        "parked_ratio": sums.parked_ratio,
    }


def _latency(latency: Latency | None) -> Document | None:
    return None if latency is None else asdict(latency)


def _what_if(found: WhatIf) -> Document:
    advice = found.advice
    return {
        "gaps": found.gaps,
        "recorded_s": found.recorded_s,
        "costs": asdict(found.costs),
        "used_idle_s": None if found.used is None else found.used.idle_s,
        "policies": [{"idle_s": row.idle_s, "auto": bool(row.name), **_row(row)} for row in found.rows],
        "optimum": _row(found.optimum),
        "measured": _row(found.was),
        "advice": {
            "verdict": str(advice.verdict),
            "text": words.advice_text(found),
            "idle_s": None if advice.better is None else advice.better.idle_s,
            "auto": advice.better is not None and bool(advice.better.name),
            "more_saved_ratio": advice.more_ratio if advice.more_ratio < float("inf") else None,
            "more_wakes_per_day": advice.more_wakes,
            "wanted_s": advice.wanted_s,
            "wanted_gaps": advice.wanted_gaps,
        },
    }


def _row(row: Row) -> Document:
    return {
        "saved_j_per_day": row.a_day(row.outcome.saved_j),
        "share": row.share,
        "wakes_per_day": row.a_day(row.outcome.wakes),
        "slowed_s_per_day": row.a_day(row.outcome.slowed_s),
    }
