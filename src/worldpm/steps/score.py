"""JSON lines in, JSON lines out: every line comes back in its place with its rewards added."""

import fcntl
import json
import logging
import os
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import IO, TYPE_CHECKING, Annotated, Any, Literal, Self

import tyro
from tyro.conf import Positional

from worldpm.field.errors import ConfigError, DataError
from worldpm.field.records import Message
from worldpm.formats import console

if TYPE_CHECKING:
    from worldpm.parts.scorer import Request, Scored, Scorer

    Added = Callable[[dict[str, Any], Request, Scored], dict[str, Any]]

logger = logging.getLogger(__name__)

LINES_AT_ONCE = 256
FORM = 'expected {"prompt": text or messages, "responses": [text, ...]} or {"messages": [..., {"role": "assistant", ...}]}'
ROLES = ("system", "user", "assistant")
Json = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Config:
    """Score JSON lines with a checkpoint."""

    model: Positional[str]
    """Folder or hub id of a reward model."""
    file: Positional[Path | None] = None
    """JSON lines to read; standard input unless given."""
    out: Path | None = None
    """File to write, in place of one that is there; standard output unless given. A killed run goes on where it was."""
    best: bool = False
    """Add the place of the best response, its reward's lead over the mean, and what best of n costs in nats of KL."""
    allow: tuple[str, ...] = ()
    """best: allowed counts, FEATURE=LOW:HIGH of length (tokens), headers, lists, bold, code, links; others come after."""
    weigh: tuple[str, ...] = ()
    """best: FEATURE=LOG_ODDS for each unit of a style difference, which runs from -1 to 1."""
    cut: bool = False
    """Cut what is too long, instead of refusing it."""
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
        if self.max_length is not None and self.max_length < 16:
            raise ConfigError(f"--max-length is {self.max_length}; at least 16 tokens are needed")
        if (self.allow or self.weigh) and not self.best:
            raise ConfigError("--allow and --weigh go with --best")


def run(config: Config) -> None:
    """Stream the lines through the scorer; a bad line stops the run with its number, after the lines before it were written."""
    import torch

    from worldpm.parts.scorer import Scorer

    if config.file is not None and not config.file.is_file():
        raise ConfigError(f"{config.file}: no such file")
    if config.out is not None and config.out.is_dir():
        raise ConfigError(f"--out {config.out}: a folder; name a file to write")
    if config.out is not None and not config.out.parent.is_dir():
        raise ConfigError(f"--out {config.out}: the folder {config.out.parent} is not there; make it first")
    scorer = Scorer.load(
        config.model, cut=config.cut, max_length=config.max_length, dtype=getattr(torch, config.dtype) if config.dtype else None,
        across_devices=config.across_devices, revision=config.revision, remote_code=config.remote_code,
    )  # fmt: skip
    name = str(config.file or "stdin")
    added = _with_best(config) if config.best else _rewards
    with config.file.open("rb") if config.file else nullcontext(sys.stdin.buffer) as source:
        lines = ((number, line) for number, line in enumerate(source, start=1) if line.strip())
        if config.out is None:
            _score_lines(scorer, lines, sys.stdout.buffer, name=name, added=added)
            return
        with _Aside(config.out, _terms(config)) as aside:
            skipped = sum(1 for _ in islice(lines, aside.lines))
            if skipped:
                logger.info("%s: going on after %d lines", config.out, skipped)
            _score_lines(scorer, lines, aside.file, name=name, added=added)
            aside.finish()


def _terms(config: Config) -> Json:
    """What must be the same for lines of an earlier run to stand."""
    from worldpm.parts import model_sources

    model = model_sources.fingerprint(model_sources.find(config.model, revision=config.revision, remote_code=config.remote_code))
    read = config.file.stat() if config.file else None
    settings: Json = {"cut": config.cut, "max_length": config.max_length, "dtype": config.dtype}
    settings |= {"best": config.best, "allow": config.allow, "weigh": config.weigh}
    return {"model": model, **settings, "input": [str(config.file), read.st_size, read.st_mtime_ns] if read else None}


