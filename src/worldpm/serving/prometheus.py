"""Metrics for Prometheus: requests, stages, queue, rows, rewards, lengths and drift."""

from collections.abc import Callable, Mapping, Sequence

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from worldpm.serving.batcher import RowStatistics
from worldpm.serving.drift import Change

SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
"""Bounds of the buckets of durations, in seconds."""
REWARDS = (-20, -10, -5, -4, -3, -2, -1, -0.5, 0, 0.5, 1, 2, 3, 4, 5, 10, 20)
"""Bounds of the buckets of rewards, in logits."""
TOKENS = (16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384)
"""Bounds of the buckets of lengths, in tokens."""
SHARES = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
"""Bounds of the buckets of shares."""

# Without a start at 0, the first error of a kind would not show as an increase
KINDS = (
    *("Overloaded", "DeadlineExceeded"),
    *("LogFailed", "UpstreamUnavailable", "NotFinite", "InternalServerError"),
)
"""Kinds of errors in alerts, "busy" and "not working". Their counters start at 0."""


class Metrics:
    """Counters of one server, in a separate registry."""

    def __init__(self) -> None:
        # The global registry would add up several servers in one process, as in tests
        self.registry = CollectorRegistry()

        self.requests = self._counter("worldpm_requests", "Requests answered.", "route", "status")
        self.seconds = self._histogram(
            "worldpm_request_seconds", "Time from arrival to answer.", SECONDS, "route"
        )
        self.errors = self._counter(
            "worldpm_errors", "Error replies by kind: client error, busy, not working.", "kind"
        )
        for kind in KINDS:
            self.errors.labels(kind)
        self.stages = self._histogram(
            "worldpm_stage_seconds",
            "Time of a stage: read, wait and log of a request, and row.",
            SECONDS,
            "stage",
        )

        self.tokens = self._counter(
            "worldpm_tokens", "Tokens computed; a shared prompt counts once."
        )
        self.fill = self._histogram(
            "worldpm_row_fill", "Tokens of a row as a share of its budget.", SHARES
        )
        self.rewards = self._histogram("worldpm_reward", "Rewards in logits.", REWARDS)
        self.lengths = self._histogram("worldpm_response_tokens", "Tokens of a response.", TOKENS)

        self.stability = self._gauge(
            "worldpm_drift_stability_index", "PSI of the latest window of requests.", "of"
        )
        self.p_value = self._gauge(
            "worldpm_drift_p_value", "Corrected p-value of the latest window.", "of"
        )
        self.drifted = self._gauge(
            "worldpm_drifted", "1 if the latest window differs significantly and noticeably.", "of"
        )
        self.shifts = self._gauge(
            "worldpm_reward_shifts", "Shifts of the mean reward that ADWIN detected."
        )
        self.webhooks = self._counter(
            "worldpm_webhooks", "Webhook messages: delivered or failed.", "result"
        )
        for result in ("delivered", "failed"):
            self.webhooks.labels(result)
        self.decisions = self._counter("worldpm_decisions_logged", "Decisions written to the log.")

    def _counter(self, name: str, description: str, *labels: str) -> Counter:
        return Counter(name, description, labels, registry=self.registry)

    def _gauge(self, name: str, description: str, *labels: str) -> Gauge:
        return Gauge(name, description, labels, registry=self.registry)

    def _histogram(
        self, name: str, description: str, buckets: Sequence[float], *labels: str
    ) -> Histogram:
        return Histogram(name, description, labels, buckets=buckets, registry=self.registry)

    def watch_service(self, is_ready: Callable[[], bool], requests: Callable[[], int]) -> None:
        """Read the state of the service whenever the metrics are read."""
        self._gauge("worldpm_ready", "1 while /ready gives 200.").set_function(is_ready)
        self._gauge("worldpm_open_requests", "Open requests.").set_function(requests)

    def watch_queue(self, groups: Callable[[], int], tokens: Callable[[], int]) -> None:
        """Read the queue's size whenever the metrics are read."""
        # Functions, because stored values would be outdated when they are read
        self._gauge("worldpm_queue_groups", "Groups in the queue.").set_function(groups)
        self._gauge("worldpm_queue_tokens", "Tokens in the queue.").set_function(tokens)

    def watch_replicas(self, ready: Callable[[], int], restarts: Callable[[], int]) -> None:
        """Read the state of the replicas whenever the metrics are read."""
        self._gauge("worldpm_replicas_ready", "Replicas that can compute.").set_function(ready)
        self._gauge(
            "worldpm_replica_restarts", "Replicas that ended and were started again."
        ).set_function(restarts)

    def stage(self, name: str, seconds: float, row: RowStatistics | None = None) -> None:
        """Record the time of a stage, and the statistics of a row."""
        self.stages.labels(name).observe(seconds)
        if row is None:
            return

        self.tokens.inc(row.tokens)
        # A single group over the budget is also a row, so the share can be above 1
        self.fill.observe(min(1.0, row.tokens / row.budget_tokens))
        for waited in row.waited_seconds:
            self.stages.labels("wait").observe(waited)

    def answered(self, rewards: Sequence[float], length_tokens: Sequence[int]) -> None:
        """Record the rewards and lengths of one request."""
        for reward in rewards:
            self.rewards.observe(reward)
        for tokens in length_tokens:
            self.lengths.observe(tokens)

    def changed(self, changes: Mapping[str, Change]) -> None:
        """Record the changes of the latest window, by series."""
        for name, change in changes.items():
            self.stability.labels(name).set(change.stability_index)
            self.p_value.labels(name).set(change.p_value)
            self.drifted.labels(name).set(change.drifted)

    def page(self) -> bytes:
        """All metrics in Prometheus's text format."""
        return generate_latest(self.registry)
