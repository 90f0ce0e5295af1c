"""llama-swap, Ollama and llama.cpp's router as far as they tell what they have loaded, and unload it.

Run as `python ... KIND`, called as the real one is by argv[0] (see benches.py). FAKE_STATE is a folder: `loaded.json`
is what is loaded, as the real one tells it, and `calls` is what was asked. With --child PORT it starts a server.
"""

import http.server
import json
import os
import subprocess
from pathlib import Path

kind, port = os.environ["FAKE_KIND"], int(os.environ["FAKE_PORT"])
folder = Path(os.environ["FAKE_STATE"])
loaded = folder / "loaded.json"
if "FAKE_CHILD" in os.environ:  # arguments, the first is what it is called
    words = json.loads(os.environ["FAKE_CHILD"])
    child = subprocess.Popen(words, executable="/usr/bin/python3")
    (folder / "child").write_text(str(child.pid))


class Handler(http.server.BaseHTTPRequestHandler):
    """Answers as each of them."""

    def do_GET(self):
        self.note()
        there = json.loads(loaded.read_text())
        key = {("llama-swap", "/running"): "running", ("ollama", "/api/ps"): "models", ("router", "/models"): "data"}
        name = key.get((kind, self.path))
        self.answer(*((200, {name: there}) if name else (404, {})))

    def do_POST(self):
        self.note()
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        there = json.loads(loaded.read_text())
        if kind == "llama-swap" and self.path.startswith("/api/models/unload/"):
            name = self.path.removeprefix("/api/models/unload/")
            there = [each for each in there if each["model"] != name]
        elif kind == "ollama" and self.path == "/api/generate" and json.loads(body)["keep_alive"] == 0:
            there = [each for each in there if each["model"] != json.loads(body)["model"]]
        elif kind == "router" and self.path == "/models/unload":
            for each in there:
                if each["id"] == json.loads(body)["model"]:
                    each["status"] = {"value": "unloaded"}
        else:
            return self.answer(404, {})
        loaded.write_text(json.dumps(there))
        return self.answer(200, {"done": True})

    def note(self):
        with (folder / "calls").open("a") as calls:
            calls.write(f"{self.command} {self.path}\n")

    def answer(self, status, document):
        body = json.dumps(document).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


http.server.ThreadingHTTPServer(("127.0.0.1", port), Handler).serve_forever()
