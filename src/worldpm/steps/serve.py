"""A checkpoint behind HTTP: our own routes, those of the clients people have, and a page to try it."""

import logging
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro
from tyro.conf import Positional

from worldpm.field.errors import ConfigError, DataError
from worldpm.formats import folders

if TYPE_CHECKING:
    from fastapi import FastAPI

    from worldpm.parts.confidence import Confidence
    from worldpm.parts.serving.engine import Answer, Engine
    from worldpm.parts.serving.metrics import Metrics
    from worldpm.parts.serving.own import Preferences
    from worldpm.parts.serving.service import Identity, Service

logger = logging.getLogger(__name__)

Json = dict[str, Any]
NEEDED = ("fastapi", "fastapi_offline", "httpx", "uvicorn", "prometheus_client", "ecs_logging")


@dataclass(frozen=True, kw_only=True)
class Config:
    """Serve a checkpoint over HTTP, with a page to try it at /."""

    model: Positional[str | None] = None
    """Folder or hub id of a reward model."""
    upstream: str | None = None
    """URL of a vLLM that holds the model, in place of a folder."""
    port: int = 8000
    """0 takes a free one and tells it."""
    host: str = "127.0.0.1"
    """Only this machine reaches the default; 0.0.0.0 opens it to all, best with --keys."""
    name: str | None = None
    """What clients call the model; the folder's name unless set."""
    calibration: Path | None = None
    """Results folder of `worldpm evaluate` on this model: gives temperature, confidence and the style model."""
    rules: Path | None = None
    """Rule file of /v1/route."""
    keys: Path | None = None
    """JSON of the API keys: {NAME: {"key": ..., "settings": {...}}}."""
    reference: Path | None = None
    """Window of earlier requests, of `worldpm log reference`, from which drift is told in /metrics."""
    log: Path | None = None
    """SQLite file that keeps every decision."""
    log_hashes: bool = False
    """Log hashes of the inputs in place of the inputs."""
    row_tokens: int = 2048
    """Tokens of one row of the model."""
    queue_tokens: int = 262_144
    """Tokens that may wait; more is refused with 429."""
    max_requests: int = 512
    """Requests inside at once; more is refused with 429."""
    max_inputs: int = 256
    """Responses, or texts, of one request."""
    max_body_mib: float = 4.0
    """Size of a request's body."""
    deadline_seconds: float = 60.0
    """After which a request that still waits is not computed; a request may set an earlier one."""
    max_length: Annotated[int | None, tyro.conf.arg(metavar="INT")] = None
    """Tokens of prompt plus one response; the checkpoint's own unless set."""
    dtype: Literal["float32", "bfloat16"] | None = None
    """Compute type; that of the checkpoint's weights unless set."""
    across_devices: bool = False
    """Spread a model that is too large for one device over all of them, and over memory."""
    revision: str | None = None
    """Branch, tag or commit of a hub id."""
    remote_code: bool = False
    """Run the Python that a model's repository brings; needs --revision with a commit."""

    def __post_init__(self) -> None:
        if (self.model is None) == (self.upstream is None):
            raise ConfigError("name a model to serve, or with --upstream the URL of a vLLM that holds one; one of the two")
        ours = {"dtype", "max_length", "row_tokens", "queue_tokens", "across_devices", "revision", "remote_code"}
        set_here = [field.name for field in fields(self) if field.name in ours and getattr(self, field.name) != field.default]
        if self.upstream is not None and set_here:
            raise ConfigError(f"--{set_here[0].replace('_', '-')} is the business of the server at --upstream, which holds the model")
        if not 0 <= self.port < 65536:
            raise ConfigError(f"--port is {self.port}; 0 to 65535 are possible")
        if self.log_hashes and self.log is None:
            raise ConfigError("--log-hashes says what --log keeps; name its file")
        amounts = {"row-tokens": self.row_tokens, "queue-tokens": self.queue_tokens, "max-requests": self.max_requests,
                   "max-inputs": self.max_inputs, "max-body-mib": self.max_body_mib, "deadline-seconds": self.deadline_seconds}  # fmt: skip
        for flag, value in amounts.items():
            if not value > 0:
                raise ConfigError(f"--{flag} is {value}; it must be above 0")


def run(config: Config) -> None:
    """Serve until SIGTERM or Ctrl-C; then no more is accepted, and what was accepted is answered."""
    if missing := [name for name in NEEDED if find_spec(name) is None]:
        raise ConfigError(f"`worldpm serve` needs {', '.join(missing)}: pip install 'worldpm[serve]'")
    import uvicorn

    _log_as_json()
    app, service = assemble(config)
    listening = uvicorn.Config(app, host=config.host, port=config.port, log_config=None, access_log=False, timeout_keep_alive=30,
                               timeout_graceful_shutdown=int(config.deadline_seconds) + 5)  # fmt: skip
    sys.setswitchinterval(5e-4)  # the model's thread waits for the interpreter's lock after every operation
    sock = listening.bind_socket()
    logger.info("serving %s on http://%s:%d", service.identity.name, config.host, sock.getsockname()[1])
    try:
        uvicorn.Server(listening).run(sockets=[sock])
    finally:
        if service.decisions is not None:
            service.decisions.close()


