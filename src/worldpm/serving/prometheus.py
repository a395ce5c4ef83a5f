"""What Prometheus is told: latency by stage, the queue, rows, rewards and lengths."""

from collections.abc import Callable, Mapping, Sequence

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from worldpm.serving.batcher import Ran
from worldpm.serving.drift import Change

SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
REWARDS = (-20, -10, -5, -4, -3, -2, -1, -0.5, 0, 0.5, 1, 2, 3, 4, 5, 10, 20)
TOKENS = (16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384)
SHARES = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)


class Metrics:
    """Counters of one server, in a registry of their own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.requests = Counter(
            "worldpm_requests", "Requests answered.", ["route", "status"], registry=self.registry
        )
        self.seconds = Histogram(
            "worldpm_request_seconds",
            "From arrival to answer.",
            ["route"],
            buckets=SECONDS,
            registry=self.registry,
        )
        self.stages = Histogram(
            "worldpm_stage_seconds",
            "Of a request: read, wait, log; of a row: row.",
            ["stage"],
            buckets=SECONDS,
            registry=self.registry,
        )
        self.tokens = Counter(
            "worldpm_tokens", "Tokens computed, prompts once.", registry=self.registry
        )
        self.fill = Histogram(
            "worldpm_row_fill",
            "Tokens of a row over its budget.",
            buckets=SHARES,
            registry=self.registry,
        )
        self.rewards = Histogram(
            "worldpm_reward", "Rewards in logits.", buckets=REWARDS, registry=self.registry
        )
        self.lengths = Histogram(
            "worldpm_response_tokens",
            "Tokens of a response.",
            buckets=TOKENS,
            registry=self.registry,
        )
        self.stability = Gauge(
            "worldpm_drift_stability_index",
            "PSI of the latest window of requests.",
            ["of"],
            registry=self.registry,
        )
        self.p_value = Gauge(
            "worldpm_drift_p_value",
            "Corrected p-value of the latest window.",
            ["of"],
            registry=self.registry,
        )
        self.drifted = Gauge(
            "worldpm_drifted",
            "1 where the latest window differs, surely and noticeably.",
            ["of"],
            registry=self.registry,
        )
        self.shifts = Gauge(
            "worldpm_reward_shifts",
            "Times that the mean reward shifted, by ADWIN.",
            registry=self.registry,
        )
        self.decisions = Counter(
            "worldpm_decisions_logged", "Decisions written to the log.", registry=self.registry
        )

    def watch_queue(self, groups: Callable[[], int], tokens: Callable[[], int]) -> None:
        """Ask for the queue's size whenever the metrics are read."""
        Gauge("worldpm_queue_groups", "Groups that wait.", registry=self.registry).set_function(
            groups
        )
        Gauge("worldpm_queue_tokens", "Tokens that wait.", registry=self.registry).set_function(
            tokens
        )

    def stage(self, name: str, seconds: float, ran: Ran | None = None) -> None:
        """A stage that ended; a row tells what it held."""
        self.stages.labels(name).observe(seconds)
        if ran is not None:
            self.tokens.inc(ran.tokens)
            self.fill.observe(min(1.0, ran.tokens / ran.budget_tokens))
            for waited in ran.waited_seconds:
                self.stages.labels("wait").observe(waited)

    def answered(self, rewards: Sequence[float], lengths: Sequence[int]) -> None:
        """The rewards and lengths of one answer."""
        for reward in rewards:
            self.rewards.observe(reward)
        for length in lengths:
            self.lengths.observe(length)

    def changed(self, changes: Mapping[str, Change]) -> None:
        """What the latest window of requests was, against the reference."""
        for name, change in changes.items():
            self.stability.labels(name).set(change.stability_index)
            self.p_value.labels(name).set(change.p_value)
            self.drifted.labels(name).set(change.drifted)

    def page(self) -> bytes:
        """All of it in Prometheus's text format."""
        return generate_latest(self.registry)
