"""The alert rules: valid, tested by promtool, and explained."""

import re
import subprocess
from pathlib import Path

import pytest
import yaml

from memscaler.daemon.doctor.table import CHECKS
from memscaler.observe.specs import SPECS, Kind

ROOT = Path(__file__).resolve().parents[2]
RULES = ROOT / "deploy" / "prometheus" / "alerts.yml"
TESTS = RULES.with_name("alerts_test.yml")
PAGE = ROOT / "docs" / "monitoring.md"

ALERTS = [rule for group in yaml.safe_load(RULES.read_text())["groups"] for rule in group["rules"]]
NAMES = [alert["alert"] for alert in ALERTS]
METRICS = {spec.name for spec in SPECS} | {
    spec.name + suffix for spec in SPECS if spec.kind is Kind.HISTOGRAM for suffix in ("_bucket", "_sum", "_count")
}


@pytest.mark.parametrize("what", [("check", "rules", RULES), ("test", "rules", TESTS)], ids=["valid", "tests"])
def test_promtool(what):
    """Prometheus takes the rules, and each does what its tests say."""
    result = subprocess.run(["promtool", *what], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr


def test_each_is_tested_both_ways():
    """For each alert there is a test in which it fires; on the quiet day none does."""
    groups = yaml.safe_load(TESTS.read_text())["tests"]
    fired = set()
    for group in groups:
        for test in group.get("promql_expr_test", []):
            fired |= {
                name for sample in test["exp_samples"] for name in re.findall(r'alertname="(\w+)"', sample["labels"])
            }
        fired |= {test["alertname"] for test in group.get("alert_rule_test", []) if test["exp_alerts"]}
    assert fired == set(NAMES)
    (quiet,) = [group for group in groups if group["name"] == "a quiet day"]
    assert [(test["expr"], test["exp_samples"]) for test in quiet["promql_expr_test"]] == [("ALERTS", [])] * 2


@pytest.mark.parametrize("alert", ALERTS, ids=NAMES)
def test_each_says_what_to_do(alert):
    """A summary, a description, a remedy, and a section of the page about it; metrics that there are."""
    assert alert["labels"]["severity"] in ("critical", "warning", "info")
    notes = alert["annotations"]
    assert notes.keys() == {"summary", "description", "remedy", "runbook"}
    assert all(notes.values())
    assert notes["runbook"] == f"docs/monitoring.md#{alert['alert'].lower()}"
    assert f"\n### {alert['alert']}\n" in PAGE.read_text()
    assert set(re.findall(r"\bmemscaler_\w+", alert["expr"])) <= METRICS


def test_the_page_names_checks_that_there_are():
    """The ids of `memscaler doctor` are those of its table."""
    named = set(re.findall(r"\bMS-[A-Z]+-\d+\b", PAGE.read_text()))
    assert named
    assert named <= {check.id for check in CHECKS}
