"""Example receiver of worldpm's events, which starts a command when drift begins.

python receiver.py --secret FILE -- kubectl create job --from=cronjob/worldpm-retrain x-{time}
"""

import argparse
import base64
import hashlib
import hmac
import json
import subprocess
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

MOST_BYTES = 2**20
TOLERANCE_SECONDS = 300
"""Largest difference between an event's time and this machine's clock."""


class Receiver(ThreadingHTTPServer):
    """Server that verifies events by the Standard Webhooks specification and starts the command."""

    def __init__(self, options: argparse.Namespace) -> None:
        super().__init__((options.host, options.port), Handler)
        secret = options.secret.read_text().strip().removeprefix("whsec_")
        self.key = base64.b64decode(secret, validate=True)
        self.command, self.every = options.command, options.every
        self.last_start, self.seen = -float("inf"), dict[str, int]()
        self.lock = threading.Lock()

    def answer(self, name: str, sent: str, signatures: str, body: bytes) -> tuple[int, str]:
        """Status and text of the reply to one event."""
        signed = hmac.new(self.key, f"{name}.{sent}.".encode() + body, hashlib.sha256).digest()
        expected = b"v1," + base64.b64encode(signed)
        # A sender that is changing its secret signs with both the old and the new secret
        if not any(hmac.compare_digest(expected, s.encode()) for s in signatures.split()):
            return 401, "wrong signature"
        if not sent.isdecimal() or abs(time.time() - int(sent)) > TOLERANCE_SECONDS:
            return 400, "webhook-timestamp is more than 5 minutes off"
        try:
            kind = json.loads(body)["type"]
        except (ValueError, TypeError, KeyError, RecursionError):
            return 400, "the body is not an event"
        with self.lock:
            return self.act(name, int(sent), kind)

    def act(self, name: str, sent: int, kind: object) -> tuple[int, str]:
        """Start the command, unless the event is repeated or the last start is recent."""
        oldest = time.time() - TOLERANCE_SECONDS  # the timestamp check rejects older events
        self.seen = {other: at for other, at in self.seen.items() if at >= oldest}
        # Reply 200, because a sender repeats an event if it did not get the first reply
        if name in self.seen:
            return 200, "repeated webhook-id: nothing started"
        reply = "nothing started"
        if kind == "drift.began" and time.monotonic() - self.last_start >= self.every:
            command = [part.replace("{time}", str(int(time.time()))) for part in self.command]
            try:
                # No shell, and no data from the event
                subprocess.run(command, check=True, timeout=30, stdin=subprocess.DEVNULL)
            except (OSError, subprocess.SubprocessError) as error:
                print(f"the command failed: {error}", flush=True)
                return 500, "the command failed; send the event again"
            self.last_start, reply = time.monotonic(), "started"
        self.seen[name] = sent
        return 200, reply


class Handler(BaseHTTPRequestHandler):
    """One connection."""

    server: Receiver
    timeout = 10

    def do_POST(self) -> None:
        """Answer one event."""
        length = self.headers.get("content-length", "")
        if (known := length.isdecimal()) and len(length) < 8 and int(length) <= MOST_BYTES:
            parts = ("id", "timestamp", "signature")
            name, sent, signatures = (self.headers.get(f"webhook-{part}", "") for part in parts)
            body = self.rfile.read(int(length))
            status, text = self.server.answer(name, sent, signatures, body)
        else:
            status, text = (413, "more than 1 MiB") if known else (411, "no content-length")
        self.send_response(status)
        self.end_headers()
        self.wfile.write(f"{text}\n".encode())


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8080)
    parser.add_argument("--secret", type=Path, required=True, help="file: whsec_BASE64")
    parser.add_argument("--every", type=float, default=3600, help="seconds between two starts")
    parser.add_argument("command", nargs="+", help="after --; {time} becomes the Unix time")
    server = Receiver(parser.parse_args())
    print(f"listening on port {server.server_port}", flush=True)
    server.serve_forever()
