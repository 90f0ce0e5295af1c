"""A small server for tests, run by any python3: answers /health as llama-server does, and misbehaves as it is told."""

import argparse
import contextlib
import http.server
import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

SLEEP = "import time; time.sleep(1000)"
STUBBORN = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(1000)"

parser = argparse.ArgumentParser()
parser.add_argument("--port", type=int, default=0)
parser.add_argument("-m", "--model")
parser.add_argument("--load", type=float, default=0.0, help="answer 503 for so many seconds; < 0: for ever")
parser.add_argument("--rubbish", action="store_true", help="speak no HTTP")
parser.add_argument("--mute", action="store_true", help="accept connections and say nothing")
parser.add_argument("--status", type=int, default=200)
parser.add_argument("--exit", type=int, help="end with this status")
parser.add_argument("--after", type=float, default=0.0, help="but not before so many seconds")
parser.add_argument("--stubborn", action="store_true", help="ignore SIGTERM")
parser.add_argument("--child", choices=("meek", "stubborn"), help="start another process")
parser.add_argument("--break", dest="breaks", type=Path, help="answer 500 once this file exists")
parser.add_argument("--talk", type=int, default=0, help="write so many kilobytes")
parser.add_argument("--say", default="")
parser.add_argument("--facts", type=Path, help="write what we are to this file")
words = parser.parse_args()
started = time.monotonic()


def tell(file):
    lines = Path("/proc/self/status").read_text().splitlines()
    status = dict(line.split(":\t", 1) for line in lines if ":\t" in line)
    facts = {
        "uid": os.getuid(),
        "sid": os.getsid(0),
        "pid": os.getpid(),
        "cwd": str(Path.cwd()),
        "stdin": str(Path("/proc/self/fd/0").readlink()),
        "fds": sorted(each.name for each in Path("/proc/self/fd").iterdir()),
        "blocked": status["SigBlk"],
        "ignored": status["SigIgn"],
        "environment": dict(os.environ),
    }
    draft = file.with_suffix(".new")
    draft.write_text(json.dumps(facts))
    draft.rename(file)


if words.stubborn:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
if words.child:
    child = subprocess.Popen([sys.executable, "-c", STUBBORN if words.child == "stubborn" else SLEEP])
    print(f"child {child.pid}", flush=True)
if words.say:
    print(words.say, flush=True)
for _ in range(words.talk):
    print("x" * 1023, flush=True)
if words.facts:
    tell(words.facts)
if words.exit is not None:
    threading.Timer(words.after, os._exit, [words.exit]).start()
    if not words.after:
        time.sleep(60)


class Handler(http.server.BaseHTTPRequestHandler):
    """Well-behaved, unless told otherwise."""

    protocol_version = "HTTP/1.1"

    def do_GET(self):
        if self.path == "/stream":
            self.send_response(200)
            self.send_header("Connection", "close")
            self.end_headers()
            with contextlib.suppress(OSError):
                while True:
                    self.wfile.write(b"token\n")
                    self.wfile.flush()
                    time.sleep(0.05)
            return
        if words.load < 0 or time.monotonic() - started < words.load:
            self.answer(503, b'{"error":{"code":503,"message":"Loading model","type":"unavailable_error"}}')
        elif words.breaks and words.breaks.exists():
            self.answer(500, b"{}")
        else:
            self.answer(words.status, b'{"status":"ok"}')

    def answer(self, status, body):
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


class Rubbish(http.server.BaseHTTPRequestHandler):
    """Something else listens."""

    def handle(self):
        if words.mute:
            time.sleep(1000)
        self.wfile.write(b"\x00\xffSSH-2.0-hello\r\n" * 3)


if words.port:
    handler = Rubbish if words.rubbish or words.mute else Handler
    http.server.ThreadingHTTPServer(("127.0.0.1", words.port), handler).serve_forever()
while True:
    time.sleep(1000)
