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

from worldpm.errors import ConfigError, DataError
from worldpm.records import Message
from worldpm import console
from worldpm.options.score import ScoreOptions

if TYPE_CHECKING:
    from worldpm.scoring.scorer import Request, Scored, Scorer

    Added = Callable[[dict[str, Any], Request, Scored], dict[str, Any]]

logger = logging.getLogger(__name__)

LINES_AT_ONCE = 256
FORM = 'expected {"prompt": text or messages, "responses": [text, ...]} or {"messages": [..., {"role": "assistant", ...}]}'
ROLES = ("system", "user", "assistant")
Json = dict[str, Any]




def run(options: ScoreOptions) -> None:
    """Stream the lines through the scorer; a bad line stops the run with its number, after the lines before it were written."""
    import torch

    from worldpm.scoring.scorer import Scorer

    if options.file is not None and not options.file.is_file():
        raise ConfigError(f"{options.file}: no such file")
    if options.out is not None and options.out.is_dir():
        raise ConfigError(f"--out {options.out}: a folder; name a file to write")
    if options.out is not None and not options.out.parent.is_dir():
        raise ConfigError(f"--out {options.out}: the folder {options.out.parent} is not there; make it first")
    scorer = Scorer.load(
        options.model, cut=options.cut, max_length=options.max_length, dtype=getattr(torch, options.dtype) if options.dtype else None,
        across_devices=options.across_devices, revision=options.revision, remote_code=options.remote_code,
    )  # fmt: skip
    name = str(options.file or "stdin")
    added = _with_best(options) if options.best else _rewards
    with options.file.open("rb") if options.file else nullcontext(sys.stdin.buffer) as source:
        lines = ((number, line) for number, line in enumerate(source, start=1) if line.strip())
        if options.out is None:
            _score_lines(scorer, lines, sys.stdout.buffer, name=name, added=added)
            return
        with _Aside(options.out, _terms(options)) as aside:
            skipped = sum(1 for _ in islice(lines, aside.lines))
            if skipped:
                logger.info("%s: going on after %d lines", options.out, skipped)
            _score_lines(scorer, lines, aside.file, name=name, added=added)
            aside.finish()


def _terms(options: ScoreOptions) -> Json:
    """What must be the same for lines of an earlier run to stand."""
    from worldpm.model import sources

    model = sources.fingerprint(sources.find(options.model, revision=options.revision, remote_code=options.remote_code))
    read = options.file.stat() if options.file else None
    settings: Json = {"cut": options.cut, "max_length": options.max_length, "dtype": options.dtype}
    settings |= {"best": options.best, "allow": options.allow, "weigh": options.weigh}
    return {"model": model, **settings, "input": [str(options.file), read.st_size, read.st_mtime_ns] if read else None}


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


def _with_best(options: ScoreOptions) -> "Added":
    """The rewards, and of several responses the best under the settings."""
    from worldpm.stats.selection import kl_nats
    from worldpm.scoring.confidence import Confidence, Settings, choose, counts_of, read_settings

    settings: Settings = read_settings(options.allow, options.weigh)

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
    from worldpm.scoring.scorer import Request

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
