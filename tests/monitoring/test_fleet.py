"""docs/fleet.md: its joins mean what they say, its metrics exist, and its files are a configuration."""

import json
import re
import subprocess
from pathlib import Path

import pytest
import yaml

from memscaler.config.load import examine, load
from memscaler.config.render import effective
from memscaler.observe.specs import SPECS
from tests.doctor.bench import memscaler

PAGE = Path(__file__).resolve().parents[2] / "docs" / "fleet.md"
TEXT = PAGE.read_text(encoding="utf-8")
BLOCKS = [
    re.sub(r"^    ", "", each, flags=re.MULTILINE) for each in re.findall(r"(?:^    .*\n|^\n)+", TEXT, re.MULTILINE)
]
JOINS = [each.strip() for each in BLOCKS if "group_left" in each]
FILES = {
    found[1]: each for each in BLOCKS if (found := re.search(r"^# /etc/memscaler/(conf\.d/\S+)", each, re.MULTILINE))
}


def series(machine, site, rate_w, step_s):
    """What a machine tells: a counter of joules that grows at so many watts, and who it is."""
    gpu = f'gpu="0",UUID="GPU-{machine}",hostname="{machine}",instance="{machine}:9823"'
    host = f'hostname="{machine}",site="{site}",role="chat",instance="{machine}:9823"'
    return [
        {"series": f"memscaler_gpu_energy_saved_joules_total{{{gpu}}}", "values": f"0+{rate_w * step_s}x200"},
        {"series": f"memscaler_host_info{{{host}}}", "values": "1x200"},
    ]


@pytest.mark.parametrize(
    ("join", "step_s", "samples"),
    [
        (JOINS[0], 60, {'{site="berlin"}': 90, '{site="bonn"}': 50}),
        (JOINS[1], 3600, {'{role="chat"}': 140 * 7 * 24 / 1000}),
    ],
    ids=["watts per site", "kilowatt hours per role"],
)
def test_the_joins(tmp_path, join, step_s, samples):
    """Prometheus itself: two machines in one site, one in another."""
    machines = (("a", "berlin", 60), ("b", "berlin", 30), ("c", "bonn", 50))
    told = [each for machine in machines for each in series(*machine, step_s)]
    wanted = [{"labels": labels, "value": round(1000 * value)} for labels, value in samples.items()]
    ask = {"expr": f"round(1000 * ({join}))", "eval_time": f"{168 * step_s}s", "exp_samples": wanted}
    file = tmp_path / "test.yml"
    group = {"interval": f"{step_s}s", "input_series": told, "promql_expr_test": [ask]}
    file.write_text(yaml.safe_dump({"rule_files": [], "evaluation_interval": f"{step_s}s", "tests": [group]}))
    done = subprocess.run(["promtool", "test", "rules", file], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_metrics_are_there():
    """What is federated matches metrics of the table, and each part of it some."""
    (pattern,) = re.findall(r'__name__=~"(.*?)"', TEXT)
    prefix, parts = re.fullmatch(r"(memscaler_)\((.*)\)", pattern).groups()
    names = {spec.name for spec in SPECS}
    for part in parts.split("|"):
        assert any(re.fullmatch(prefix + part, name) for name in names), part
    assert set(re.findall(r"\bmemscaler_\w+[a-z]\b", "".join(JOINS))) <= names


def test_the_scrape_configurations(tmp_path):
    """Prometheus takes them."""
    for number, block in enumerate(each for each in BLOCKS if "global:" in each or "scrape_configs:" in each):
        file = tmp_path / f"{number}.yml"
        file.write_text(block)
        done = subprocess.run(["promtool", "check", "config", file], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
    assert number == 1


def test_the_files(tmp_path):
    """They load together, and mean what the page shows of them."""
    assert len(FILES) == 2
    (tmp_path / "conf.d").mkdir()
    for name, text in FILES.items():
        (tmp_path / name).write_text(text.lstrip("\n"))
    config = tmp_path / "config.toml"
    config.write_text("")
    settings = load({}, {}, config)
    assert settings.labels == (("role", "chat"), ("site", "berlin"))
    shown = {key: where.replace(str(tmp_path), "/etc/memscaler") for key, _, where in effective(settings)}
    for key, where in re.findall(r"^    (\S+) += .*\((\S+)\)$", TEXT, re.MULTILINE):
        assert shown[key] == where


def test_the_check(tmp_path, monkeypatch):
    """The JSON of the page is what the command prints, key by key."""
    (tmp_path / "etc/memscaler/conf.d").mkdir(parents=True)
    (tmp_path / "etc/memscaler/config.toml").write_text("")
    drop_in = tmp_path / "etc/memscaler/conf.d/50-chat.toml"
    drop_in.write_text("\n\n\n[[watch]]\nport = 0\n")
    monkeypatch.chdir(tmp_path)
    (shown,) = [json.loads(each) for each in BLOCKS if each.lstrip().startswith('{"schema"')]
    found = examine({}, {}, Path("etc/memscaler/config.toml"))
    assert list(found.problems) == shown["problems"]
    done = memscaler("config", "check", str(tmp_path / shown["file"]), "--json")
    assert done.returncode == 78
    assert json.loads(done.stdout).keys() == shown.keys()
