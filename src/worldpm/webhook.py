"""Signed messages to another server, so that it can act on drift or on an audit.

Source: the Standard Webhooks specification, version 1.0.0,
https://github.com/standard-webhooks/standard-webhooks/blob/main/spec/standard-webhooks.md
"""

import base64
import binascii
import hashlib
import hmac
import json
import secrets
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from http.client import HTTPException
from pathlib import Path

import msgspec

from worldpm.errors import ConfigError, WorldPMError
from worldpm.storage.private_files import read_private

SECRET_PREFIX = "whsec_"
LEAST_SECRET_BYTES = 24
"""The specification's minimum."""
TIMEOUT_SECONDS = 15
WAITS = (1.0, 10.0, 60.0)
"""Seconds before each retry."""


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    """Handler that makes redirects errors, because urllib follows them without the body."""

    def redirect_request(self, *_: object) -> None:
        """Follow no redirect."""


_OPENER = urllib.request.build_opener(_NoRedirects)


@dataclass(frozen=True)
class Event:
    """Body of a message."""

    type: str
    """For instance `drift.began`."""
    timestamp: str
    """UTC, ISO 8601."""
    data: object


@dataclass(frozen=True)
class Webhook:
    """The receiver of messages, and the secret that signs them."""

    url: str
    secret: bytes

    @classmethod
    def read(cls, url: str, secret_file: Path) -> "Webhook":
        """Read the secret, `whsec_` and base64, from a file.

        Raises:
            ConfigError: If the file cannot be read, other users can read it, or it does not contain
                a secret of this form.
        """
        text = read_private(secret_file, "--webhook-secret").decode(errors="replace").strip()
        try:
            secret = base64.b64decode(text.removeprefix(SECRET_PREFIX), validate=True)
        except binascii.Error:
            secret = b""
        if not text.startswith(SECRET_PREFIX) or len(secret) < LEAST_SECRET_BYTES:
            raise ConfigError(
                f"--webhook-secret {secret_file}: not a secret of the form whsec_BASE64 with at"
                f" least {LEAST_SECRET_BYTES} bytes. Make one: echo whsec_$(openssl rand -base64"
                " 32)"
            )
        return cls(url, secret)

    def post(self, kind: str, data: object, *, waits: Sequence[float] = WAITS) -> None:
        """Send a message of a kind; if the server does not accept it, retry after each of the
        waits.

        Retries have the same message id, so that a receiver can recognize duplicates.

        Raises:
            WorldPMError: If every try failed.
        """
        event = Event(kind, datetime.now(UTC).isoformat(timespec="seconds"), data)
        body = json.dumps(msgspec.to_builtins(event, str_keys=True), allow_nan=False).encode()
        message_id = f"msg_{secrets.token_hex(12)}"

        for wait in (*waits, None):
            fault = self._fault_of_try(message_id, body)
            if fault is None:
                return
            if wait is not None:
                time.sleep(wait)
        raise WorldPMError(
            f"--webhook {self.url}: the message was not delivered ({fault}). Check the receiver."
        )

    def headers(self, message_id: str, seconds: int, body: bytes) -> dict[str, str]:
        """Headers of a message that is sent at a Unix time in seconds."""
        signed = b".".join([message_id.encode(), str(seconds).encode(), body])
        signature = hmac.new(self.secret, signed, hashlib.sha256).digest()
        return {
            "content-type": "application/json",
            "webhook-id": message_id,
            "webhook-timestamp": str(seconds),
            "webhook-signature": f"v1,{base64.b64encode(signature).decode()}",
        }

    def _fault_of_try(self, message_id: str, body: bytes) -> str | None:
        """The reason why a try failed; None if the receiver accepted the message."""
        headers = self.headers(message_id, int(time.time()), body)
        request = urllib.request.Request(self.url, data=body, headers=headers, method="POST")
        try:
            with _OPENER.open(request, timeout=TIMEOUT_SECONDS):
                return None
        except urllib.error.HTTPError as error:
            error.close()
            return f"it answers {error.code}"
        except (OSError, HTTPException) as error:
            return str(getattr(error, "reason", error))
