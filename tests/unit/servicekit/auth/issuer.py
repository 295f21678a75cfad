"""A real HTTP server on the loopback interface that serves a JWKS."""

import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Issuer:
    """Serve a JWKS; counts who asks, and can hang or fail."""

    def __init__(self, body: str) -> None:
        self.body = body
        self.status = 200
        self.asked = 0
        self.go = threading.Event()
        self.go.set()
        issuer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                issuer.asked += 1
                issuer.go.wait(10)
                self.send_response(issuer.status)
                self.send_header("Location", "/elsewhere")
                self.end_headers()
                self.wfile.write(issuer.body.encode())

            def log_message(self, *args: object) -> None:
                """Log nothing."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}/jwks.json"

    def close(self) -> None:
        self.go.set()
        self._server.shutdown()
        self._server.server_close()
