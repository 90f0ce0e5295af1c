"""A server of models that loads for ever: `loading.py heeds|ignores [llama-server's flags]`."""

import http.server
import signal
import sys


class Loading(http.server.BaseHTTPRequestHandler):
    """Answers everything with 503."""

    def do_GET(self):
        self.send_response(503)
        self.end_headers()
        self.wfile.write(b'{"error": {"code": 503, "message": "Loading model", "type": "unavailable_error"}}')

    def log_message(self, *_):
        pass


if sys.argv[1] == "ignores":
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
port = int(sys.argv[sys.argv.index("--port") + 1])
print("loading", flush=True)
http.server.ThreadingHTTPServer(("127.0.0.1", port), Loading).serve_forever()
