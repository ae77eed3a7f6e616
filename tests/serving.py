"""An HTTP server in this process, for tests of what asks one."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class JsonHandler(BaseHTTPRequestHandler):
    """Reads JSON, sends JSON (or bytes as they are), and logs nothing."""

    def asked(self):
        return json.loads(self.rfile.read(int(self.headers["Content-Length"])))

    def send(self, value, code=200):
        body = value if isinstance(value, bytes) else json.dumps(value).encode()
        self.send_response(code)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args):
        pass


@contextmanager
def served(handler: type[JsonHandler]) -> Iterator[str]:
    """The server's URL, until the end."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
