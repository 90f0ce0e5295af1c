"""GVM's driver, as far as files go: python -m tests.gvm.fake DEBUGFS PROC CONTROL. All three are made here.

DEBUGFS: where nvidia-uvm/processes is, a mount. PROC: this machine's /proc with driver/nvidia-uvm/gpus in it. CONTROL: a socket
(lines of JSON, one answer each): processes that use a GPU keep a connection open, as they would /dev/nvidia-uvm; when
it closes, by whatever means, their entries go. Tests move it over the same socket. The words: words.py.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import signal
import socket
import struct
import subprocess
import sys
import threading
from pathlib import Path

import mfusepy

from tests.gvm.fake.files import Tree
from tests.gvm.fake.model import Model
from tests.gvm.fake.words import Connection

PR_SET_PDEATHSIG = 1


def main() -> None:
    """Serve until SIGTERM or the parent's end."""
    debugfs, proc, control = (Path(each) for each in sys.argv[1:4])
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
    debugfs.mkdir(parents=True, mode=0o700, exist_ok=True)
    processes = debugfs / "nvidia-uvm" / "processes"
    processes.mkdir(parents=True)
    gpus = _proc(proc)
    model = Model(lambda number, uuid: _name(gpus, number, uuid))
    server = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    server.bind(str(control))
    server.listen(256)
    threading.Thread(target=_listen, args=(server, model, processes.parent), daemon=True).start()
    try:
        # No cache of anything: an entry that is gone is gone at once.
        mfusepy.FUSE(
            Tree(model),
            str(processes),
            foreground=True,
            direct_io=True,
            attr_timeout=0,
            entry_timeout=0,
            negative_timeout=0,
            max_idle_threads=32,
            max_threads=64,  # a slow write keeps one
            fsname="gvm-fake",
        )
    finally:
        subprocess.run(["umount", "-l", str(proc / "driver"), str(proc)], check=False)


def _proc(proc: Path) -> Path:
    """Another mount of /proc, in which driver/ is ours. Returns the folder of the GPUs' links."""
    proc.mkdir(parents=True, exist_ok=True)
    subprocess.run(["mount", "-t", "proc", "-o", "nosuid,nodev,noexec", "proc", str(proc)], check=True)
    subprocess.run(["mount", "--make-private", str(proc)], check=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", "mode=555", "none", str(proc / "driver")], check=True)
    gpus = proc / "driver" / "nvidia-uvm" / "gpus"
    gpus.mkdir(parents=True)
    return gpus


def _name(gpus: Path, number: int, uuid: str) -> None:
    """uvm_gpu.c init_procfs_dirs: a link whose name is the number + 1."""
    folder = gpus / uuid / "0"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "info").write_text("GPU simulated\nretained_count 1\n")
    (gpus / str(number + 1)).symlink_to(f"{uuid}/0")


def _listen(server: socket.socket, model: Model, folder: Path) -> None:
    while True:
        connection, _ = server.accept()
        threading.Thread(target=_serve, args=(connection, model, folder), daemon=True).start()


def _serve(sock: socket.socket, model: Model, folder: Path) -> None:
    peer = struct.unpack("3i", sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))[0]
    connection = Connection(model, peer, folder)
    with sock, contextlib.suppress(OSError):
        for line in sock.makefile("rb"):
            try:
                answer = {"ok": connection.ask(json.loads(line))}
            except (AttributeError, KeyError, ValueError, TypeError) as error:
                answer = {"error": f"{type(error).__name__}: {error}"}
            sock.sendall(json.dumps(answer).encode() + b"\n")
    connection.close()


if __name__ == "__main__":
    os.umask(0o022)
    main()
