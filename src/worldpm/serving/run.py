"""`worldpm serve`: serves a checkpoint over HTTP, with our own routes, routes for clients of other
servers, and a page to try it."""

import gc
import json
import logging
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import ecs_logging
import uvicorn
from fastapi import FastAPI
from pydantic import ValidationError
from transformers import PreTrainedConfig

from worldpm.errors import DataError
from worldpm.evaluation.calibrating import confidence_of
from worldpm.model import chat, checkpoint, sources
from worldpm.model.encoder import Encoder
from worldpm.model.sources import Source
from worldpm.options.serve import ServeOptions
from worldpm.records import Message
from worldpm.scoring.confidence import Confidence
from worldpm.scoring.scorer import Scorer
from worldpm.serving import app, drift
from worldpm.serving.backends import Backend, BackendReply, LocalBackend, QueuedBackend
from worldpm.serving.connections import bounded
from worldpm.serving.decision_log import DecisionLog, Retention
from worldpm.serving.decisions import ConversationInputs, Inputs
from worldpm.serving.drift_messages import DriftMessages
from worldpm.serving.early_refusals import EarlyRefusals
from worldpm.serving.prometheus import Metrics
from worldpm.serving.replicas import start_replicas
from worldpm.serving.routes.own import Preferences
from worldpm.serving.routing import RoutingRules
from worldpm.serving.service import ApiKey, Identity, Listener, RequestLimits, Service
from worldpm.serving.upstream import UpstreamEngine
from worldpm.storage.private_files import read_private
from worldpm.webhook import Webhook

logger = logging.getLogger(__name__)

SWITCH_SECONDS = 5e-4
"""Longest time that a thread keeps the interpreter's lock while another waits for it."""
KEEP_ALIVE_SECONDS = 30
"""Time after which an idle connection is closed."""
LOOPBACK = frozenset({"127.0.0.1", "localhost", "::1"})
"""Addresses that only this machine can reach."""
LEAST_VALUES = 2**16
"""Number of values that a body may always have, even with a small queue."""
SHUTDOWN_SECONDS = 5
"""Time for replies after the deadline of the last request."""


@dataclass(frozen=True)
class ServedModel:
    """A backend with its model."""

    backend: Backend
    identity: Identity
    confidence: Confidence
    """Calibration of the model's margins."""


def run(options: ServeOptions) -> None:
    """Serve until SIGTERM or Ctrl-C. Then answer accepted requests, and accept no new ones."""
    if options.json_logs or not sys.stdout.isatty():
        _log_as_json()
    application, service = assemble(options)
    listening = uvicorn.Config(
        application,
        host=options.host,
        port=options.port,
        # Our own handler writes the log
        log_config=None,
        access_log=False,
        http=bounded(
            header_seconds=options.header_seconds,
            write_seconds=options.body_seconds,
            most=options.max_connections,
            refusal=EarlyRefusals(service, cors=bool(options.cors)),
        ),
        timeout_keep_alive=KEEP_ALIVE_SECONDS,
        timeout_graceful_shutdown=int(options.deadline_seconds + options.queue_wait)
        + SHUTDOWN_SECONDS,
    )
    # Objects of the start live until the end. Without this, each full collection of garbage visits
    # all of them, and requests, also refused ones, make garbage
    gc.collect()
    gc.freeze()
    # After every operation, the model's thread waits for the interpreter's lock
    sys.setswitchinterval(SWITCH_SECONDS)

    # Bind before uvicorn starts, so that the log shows the real port for port 0
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
    """Build the application and its service, and load and try the model."""
    rules = RoutingRules.read(options.rules) if options.rules else None
    keys = _read_keys(options.keys) if options.keys else {}
    metrics = Metrics()
    source = sources.of(options.model, options)
    if options.upstream:
        model = _upstream(source, options, metrics)
    else:
        model = (_replicated if options.replicas > 1 else _local)(source, options, metrics)

    decisions = _decision_log(options)
    if decisions is not None and decisions.repaired:
        logger.warning("%s. The log has %d decisions.", decisions.repaired, len(decisions))

    # MiB to bytes
    limits = RequestLimits(
        body_bytes=int(options.max_body_mib * 2**20),
        inputs=options.max_inputs,
        # Twice the token ids that fit into the queue, because a cut may shorten inputs
        values=max(LEAST_VALUES, 2 * options.queue_tokens),
        requests=options.max_requests,
        seconds=options.deadline_seconds,
        body_seconds=options.body_seconds,
        queue_wait=options.queue_wait,
    )
    service = Service(
        model.backend,
        model.identity,
        limits,
        model.confidence,
        metrics,
        decisions,
        rules=rules,
        keys=keys,
        hosts=_hosts(options),
    )
    metrics.watch_service(lambda: service.is_ready, lambda: service.open_requests)
    if options.reference is not None:
        service.listeners.append(_drift_watch(options, model.identity, metrics))
    return app.build(service, cors=options.cors), service