class _Aside:
    """The file beside --out in which lines gather; whole lines of a killed run on the same terms stay.

    Its first line holds the terms. Lines stay in multiples of LINES_AT_ONCE, so that the rest is scored in the same rows as it
    would have been, and the bytes are those of a run that was not killed. Standard input cannot be read again: it starts anew.
    """

    def __init__(self, out: Path, terms: Json) -> None:
        self.out, self.path = out, out.with_name(out.name + ".partial")
        self.file: IO[bytes] = self.path.open("a+b")
        self.lines = 0
        self._header = json.dumps(terms).encode() + b"\n"

    def __enter__(self) -> Self:
        try:
            fcntl.flock(self.file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self.file.close()
            raise ConfigError(f"{self.path}: another process is writing it; wait for it or choose another --out") from None
        self.file.seek(0)
        kept = 0
        if self.file.readline() == self._header and b'"input": null' not in self._header:
            kept = self.file.tell()
            for number, line in enumerate(iter(self.file.readline, b""), start=1):
                if line.endswith(b"\n") and number % LINES_AT_ONCE == 0:
                    kept, self.lines = self.file.tell(), number
        self.file.truncate(kept)
        if not kept:
            self.file.write(self._header)
        return self

    def __exit__(self, *error: object) -> None:
        self.file.close()

    def finish(self) -> None:
        """The lines, without the terms, under the name that was asked for."""
        self.file.flush()
        whole = self.out.with_name(self.out.name + ".whole")
        with self.path.open("rb") as read, whole.open("wb") as write:
            read.readline()
            shutil.copyfileobj(read, write)
            write.flush()
            os.fsync(write.fileno())
        whole.replace(self.out)
        self.path.unlink()


def _rewards(row: Json, request: "Request", answer: "Scored") -> Json:
    """What every line gets."""
    return {"reward": answer.rewards[0]} if "responses" not in row else {"rewards": answer.rewards}


def _with_best(config: Config) -> "Added":
    """The rewards, and of several responses the best under the settings."""
    from worldpm.field.selection import kl_nats
    from worldpm.parts.confidence import Confidence, Settings, choose, counts_of, read_settings

    settings: Settings = read_settings(config.allow, config.weigh)

    def added(row: Json, request: "Request", answer: "Scored") -> Json:
        if not request.responses or "responses" not in row:
            return _rewards(row, request, answer)
        counts = [counts_of(text, tokens) for text, tokens in zip(request.responses, answer.length_tokens, strict=True)]
        best = choose(Confidence(), answer.rewards, counts, settings).ranking[0]
        lead = answer.rewards[best] - sum(answer.rewards) / len(answer.rewards)
        return {"rewards": answer.rewards, "best": best, "lead": lead, "kl_nats": kl_nats(len(request.responses))}

    return added


def _score_lines(scorer: "Scorer", lines: Iterator[tuple[int, bytes]], target: IO[bytes], *, name: str, added: "Added") -> None:
    with console.progress("score", total=None) as advance:
        while chunk := list(islice(lines, LINES_AT_ONCE)):
            read, failure = read_lines(chunk, name)
            answers = scorer.score(request for _, request in read)
            for (row, request), answer in zip(read, answers, strict=True):
                target.write(json.dumps({**row, **added(row, request, answer)}, ensure_ascii=False, allow_nan=False).encode() + b"\n")
            target.flush()
            advance(len(read))
            if failure:
                raise failure


def read_lines(chunk: Sequence[tuple[int, bytes]], name: str) -> "tuple[list[tuple[Json, Request]], DataError | None]":
    """The lines up to the first bad one, and what is wrong with that."""
    read = []
    for number, line in chunk:
        try:
            row = json.loads(line, parse_constant=_refuse_constant)
            json.dumps(row, ensure_ascii=False, allow_nan=False).encode()  # what could not be written back is refused
            read.append((row, parse_request(row, f"{name}:{number}")))
        except DataError as error:
            return read, error
        except (ValueError, RecursionError) as error:
            return read, DataError(name, f"not JSON ({error}); {FORM}", line=number)
    return read, None


def _refuse_constant(word: str) -> Json:
    raise ValueError(f"{word} is no JSON number")


def parse_request(row: object, name: str) -> "Request":
    """One line's object as a request.

    Raises:
        DataError: If it has not one of the two forms.
    """
    from worldpm.parts.scorer import Request

    if isinstance(row, dict) and isinstance(responses := row.get("responses"), list) and "prompt" in row:
        if not all(isinstance(response, str) for response in responses):
            raise DataError(name, f"a response is not text; {FORM}")
        prompt = row["prompt"]
        return Request(name, [Message("user", prompt)] if isinstance(prompt, str) else _messages(prompt, name), responses)
    if isinstance(row, dict) and "messages" in row and "responses" not in row:
        messages = _messages(row["messages"], name)
        if len(messages) < 2 or messages[-1].role != "assistant":
            raise DataError(name, f"the last message must be the assistant's, after at least one other; {FORM}")
        return Request(name, messages[:-1], [messages[-1].content])
    raise DataError(name, FORM)


def _messages(value: object, name: str) -> list[Message]:
    if not isinstance(value, list) or not value:
        raise DataError(name, f"the messages are not a list with at least one message; {FORM}")
    messages = []
    for message in value:
        if not (isinstance(message, dict) and isinstance(message.get("role"), str) and isinstance(message.get("content"), str)):
            raise DataError(name, f"a message must have a role and a content that are text; {FORM}")
        if message["role"] not in ROLES:
            raise DataError(name, f"the role {message['role']!r} is none of {', '.join(ROLES)}")
        messages.append(Message(message["role"], message["content"]))
    return messages
