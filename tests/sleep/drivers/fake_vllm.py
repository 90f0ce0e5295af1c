"""vLLM's server as far as its sleep mode goes, run by our python: what its clients, its scheduler and its GPU would see.

https://docs.vllm.ai/en/latest/features/sleep_mode/ and vllm/entrypoints/serve/{sleep,rpc}. Told by the environment:
VLLM_SERVER_DEV_MODE, FAKE_VERSION, and FAKE_STATE, a folder: `faults.json` is read at each request, `calls` is written.
Its engine, a process of its own, has memory on the first board of the simulated driver (FAKE_BOARDS).
"""

import http.server
import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

from memscaler.simulator import SimulatedDriver

LOADED, RESIDUE = 1000 << 20, 50 << 20
TAGS = ("weights", "kv_cache")
folder = Path(os.environ["FAKE_STATE"])
version = os.environ.get("FAKE_VERSION", "0.27.1")
developing = os.environ.get("VLLM_SERVER_DEV_MODE") == "1"
enabled = "--enable-sleep-mode" in sys.argv
port = int(sys.argv[sys.argv.index("--port") + 1])
engine = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(10000)"])
board = SimulatedDriver.attach(os.environ["FAKE_BOARDS"]).boards[0] if "FAKE_BOARDS" in os.environ else None
changed = threading.Condition()
asleep: set[str] = set()
waiting: list[object] = []  # requests that came too early
weights_are_right = True


def faults():
    file = folder / "faults.json"
    return json.loads(file.read_text()) if file.exists() else {}


def tell_memory(count):
    if board is not None:
        board.add_process(engine.pid, count)


class Handler(http.server.BaseHTTPRequestHandler):
    """As uvicorn: HTTP/1.0 and 1.1."""

    protocol_version = "HTTP/1.1"

    def do_GET(self):
        route = self.note()
        if route == "/version":
            self.answer(200, {"version": version})
        elif route == "/health":
            self.answer(200)
        elif route == "/is_sleeping" and developing:
            time.sleep(faults().get("is_sleeping_s", 0))
            self.answer(200, {"is_sleeping": bool(asleep)})
        else:
            self.answer(404, {"detail": "Not Found"})

    def do_POST(self):
        route = self.note()
        query = parse_qs(urlsplit(self.path).query)
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if route == "/v1/completions":
            self.complete()
        elif not developing:
            self.answer(404, {"detail": "Not Found"})
        elif route == "/sleep":
            self.sleep(int(query.get("level", ["1"])[0]))
        elif route == "/wake_up":
            self.wake(query.get("tags", list(TAGS)))
        elif route == "/collective_rpc":
            self.reload(json.loads(body)["method"])
        else:
            self.answer(404, {"detail": "Not Found"})

    def note(self):
        with (folder / "calls").open("a") as calls:
            calls.write(f"{self.command} {self.path} {self.client_address[1]}\n")
        return urlsplit(self.path).path

    def sleep(self, level):
        global weights_are_right  # noqa: PLW0603  # one server in one process
        now = faults()
        time.sleep(now.get("sleep_s", 0))
        if now.get("sleep") == "refuse":
            return self.answer(500, {"error": {"message": "EngineCore encountered an issue"}})
        if now.get("sleep") != "lie":
            with changed:
                asleep.update(TAGS)
                weights_are_right = level < 2
            # without --enable-sleep-mode nothing was put aside by tags: it says that it sleeps, and frees nothing
            tell_memory(RESIDUE if enabled and now.get("sleep") != "keep" else LOADED)
        if now.get("sleep") == "die":
            os._exit(1)
        return self.answer(200)

    def wake(self, tags):
        now = faults()
        time.sleep(now.get("wake_s", 0))
        if now.get("wake") == "refuse":
            return self.answer(500, {"error": {"message": "CUDA out of memory"}})
        if now.get("wake") == "die":
            os._exit(1)
        with changed:
            asleep.difference_update(tags)
            if asleep and waiting and tuple(map(int, version.split(".")[:2])) < (0, 25):
                os._exit(1)  # vllm-project/vllm#44395: its scheduler goes on, and there is no cache
            changed.notify_all()
        if not asleep:
            tell_memory(LOADED)
        return self.answer(200)

    def reload(self, method):
        global weights_are_right  # noqa: PLW0603
        assert method == "reload_weights"
        assert "weights" not in asleep
        weights_are_right = True
        self.answer(200, {"results": [None]})

    def complete(self):
        """What came too early waits for the scheduler, since 0.17; before, it ended the server."""
        with changed:
            if asleep and tuple(map(int, version.split(".")[:2])) < (0, 17):
                os._exit(1)
            waiting.append(self)
            changed.wait_for(lambda: not asleep)
            waiting.remove(self)
        self.answer(200, {"choices": [{"text": "hello" if weights_are_right else "!!!!!"}]})

    def answer(self, status, document=None):
        body = b"" if document is None else json.dumps(document).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


tell_memory(LOADED)
http.server.ThreadingHTTPServer.daemon_threads = True
http.server.ThreadingHTTPServer((os.environ.get("FAKE_HOST", "127.0.0.1"), port), Handler).serve_forever()