def _decision_log(options: ServeOptions) -> DecisionLog | None:
    if options.log is None:
        return None
    # MiB to bytes
    file_bytes = None if options.log_mib is None else int(options.log_mib * 2**20)
    retention = Retention(file_bytes, options.log_days)
    return DecisionLog(options.log, keep_texts=not options.log_hashes, retention=retention)


def _hosts(options: ServeOptions) -> frozenset[str] | None:
    """The accepted host names of a server that only this machine can reach; None accepts all.

    Without this check, a web page in a local browser could send requests to the server, through a
    domain name that points to 127.0.0.1.
    """
    names = {name.lower().rstrip(".") for name in options.allow_hosts}
    if options.host in LOOPBACK or options.host.startswith("127."):
        return LOOPBACK | names | {options.host}
    return frozenset(names) or None


def _local(source: Source, options: ServeOptions, metrics: Metrics) -> ServedModel:
    """A scorer in this process, behind a queue."""
    scorer = Scorer.of(source, options)
    # The first use determines whether prompts are shared, so do it before clients wait
    scorer.rewards("Is anybody there?", ["Yes."])

    identity = replace(
        _identity(source, scorer.encoder, options),
        activation=checkpoint.activation_of(scorer.model.backbone.config),
        dtype=scorer.precision,
        row_tokens=options.row_tokens,
    )
    backend = LocalBackend(
        scorer,
        row_tokens=options.row_tokens,
        queue_tokens=options.queue_tokens,
        queue_wait=options.queue_wait,
        on_stage=metrics.stage,
    )
    metrics.watch_queue(lambda: backend.batcher.waiting, lambda: backend.batcher.waiting_tokens)
    return ServedModel(backend, identity, _calibrated(source, identity, options))


def _replicated(source: Source, options: ServeOptions, metrics: Metrics) -> ServedModel:
    """Processes with the model, behind a queue in this process, which has only the tokenizer."""
    config, encoder = _read_encoder(source, options)
    replicas, loaded = start_replicas(options)
    identity = replace(
        _identity(source, encoder, options),
        activation=checkpoint.activation_of(config),
        dtype=loaded.dtype,
        row_tokens=options.row_tokens,
    )
    backend = QueuedBackend(
        encoder,
        replicas,
        row_tokens=options.row_tokens,
        queue_tokens=options.queue_tokens,
        queue_wait=options.queue_wait,
        on_stage=metrics.stage,
    )
    metrics.watch_queue(lambda: backend.batcher.waiting, lambda: backend.batcher.waiting_tokens)
    metrics.watch_replicas(
        lambda: sum(replica.is_ready for replica in replicas),
        lambda: sum(replica.restarts for replica in replicas),
    )
    return ServedModel(backend, identity, _calibrated(source, identity, options))


def _upstream(source: Source, options: ServeOptions, metrics: Metrics) -> ServedModel:
    """The model on vLLM servers; its tokenizer, limits and temperature are here."""
    config, encoder = _read_encoder(source, options)
    identity = replace(
        _identity(source, encoder, options), activation=checkpoint.activation_of(config)
    )

    (probe,) = encoder.read([Message("user", "Is anybody there?")], ["Yes."])
    key = None
    if options.upstream_key is not None:
        # other bytes than ASCII are refused with the key's other faults
        content = read_private(options.upstream_key, "--upstream-key")
        key = content.decode("ascii", errors="replace").strip()
    engine = UpstreamEngine.of(
        [url.rstrip("/") for url in options.upstream],
        key=key,
        max_length=encoder.limits.max_length,
        probe=probe.ids,
        most_tokens=options.queue_tokens,
        queue_wait=options.queue_wait,
    )
    backend = Backend(encoder, engine, queue_tokens=options.queue_tokens, on_stage=metrics.stage)
    return ServedModel(backend, identity, _calibrated(source, identity, options))


