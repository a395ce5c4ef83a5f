"""Options of `worldpm serve`."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from tyro.conf import Positional

from worldpm.errors import ConfigError
from worldpm.options.shared import (
    Groups,
    ModelOptions,
    changed,
    check_above_zero,
    check_not_negative,
    check_webhook,
)


@dataclass(frozen=True, kw_only=True)
class ServeOptions(ModelOptions):
    """Serve a checkpoint over HTTP, with a page to try it at /."""

    EXAMPLE: ClassVar[str] = "worldpm serve checkpoint --log decisions.sqlite"
    INPUTS_OR_IDS: ClassVar[tuple[str, ...]] = ("model",)
    INPUTS: ClassVar[tuple[str, ...]] = (
        "calibration",
        "rules",
        "keys",
        "reference",
        "webhook_secret",
        "upstream_key",
    )
    GROUPS: ClassVar[Groups] = {
        "address": ("host", "port", "name", "any_model_name", "allow_hosts", "cors"),
        "devices": ("replicas", "upstream", "upstream_key"),
        "choice": ("calibration", "rules", "keys"),
        "limit": (
            "row_tokens",
            "queue_tokens",
            "max_requests",
            "max_inputs",
            "max_body_mib",
            "deadline_seconds",
            "queue_wait",
            "max_connections",
            "header_seconds",
            "body_seconds",
        ),
        "log": ("log", "log_hashes", "log_mib", "log_days", "json_logs"),
        "drift": ("reference", "webhook", "webhook_secret"),
    }

    model: Positional[str]
    """Folder or hub id of a reward model."""
    replicas: int = 1
    """Processes that hold the model, each on its own GPU if there are several; one server in front
    of them. With 1, the server's process holds the model."""
    upstream: tuple[str, ...] = ()
    """URLs of vLLM servers that compute the rewards of this model. Only its tokenizer, limits and
    temperature are loaded here."""
    upstream_key: Path | None = None
    """File with the API key of the --upstream servers."""
    port: int = 8000
    """Port to listen on; 0 chooses a free port and logs it."""
    host: str = "127.0.0.1"
    """Address to listen on. The default accepts only clients on this machine; use --keys with
    0.0.0.0."""
    name: str | None = None
    """Name of the model in requests and replies; the folder's name unless set."""
    any_model_name: bool = False
    """Accept any model name in requests, for clients such as Cohere's and Jina's."""
    calibration: Path | None = None
    """Results folder of `worldpm evaluate` on this model, for temperature, confidence and the style
    model."""
    rules: Path | None = None
    """Rule file of /v1/route."""
    keys: Path | None = None
    """JSON of the API keys: {NAME: {"key": ..., "settings": {...}}}."""
    reference: Path | None = None
    """Window of earlier requests, from `worldpm log reference`; /metrics then reports drift from
    it."""
    webhook: str | None = None
    """URL that gets a signed message when drift from --reference begins or ends."""
    webhook_secret: Path | None = None
    """File with the secret that signs messages: whsec_ and base64."""
    log: Path | None = None
    """SQLite file that records every decision."""
    log_hashes: bool = False
    """Write salted digests of the inputs to the log, not the inputs."""
    log_mib: float | None = None
    """Size at which the log is rotated to a new file; one file unless set."""
    log_days: float | None = None
    """Days after which rotated files are deleted; the log is then also rotated daily. All files are
    kept unless set."""
    json_logs: bool = False
    """Log JSON lines on a terminal too; elsewhere logs are always JSON lines."""
    row_tokens: int = 2048
    """Tokens that the model computes at once."""
    queue_tokens: int = 262_144
    """Tokens that may wait; further requests get 429."""
    max_requests: int = 512
    """Requests in progress; further ones get 429."""
    max_inputs: int = 256
    """Most responses or texts in one request."""
    max_body_mib: float = 4.0
    """Largest body of a request."""
    deadline_seconds: float = 60.0
    """Time after which a waiting request is dropped; a request may set a shorter one."""
    queue_wait: float = 0.0
    """Seconds that a request waits for capacity if the server is full, before it gets 429."""
    max_connections: int = 1024
    """Most open connections; a further one replaces the connection that has been idle longest."""
    header_seconds: float = 10.0
    """Time limit for the headers of a request to arrive."""
    body_seconds: float = 30.0
    """Time limit for the body of a request to arrive, and for a client to continue reading a
    reply."""
    allow_hosts: tuple[str, ...] = ()
    """Host names, without ports, that requests may use for the server. A server on 127.0.0.1 also
    accepts the names of this machine. Other servers accept all names unless this is set."""
    cors: tuple[str, ...] = ()
    """Origins whose pages may call the server from a browser, such as https://example.org; none
    unless set."""

    streams: ClassVar[bool] = True
    """Rows go to standard output."""

    def __post_init__(self) -> None:
        super().__post_init__()
        computing = ["dtype", "device", "across_devices", "quantize", "row_tokens", "queue_tokens"]
        if self.upstream and (given := changed(self, computing)):
            raise ConfigError(
                f"{given[0]} cannot be used with --upstream. Set it on the upstream servers."
            )
        if self.replicas > 1 and (self.upstream or self.across_devices):
            other = "--upstream" if self.upstream else "--across-devices"
            raise ConfigError(f"--replicas cannot be used with {other}. Leave one of them out.")
        if self.upstream_key is not None and not self.upstream:
            raise ConfigError("--upstream-key needs --upstream. Name the servers.")
        if not 0 <= self.port < 65536:
            raise ConfigError(f"--port is {self.port}; it must be from 0 to 65535")
        check_webhook(self.webhook, self.webhook_secret)
        if self.webhook is not None and self.reference is None:
            raise ConfigError("--webhook needs --reference. Name the window to compare with.")
        logging = changed(self, ["log_hashes", "log_mib", "log_days"])
        if logging and self.log is None:
            raise ConfigError(f"{logging[0]} needs --log. Name its file.")
        if ports := [
            name for name in self.allow_hosts if ":" in name.strip("[]") and name[0] != "["
        ]:
            raise ConfigError(f"--allow-hosts {ports[0]}: has a port. Name only the host.")
        amounts: dict[str, float | None] = {
            "--replicas": self.replicas,
            "--row-tokens": self.row_tokens,
            "--queue-tokens": self.queue_tokens,
            "--max-requests": self.max_requests,
            "--max-inputs": self.max_inputs,
            "--max-body-mib": self.max_body_mib,
            "--deadline-seconds": self.deadline_seconds,
            "--log-mib": self.log_mib,
            "--log-days": self.log_days,
            "--max-connections": self.max_connections,
            "--header-seconds": self.header_seconds,
            "--body-seconds": self.body_seconds,
        }
        check_above_zero(amounts)
        check_not_negative({"--queue-wait": self.queue_wait})
        wrong = [origin for origin in self.cors if not re.fullmatch(r"https?://[^/\s*]+", origin)]
        if wrong:
            raise ConfigError(
                f"--cors {wrong[0]}: not an origin. Name scheme and host, such as"
                " https://example.org."
            )
