"""Options of `worldpm serve`."""

from dataclasses import dataclass
from pathlib import Path

from tyro.conf import Positional

from worldpm.errors import ConfigError
from worldpm.options.shared import ModelOptions, changed, check_above_zero


@dataclass(frozen=True, kw_only=True)
class ServeOptions(ModelOptions):
    """Serve a checkpoint over HTTP, with a page to try it at /."""

    model: Positional[str | None] = None
    """Folder or hub id of a reward model."""
    upstream: str | None = None
    """URL of a vLLM that holds the model, in place of a folder."""
    port: int = 8000
    """Port to listen on; 0 takes a free one and logs it."""
    host: str = "127.0.0.1"
    """Address to listen on. The default is for this machine only; use --keys with 0.0.0.0."""
    name: str | None = None
    """Name of the model in requests and replies; the folder's name unless set."""
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
    log: Path | None = None
    """SQLite file to which every decision is written."""
    log_hashes: bool = False
    """Write hashes of the inputs to the log instead of the inputs."""
    row_tokens: int = 2048
    """Tokens that the model computes at once."""
    queue_tokens: int = 262_144
    """Tokens that may wait; further requests get 429."""
    max_requests: int = 512
    """Requests in progress; further ones get 429."""
    max_inputs: int = 256
    """Most responses, or texts, of one request."""
    max_body_mib: float = 4.0
    """Largest body of a request."""
    deadline_seconds: float = 60.0
    """Time after which a waiting request is dropped; a request may set a shorter one."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if (self.model is None) == (self.upstream is None):
            raise ConfigError(
                "name either a model to serve, or with --upstream the URL of a vLLM that serves one"
            )
        local = [*ModelOptions.__dataclass_fields__, "row_tokens", "queue_tokens"]
        if self.upstream is not None and (given := changed(self, local)):
            raise ConfigError(
                f"{given[0]} cannot be used with --upstream. Set it on the upstream server."
            )
        if not 0 <= self.port < 65536:
            raise ConfigError(f"--port is {self.port}; 0 to 65535 are possible")
        if self.log_hashes and self.log is None:
            raise ConfigError("--log-hashes needs --log. Name its file.")
        amounts: dict[str, float | None] = {
            "--row-tokens": self.row_tokens,
            "--queue-tokens": self.queue_tokens,
            "--max-requests": self.max_requests,
            "--max-inputs": self.max_inputs,
            "--max-body-mib": self.max_body_mib,
            "--deadline-seconds": self.deadline_seconds,
        }
        check_above_zero(amounts)