def _read_encoder(source: Source, options: ServeOptions) -> tuple[PreTrainedConfig, Encoder]:
    """The configuration and the encoder of a model that other processes hold."""
    config = checkpoint.load_config(source)
    encoder = checkpoint.encoder_of(source, config)
    limits = encoder.limits.within(options.max_length, cut=options.cut)
    return config, replace(encoder, limits=limits)


def _identity(source: Source, encoder: Encoder, options: ServeOptions) -> Identity:
    folder = source.folder.resolve()
    return Identity(
        name=options.name or folder.name,
        sha256=sources.fingerprint(source).sha256,
        template=chat.template_hash(encoder.tokenizer),
        max_length=encoder.limits.max_length,
        # Clients may also name the model by its path, for instance verl
        also=(str(options.model), str(folder)),
        any_name=options.any_model_name,
    )


def _calibrated(source: Source, identity: Identity, options: ServeOptions) -> Confidence:
    if options.calibration is None:
        return Confidence(sources.temperature_of(source))
    name = source.folder.resolve().name
    return confidence_of(
        options.calibration, name, sha256=identity.sha256, quantize=options.quantize
    )


def _drift_watch(options: ServeOptions, identity: Identity, metrics: Metrics) -> Listener:
    """A listener that tests every request for drift, updates the metrics, and sends a message when
    drift begins or ends."""
    assert options.reference is not None
    watch = drift.Drift(drift.read(options.reference))
    messages = None
    if options.webhook is not None and options.webhook_secret is not None:
        webhook = Webhook.read(options.webhook, options.webhook_secret)
        messages = DriftMessages(webhook, identity, metrics)

    def observe(replies: Sequence[BackendReply], inputs: Sequence[Inputs]) -> None:
        for reply, request_inputs in zip(replies, inputs, strict=True):
            if not reply.rewards or not isinstance(request_inputs, ConversationInputs):
                continue

            values = drift.values_of(
                reply.rewards[0], request_inputs.prompt_text, request_inputs.responses[0]
            )
            if watch.observe(values):
                metrics.changed(watch.changes)
                if messages is not None:
                    messages.changed(watch.changes)
            metrics.shifts.set(watch.shifts)

    return observe


def _read_keys(path: Path) -> Mapping[str, ApiKey]:
    """Read the API keys, by name.

    The file: `{"ann": {"key": "s3cret", "settings": {"strictness": 0.7}}, "bob": {"key": "x"}}`.
    """
    try:
        content = json.loads(read_private(path, "--keys"))
    except ValueError as error:
        raise DataError(path, f"not JSON ({error}). Fix the file.") from error
    form = 'Use the form {NAME: {"key": TEXT, "settings": {...}}}.'
    if not isinstance(content, dict) or not content:
        raise DataError(path, f"has no API keys. {form}")

    keys: dict[str, ApiKey] = {}
    for name, entry in content.items():
        key = entry.get("key") if isinstance(entry, dict) else None
        if not isinstance(key, str) or not key:
            raise DataError(path, f"{name} has no key. {form}")
        if not re.fullmatch(r"[\x21-\x7e]+", key):
            raise DataError(
                path,
                f"the key of {name} has characters that a header cannot contain. Use visible"
                " ASCII.",
            )
        try:
            preferences = Preferences(**entry.get("settings", {}))
        # TypeError: settings are not an object
        except (ValidationError, TypeError) as error:
            reason = " ".join(str(error).split())[:200]
            raise DataError(
                path, f"the settings of {name} are invalid ({reason}). Fix them."
            ) from error
        keys[name] = ApiKey(key, preferences.settings())
    return keys


def _log_as_json() -> None:
    """Log JSON lines to stdout, in Elastic's common schema."""
    handler = logging.StreamHandler(sys.stdout)
    handler.setFormatter(
        ecs_logging.StdlibFormatter(
            exclude_fields=["log.original", "process", "log.origin", "color_message"]
        )
    )
    logging.basicConfig(level=logging.INFO, handlers=[handler], force=True)

    # These log each request, but our access log does that already
    for chatty in ("uvicorn.access", "httpx"):
        logging.getLogger(chatty).setLevel(logging.ERROR)