def assemble(config: Config) -> "tuple[FastAPI, Service]":
    """The application and what is behind it, the model loaded and tried."""
    from worldpm.parts.decision_log import DecisionLog
    from worldpm.parts.routing import RoutingRules
    from worldpm.parts.serving import app
    from worldpm.parts.serving.metrics import Metrics
    from worldpm.parts.serving.service import RequestLimits, Service

    if config.reference is not None and find_spec("river") is None:
        raise ConfigError("--reference needs river: pip install 'worldpm[serve]'")
    rules = RoutingRules.read(config.rules) if config.rules else None
    keys, settings = _read_keys(config.keys) if config.keys else ({}, {})
    metrics = Metrics()
    engine, identity, confidence = _engine(config, metrics) if config.model else _upstream(config)
    decisions = DecisionLog(config.log) if config.log else None
    if decisions is not None and decisions.repaired:
        logger.warning("%s; %d decisions stand", decisions.repaired, len(decisions))
    limits = RequestLimits(int(config.max_body_mib * 2**20), config.max_inputs, config.max_requests, config.deadline_seconds)
    service = Service(engine, identity, limits, confidence, metrics, decisions, keep_inputs=not config.log_hashes)
    if config.reference is not None:
        service.listeners.append(_drift_watch(config.reference, metrics))
    return app.build(service, rules=rules, keys=keys, settings=settings), service


def _engine(config: Config, metrics: "Metrics") -> "tuple[Engine, Identity, Confidence]":
    """The scorer behind its queue, who it is, and what its margins mean."""
    import torch

    from worldpm.formats import chat
    from worldpm.parts import confidence, model_sources
    from worldpm.parts.scorer import Scorer
    from worldpm.parts.serving.engine import LocalEngine
    from worldpm.parts.serving.service import Identity

    place = str(config.model)
    source = model_sources.find(place, revision=config.revision, remote_code=config.remote_code)
    scorer = Scorer.load(
        place, max_length=config.max_length, dtype=getattr(torch, config.dtype) if config.dtype else None,
        revision=config.revision, remote_code=config.remote_code, across_devices=config.across_devices,
    )  # fmt: skip
    name = config.name or source.folder.resolve().name
    sha256 = str(model_sources.fingerprint(source)["sha256"])
    if config.calibration is not None:
        known = confidence.of_results(config.calibration, source.folder.resolve().name, sha256=sha256)
    else:
        known = confidence.Confidence(model_sources.temperature_of(source))
    scorer.rewards("Is anybody there?", ["Yes."])  # decides whether prompts are shared, before the first client waits for it
    also = (place, str(source.folder.resolve()))
    template, dtype = chat.template_hash(scorer.encoder.tokenizer), str(scorer.dtype).removeprefix("torch.")
    identity = Identity(name, sha256, template, scorer.encoder.limits.max_length, dtype, config.row_tokens, also)
    engine = LocalEngine(scorer, row_tokens=config.row_tokens, queue_tokens=config.queue_tokens, on_stage=metrics.stage)
    metrics.watch_queue(lambda: engine.batcher.waiting, lambda: engine.batcher.waiting_tokens)
    return engine, identity, known


def _upstream(config: Config) -> "tuple[Engine, Identity, Confidence]":
    """A vLLM elsewhere."""
    from worldpm.parts import confidence
    from worldpm.parts.serving.upstream import UpstreamEngine, identify

    url = str(config.upstream).rstrip("/")
    identity = identify(url)
    known = confidence.Confidence()
    if config.calibration is not None:
        known = confidence.of_results(config.calibration, Path(identity.name).name)
    return UpstreamEngine(url, identity.name), identity._replace(name=config.name or identity.name), known


def _drift_watch(reference: Path, metrics: "Metrics") -> "Callable[[Sequence[Answer], Sequence[Json]], None]":
    """What tells the metrics of drift as answers leave."""
    from worldpm.parts import drift

    watch = drift.Drift(drift.read(reference))

    def told(answers: "Sequence[Answer]", inputs: Sequence[Json]) -> None:
        for answer, given in zip(answers, inputs, strict=True):
            if answer.rewards and "responses" in given:
                values = drift.values_of(answer.rewards[0], drift.prompt_text(given), given["responses"][0])
                if watch.observe(values):
                    metrics.changed(watch.changes)
                metrics.shifts.set(watch.shifts)

    return told


def _read_keys(path: Path) -> "tuple[dict[str, str], Mapping[str, Preferences]]":
    """The API keys and the settings that go with them."""
    from pydantic import ValidationError

    from worldpm.parts.serving.own import Preferences

    if not path.is_file():
        raise ConfigError(f"--keys {path}: no such file")
    content = folders.read_json(path)
    form = 'expected {NAME: {"key": TEXT, "settings": {...}}}'
    if not isinstance(content, dict) or not content:
        raise DataError(path, form)
    keys, settings = {}, {}
    for name, entry in content.items():
        if not isinstance(entry, dict) or not isinstance(key := entry.get("key"), str) or not key:
            raise DataError(path, f"{name}: {form}")
        keys[name] = key
        try:
            settings[name] = Preferences(**entry.get("settings", {}))
        except (ValidationError, TypeError) as error:
            raise DataError(path, f"the settings of {name}: {' '.join(str(error).split())[:200]}") from error
    return keys, settings


def _log_as_json() -> None:
    """Everything that is logged, as JSON lines on stdout in Elastic's common schema."""
    import ecs_logging

    handler = logging.StreamHandler(sys.stdout)
    handler.setFormatter(ecs_logging.StdlibFormatter(exclude_fields=["log.original", "process", "log.origin"]))
    logging.basicConfig(level=logging.INFO, handlers=[handler], force=True)
    for chatty in ("uvicorn.access", "httpx"):
        logging.getLogger(chatty).setLevel(logging.ERROR)
