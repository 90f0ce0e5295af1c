"""A service of compose.yaml in a real container of the real image: crun, with what Docker would tell it.

In place of nvidia-container-toolkit the simulated driver's libraries are laid where the real ones would be. As with
Docker, everything in the container is in one cgroup, and dies with it.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from memscaler.simulator import SimulatedDriver
from tests.container import oci
from tests.governor import eventually
from tests.kernel.crowd import cgroup, cgroup_root

IMAGE = oci.ROOT / "build/image/rootfs"
LIBRARIES = "/usr/lib/x86_64-linux-gnu" if os.uname().machine == "x86_64" else "/usr/lib/aarch64-linux-gnu"
VARIABLES = {"PATH": "/opt/memscaler/bin:/usr/sbin:/usr/bin:/sbin:/bin", "PYTHONDONTWRITEBYTECODE": "1"}
# Where cgroup v1 is in use beside v2, the container is shown v2 alone, as on the machines that it is for.
ONLY_V2 = (
    'echo $$ >"$1/cgroup.procs"; [ "$2" = /sys/fs/cgroup ] || mount --bind "$2" /sys/fs/cgroup; shift 2; exec "$@"'
)


class Host:
    """What containers share: the boards, /run/memscaler, and Docker's files."""

    def __init__(self, folder: Path, *boards: str) -> None:
        self.folder = folder
        for name in ("run", "state", "docker", "driver"):
            (folder / name).mkdir()
        self.driver = SimulatedDriver.create(folder / "driver/state", boards)
        self.boards = self.driver.boards

    def name_container(self, identity: str, name: str) -> None:
        """As Docker keeps it."""
        path = self.folder / "docker" / identity / "config.v2.json"
        path.parent.mkdir()
        path.write_text(json.dumps({"ID": identity, "Name": f"/{name}", "State": {"Running": True, "Pid": 1}}))

    def config(self, service: str, *command: str, without: tuple[str, ...] = ()) -> dict[str, Any]:
        """The runtime's. without: capabilities that it is not given."""
        said = oci.service(service)
        said["cap_add"] = [name for name in said["cap_add"] if name not in without]
        made = oci.config(
            said,
            IMAGE.resolve(),
            ["memscaler", *(command or said["command"])],
            environment={**VARIABLES, "MEMSCALER_SIM_STATE": "/driver/state", "MEMSCALER_MIN_DWELL": "0s"},
            more={
                f"{LIBRARIES}/{name}": self.driver.library_dir / name
                for name in ("libnvidia-ml.so.1", "libnvidia-api.so.1")
            },
            instead={
                "/run/memscaler": self.folder / "run",
                "/var/lib/memscaler": self.folder / "state",
                "/var/lib/docker/containers": self.folder / "docker",
            },
        )
        made["mounts"].append(oci.bind(str(self.folder / "driver"), "/driver", "rw"))
        _leave_out_what_we_may_not_give(made["process"])
        return made


class Box:
    """One container that runs."""

    def __init__(self, process: subprocess.Popen[bytes], group: Path, log: Path, runtime: list[str]) -> None:
        self._process, self.group, self._log, self._runtime = process, group, log, runtime

    @property
    def log(self) -> str:
        return self._log.read_text(errors="replace")

    def events(self, name: str) -> list[dict[str, Any]]:
        """What it has logged of this name."""
        lines = [json.loads(line) for line in self.log.splitlines() if line.startswith("{")]
        return [line for line in lines if line["event"] == name]

    @property
    def pids(self) -> list[int]:
        return [int(pid) for pid in (self.group / "cgroup.procs").read_text().split()]

    def status(self) -> Mapping[str, str]:
        """/proc/PID/status of the container's first process."""
        state = json.loads(subprocess.run([*self._runtime, "state", "box"], check=True, capture_output=True).stdout)
        lines = Path(f"/proc/{state['pid']}/status").read_text().splitlines()
        return {line.partition(":")[0]: line.partition(":")[2].strip() for line in lines}

    def run(self, *command: str) -> subprocess.CompletedProcess[str]:
        """As `docker exec`."""
        return subprocess.run([*self._runtime, "exec", "box", *command], check=False, capture_output=True, text=True)

    def kill(self) -> None:
        """As `docker kill`, or the OOM killer with memory.oom.group: all that is in it, at one instant."""
        (self.group / "cgroup.kill").write_text("1")
        self._process.wait(20)

    def stop(self) -> int:
        """As `docker stop`: the exit status."""
        subprocess.run([*self._runtime, "kill", "box", "TERM"], check=True)
        return self._process.wait(60)

    def wait(self) -> int:
        """Until it ends by itself: the exit status."""
        return self._process.wait(60)


@contextlib.contextmanager
def box(host: Host, name: str, service: str, *command: str, without: tuple[str, ...] = ()) -> Iterator[Box]:
    """It runs; gone afterwards. Its log is printed if a test fails."""
    bundle = host.folder / name
    bundle.mkdir()
    (bundle / "config.json").write_text(json.dumps(host.config(service, *command, without=without)))
    runtime = ["crun", "--cgroup-manager=disabled", "--root", str(bundle / "crun")]
    with cgroup(f"ms-test-{os.getpid()}-{name}") as group:
        what = ["unshare", "--mount", "sh", "-c", ONLY_V2, "sh", str(group), str(cgroup_root())]
        with (bundle / "log").open("wb") as log:
            process = subprocess.Popen([*what, *runtime, "run", "--bundle", str(bundle), "box"], stdout=log, stderr=log)
        made = Box(process, group, bundle / "log", runtime)
        try:
            yield made
        except BaseException:
            print(made.log[-6000:])
            raise
        finally:
            (group / "cgroup.kill").write_text("1")
            process.wait(20)
            eventually(lambda: not made.pids, what="the end of the container")


def _leave_out_what_we_may_not_give(process: dict[str, Any]) -> None:
    """Tests may themselves run without CAP_SYS_RESOURCE."""
    held = int(Path("/proc/self/status").read_text().partition("CapEff:")[2].split()[0], 16)
    if not held >> 24 & 1:
        process["rlimits"] = []
        del process["oomScoreAdj"]
