"""A trial of a chat template in a separate process: the template must end soon and write little.

A template is a program that came with a checkpoint. `{{ 'a' * 10**10 }}` would exhaust the memory
of the process that fills it, and that process could not catch an error. So this file runs as a
program. It reads a template, limits itself, and fills the template with conversations of several
shapes. Its exit code is the result.

POSIX systems enforce the limits by `resource`. Elsewhere the parent checks the process every few
milliseconds and ends it, so that a template may exceed its memory for a moment.
"""

import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from datetime import datetime
from functools import lru_cache
from importlib.util import find_spec
from itertools import product
from typing import Any

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

HAS_LIMITS = find_spec("resource") is not None
"""Whether the system can limit a process."""
if HAS_LIMITS:
    import resource
else:
    import psutil

LARGEST_GROWTH = 16
"""Most characters of a text, as a multiple of the characters of its messages and ALWAYS_FILLED."""
ALWAYS_FILLED = 20_000
"""Characters that a template may add, such as a long system message."""
CPU_SECONDS = 5
MEMORY_BYTES = 1 << 30
TOO_MUCH = 3
"""Exit code of a template that writes too much text, or needs too much memory."""
LOOK_SECONDS = 0.02
"""Time between two checks of a process that the system does not limit."""
COMMAND = (sys.executable, "-I", __file__)


@lru_cache(maxsize=32)
def fault_of(template: str) -> str | None:
    """A sentence about a template's fault; None if it ends soon and writes little."""
    code = _exit_code(template.encode("utf-8", "surrogatepass"))
    if code == 0:
        return None
    if code == TOO_MUCH:
        return "it writes far more text than the messages have"
    if code is None:
        return f"it runs for more than {CPU_SECONDS} seconds"
    return f"it runs for more than {CPU_SECONDS} seconds, needs much memory, or ends its process"


def _exit_code(source: bytes) -> int | None:
    """The exit code of a trial; None if it did not end in time."""
    with subprocess.Popen(
        COMMAND, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ) as trial:
        if not HAS_LIMITS:
            threading.Thread(target=_watch, args=(trial,), daemon=True).start()
        try:
            trial.communicate(source, timeout=10 * CPU_SECONDS)
        except subprocess.TimeoutExpired:
            trial.kill()
            return None
        return trial.returncode


def _watch(trial: "subprocess.Popen[bytes]") -> None:
    """End a trial that exceeds the limits, until it ends by itself."""
    with suppress(psutil.Error):  # the process has ended
        process = psutil.Process(trial.pid)
        while trial.poll() is None:
            times = process.cpu_times()
            if process.memory_info().rss > MEMORY_BYTES or times.user + times.system > CPU_SECONDS:
                trial.kill()
            time.sleep(LOOK_SECONDS)


class _Generation(Extension):
    """The tag around an assistant's text that trainers of language models use."""

    tags = {"generation"}  # noqa: RUF012  (like the base class)

    def parse(self, parser: Parser) -> nodes.Node | list[nodes.Node]:
        """The block without its tags."""
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def _environment() -> jinja2.Environment:
    """The environment in which transformers fills templates."""
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, loopcontrols]
    )
    environment.filters["tojson"] = lambda value, **_: str(value)
    environment.globals["raise_exception"] = _refuse
    environment.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
    return environment


def _refuse(message: str) -> None:
    raise jinja2.TemplateError(message)


def _conversations() -> list[list[dict[str, str]]]:
    """Conversations with and without a system turn, of one and many turns, short and long."""
    shapes = []
    for system, turns, length in product((False, True), (1, 2, 16), (1, 500)):
        roles = [*(["system"] if system else []), *("user", "assistant") * turns]
        shapes.append([{"role": role, "content": "word " * length} for role in roles])
    return shapes


def _fill(
    render: Callable[..., str], turns: list[dict[str, str]], tokens: Mapping[str, Any]
) -> None:
    try:
        text = render(messages=turns, add_generation_prompt=False, **tokens)
    # a rejection is reported when the template rejects a real conversation
    except (MemoryError, RecursionError):
        raise
    except Exception:
        return

    given = sum(len(turn["content"]) for turn in turns)
    if len(text) > LARGEST_GROWTH * (ALWAYS_FILLED + given):
        raise MemoryError


def main() -> int:
    """The exit code for the template on standard input."""
    if HAS_LIMITS:
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
        resource.setrlimit(resource.RLIMIT_CPU, (CPU_SECONDS, CPU_SECONDS))
    source = sys.stdin.buffer.read().decode("utf-8", "surrogatepass")
    tokens = {"bos_token": "<s>", "eos_token": "</s>", "tools": None, "documents": None}
    try:
        render = _environment().from_string(source).render
        for turns in _conversations():
            _fill(render, turns, tokens)
    except MemoryError:
        return TOO_MUCH
    # other errors are reported by the program that fills the template
    except Exception:
        return 0
    return 0


if __name__ == "__main__":
    sys.exit(main())
