"""A checkpoint behind HTTP: our own routes, those of the clients people have, and a page to try
it."""

import logging
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import ecs_logging
import uvicorn
from fastapi import FastAPI
from pydantic import ValidationError

from worldpm.errors import ConfigError, DataError
from worldpm.model import chat, sources
from worldpm.options.serve import ServeOptions
from worldpm.scoring import confidence
from worldpm.scoring.confidence import Confidence
from worldpm.scoring.scorer import Scorer
from worldpm.serving import app, drift
from worldpm.serving.backends import Answer, Engine, LocalEngine
from worldpm.serving.decision_log import DecisionLog
from worldpm.serving.prometheus import Metrics
from worldpm.serving.routes.own import Preferences
from worldpm.serving.routing import RoutingRules
from worldpm.serving.service import Identity, RequestLimits, Service
from worldpm.serving.upstream import UpstreamEngine, identify
from worldpm.storage import folders

logger = logging.getLogger(__name__)

Json = dict[str, Any]


def run(options: ServeOptions) -> None:
    """Serve until SIGTERM or Ctrl-C; then no more is accepted, and what was accepted is
    answered."""
    _log_as_json()
    app, service = assemble(options)
    listening = uvicorn.Config(
        app,
        host=options.host,
        port=options.port,
        log_config=None,
        access_log=False,
        timeout_keep_alive=30,
        timeout_graceful_shutdown=int(options.deadline_seconds) + 5,
    )
    sys.setswitchinterval(
        5e-4
    )  # the model's thread waits for the interpreter's lock after every operation
    sock = listening.bind_socket()
    logger.info(
        "serving %s on http://%s:%d", service.identity.name, options.host, sock.getsockname()[1]
    )
    try:
        uvicorn.Server(listening).run(sockets=[sock])
    finally:
        if service.decisions is not None:
            service.decisions.close()


def assemble(options: ServeOptions) -> tuple[FastAPI, Service]:
    """The application and what is behind it, the model loaded and tried."""

    rules = RoutingRules.read(options.rules) if options.rules else None
    keys, settings = _read_keys(options.keys) if options.keys else ({}, {})
    metrics = Metrics()
    engine, identity, confidence = (
        _engine(options, metrics) if options.model else _upstream(options)
    )
    decisions = DecisionLog(options.log) if options.log else None
    if decisions is not None and decisions.repaired:
        logger.warning("%s; %d decisions stand", decisions.repaired, len(decisions))
    limits = RequestLimits(
        int(options.max_body_mib * 2**20),
        options.max_inputs,
        options.max_requests,
        options.deadline_seconds,
    )
    service = Service(
        engine, identity, limits, confidence, metrics, decisions, keep_inputs=not options.log_hashes
    )
    if options.reference is not None:
        service.listeners.append(_drift_watch(options.reference, metrics))
    return app.build(service, rules=rules, keys=keys, settings=settings), service


def _engine(options: ServeOptions, metrics: Metrics) -> tuple[Engine, Identity, Confidence]:
    """The scorer behind its queue, who it is, and what its margins mean."""

    place = str(options.model)
    source = sources.find(place, revision=options.revision, remote_code=options.remote_code)
    scorer = Scorer.of(source, options)
    name = options.name or source.folder.resolve().name
    sha256 = str(sources.fingerprint(source)["sha256"])
    if options.calibration is not None:
        known = confidence.of_results(
            options.calibration, source.folder.resolve().name, sha256=sha256
        )
    else:
        known = confidence.Confidence(sources.temperature_of(source))
    scorer.rewards(
        "Is anybody there?", ["Yes."]
    )  # decides whether prompts are shared, before the first client waits for it
    also = (place, str(source.folder.resolve()))
    template, dtype = (
        chat.template_hash(scorer.encoder.tokenizer),
        str(scorer.dtype).removeprefix("torch."),
    )
    identity = Identity(
        name, sha256, template, scorer.encoder.limits.max_length, dtype, options.row_tokens, also
    )
    engine = LocalEngine(
        scorer,
        row_tokens=options.row_tokens,
        queue_tokens=options.queue_tokens,
        on_stage=metrics.stage,
    )
    metrics.watch_queue(lambda: engine.batcher.waiting, lambda: engine.batcher.waiting_tokens)
    return engine, identity, known


def _upstream(options: ServeOptions) -> tuple[Engine, Identity, Confidence]:
    """A vLLM elsewhere."""

    url = str(options.upstream).rstrip("/")
    identity = identify(url)
    known = confidence.Confidence()
    if options.calibration is not None:
        known = confidence.of_results(options.calibration, Path(identity.name).name)
    return (
        UpstreamEngine(url, identity.name),
        identity._replace(name=options.name or identity.name),
        known,
    )


def _drift_watch(
    reference: Path, metrics: Metrics
) -> Callable[[Sequence[Answer], Sequence[Json]], None]:
    """What tells the metrics of drift as answers leave."""

    watch = drift.Drift(drift.read(reference))

    def told(answers: Sequence[Answer], inputs: Sequence[Json]) -> None:
        for answer, given in zip(answers, inputs, strict=True):
            if answer.rewards and "responses" in given:
                values = drift.values_of(
                    answer.rewards[0], drift.prompt_text(given), given["responses"][0]
                )
                if watch.observe(values):
                    metrics.changed(watch.changes)
                metrics.shifts.set(watch.shifts)

    return told


def _read_keys(path: Path) -> tuple[dict[str, str], Mapping[str, Preferences]]:
    """The API keys and the settings that go with them."""

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
            raise DataError(
                path, f"the settings of {name}: {' '.join(str(error).split())[:200]}"
            ) from error
    return keys, settings


def _log_as_json() -> None:
    """Everything that is logged, as JSON lines on stdout in Elastic's common schema."""

    handler = logging.StreamHandler(sys.stdout)
    handler.setFormatter(
        ecs_logging.StdlibFormatter(exclude_fields=["log.original", "process", "log.origin"])
    )
    logging.basicConfig(level=logging.INFO, handlers=[handler], force=True)
    for chatty in ("uvicorn.access", "httpx"):
        logging.getLogger(chatty).setLevel(logging.ERROR)
