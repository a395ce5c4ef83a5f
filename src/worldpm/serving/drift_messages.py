"""Messages to a webhook when drift begins or ends."""

import logging
import queue
import threading
from collections.abc import Mapping
from dataclasses import dataclass

from worldpm.serving.drift import Change
from worldpm.serving.prometheus import Metrics
from worldpm.serving.service import Identity
from worldpm.storage.json_files import Plain
from worldpm.webhook import Webhook

logger = logging.getLogger(__name__)

BEGAN, ENDED = "drift.began", "drift.ended"


@dataclass(frozen=True)
class DriftData:
    """Data of a drift message."""

    model: str
    """Name of the model."""
    model_sha256: str
    series: Mapping[str, Plain]
    """Fields of the `Change` of each series whose drift began or ended."""


class DriftMessages:
    """Sends a message when a series begins or stops to differ from the reference."""

    def __init__(self, webhook: Webhook, identity: Identity, metrics: Metrics) -> None:
        self._webhook, self._identity, self._metrics = webhook, identity, metrics
        self._drifting: set[str] = set()
        self._queue: queue.SimpleQueue[tuple[str, DriftData]] = queue.SimpleQueue()
        # One thread, so that messages keep their order and requests do not wait for them. A daemon,
        # so that the server can stop while a receiver does not answer
        threading.Thread(target=self._send, name="webhook", daemon=True).start()

    def changed(self, changes: Mapping[str, Change]) -> None:
        """Compare the changes of a window, by series, with the window before, and send messages."""
        now = {name for name, change in changes.items() if change.drifted}
        for kind, names in ((BEGAN, now - self._drifting), (ENDED, self._drifting - now)):
            if names:
                series = {name: changes[name]._asdict() for name in sorted(names)}
                data = DriftData(self._identity.name, self._identity.sha256, series)
                self._queue.put((kind, data))
        self._drifting = now

    def _send(self) -> None:
        while True:
            kind, data = self._queue.get()
            result = "delivered"
            try:
                self._webhook.post(kind, data)
            # Catch any error, because this thread must continue with the next message
            except Exception as error:
                logger.error("%s", error)
                result = "failed"
            self._metrics.webhooks.labels(result).inc()
