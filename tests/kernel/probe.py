"""Loads the kernel side in a process of its own, says which programs it holds, and stays until it is killed."""

import ctypes
import json
import signal
import struct
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from memscaler.kernel import attachment, bpf
from tests.kernel.worlds import BPF


def program_id(fd: int) -> int:
    info = ctypes.create_string_buffer(232)
    bpf._call(15, struct.pack("=IIQ", fd, 232, ctypes.addressof(info)))
    return int(struct.unpack_from("=I", info, 4)[0])


if __name__ == "__main__":
    attached = attachment.load(BPF)
    programs = {name: program_id(fd) for name, fd in attached.fds.items() if name.endswith("_program")}
    sys.stdout.write(json.dumps(programs) + "\n")
    sys.stdout.flush()
    signal.pause()
