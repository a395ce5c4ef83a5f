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
    """Data of a message."""

    model: str
    """Name of the model."""
    model_sha256: str
    series: Mapping[str, Plain]
    """Fields of the `Change` of each series whose drift began or ended."""


class DriftMessages:
    """Sends a message when a series begins to differ from the reference, or ends to."""

    def __init__(self, webhook: Webhook, identity: Identity, metrics: Metrics) -> None:
        self._webhook, self._identity, self._metrics = webhook, identity, metrics
        self._drifting: set[str] = set()
        self._queue: queue.SimpleQueue[tuple[str, DriftData]] = queue.SimpleQueue()
        # One thread, so that messages keep their order and requests never wait for them; a daemon,
        # so that the end of the server does not wait for a receiver that is gone
        threading.Thread(target=self._send, name="webhook", daemon=True).start()

    def changed(self, changes: Mapping[str, Change]) -> None:
        """Take the changes of a window by series."""
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
            # Any error: this thread must go on with the next message
            except Exception as error:
                logger.error("%s", error)
                result = "failed"
            self._metrics.webhooks.labels(result).inc()
