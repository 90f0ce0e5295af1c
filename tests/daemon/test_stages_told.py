"""From a sleeper's word to what people and programs read: a real governor, its commands, its metrics and its history."""

import json
import time

from tests.daemon.scripted_sleeper import environment, launch, scripted
from tests.daemon.test_sleeper import parked, told
from tests.governor import connect, eventually, governing, listener, port_of, watch_table

STAGE = '[[stage]]\nafter = "1h"\ndo = "stop-server"\n'


def report(port, gpus, rung, **more):
    """One server, as the sleeper tells of it."""
    server = {
        "name": "chat",
        "port": port,
        "scope": "",
        "gpus": gpus,
        "rung": rung,
        "since_unix_s": time.time(),
        **more,
    }
    return {"servers": [server], "machine": {"wanted": False}}


def test_a_server_that_was_stopped(tmp_path):
    """It is in status, metrics and top's document while it is asleep; after the end, in the history and the report."""
    config = tmp_path / "config.toml"
    with listener() as web, scripted(tmp_path) as sleeper:
        config.write_text('idle_after = "300ms"\nmin_dwell = 0\n' + STAGE + watch_table(web, "gpu0"))
        with governing(
            tmp_path / "run",
            "a40",
            "--config",
            str(config),
            "--metrics",
            "127.0.0.1:0",
            prefix=launch(),
            env=environment(tmp_path),
        ) as governor:
            sleeper.come()
            key = str(port_of(web))
            gpus = list(parked(sleeper, key)["gpus"])
            assert "memscaler_sleeper_up 1.0" in governor.metrics()

            entered = {"stop-server": {"entered": 1}}
            sleeper.say("sleep", **report(int(key), gpus, "down", stage="stop-server", totals=entered))
            asleep = f'memscaler_stage{{port="{key}",scope="host",server="chat",stage="stop-server"}} 1.0'
            eventually(lambda: asleep in governor.metrics())
            text = told(governor, "status").stdout
            assert "chat    stop-server" in text
            eventually(lambda: 'memscaler_gpu_stage_seconds_total{UUID="' in governor.metrics())

            left = {"stop-server": {"entered": 1, "left": 1, "wakes_s": [2.25]}}
            sleeper.say("sleep", **report(int(key), gpus, "up", totals=left))
            bucket = (
                f'memscaler_stage_wake_seconds_sum{{port="{key}",scope="host",server="chat",stage="stop-server"}} 2.25'
            )
            eventually(lambda: bucket in governor.metrics())
            (stage,) = json.loads(told(governor, "status", "--json").stdout)["sleep"]["servers"][0]["stages"]
            assert (stage["entered"], stage["wake"]["median_s"]) == (1, 2.25)
            with connect(web):  # whatever was told, a client wakes the GPU
                eventually(lambda: not governor.driver.boards[0].locks)
            sleeper.bye()
            governor.stop()
        known = json.loads(
            told(governor, "report", "--since", "1h", "--json", "--state-dir", str(governor.runtime_dir)).stdout
        )
        (found,) = known["stages"]
        assert (found["stage"], found["entered"], found["wake"]["median_s"]) == ("stop-server", 1, 2.25)
        assert known["gpus"][0]["deeper"]["measured"][0]["entries"] == 1
