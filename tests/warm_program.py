"""A `worldpm` program for scripts and launchers that starts without import time: it asks the test
process for the command, which is forked with all imports done."""

import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.warm_start import Command, Streams, Surroundings, start_main
from worldpm import cli

PROGRAM = """#!/bin/bash
asked=$(mktemp -d "$ASKED/XXXXXX")
env --null > "$asked/environment"
printf '%s\\0' "$PWD" "$@" > "$asked/words.partial"
mv "$asked/words.partial" "$asked/words"
until [ -e "$asked/code" ]; do sleep 0.05; done
cat "$asked/output"
cat "$asked/error" >&2
exit "$(cat "$asked/code")"
"""
"""The program. It passes on the output and the exit code of the command."""


@contextmanager
def on_the_path(folder: Path) -> Iterator[dict[str, str]]:
    """Environment variables of this process, with the program on the path. The program works only
    inside the context."""
    asked, programs = folder / "asked", folder / "programs"
    for made in (asked, programs):
        made.mkdir(exist_ok=True)
    (programs / "worldpm").write_text(PROGRAM)
    (programs / "worldpm").chmod(0o755)

    done = threading.Event()
    answers = threading.Thread(target=_answer, args=(asked, done))
    answers.start()
    path = f"{programs}:{os.environ['PATH']}"
    try:
        yield {**os.environ, "PATH": path, "ASKED": str(asked)}
    finally:
        done.set()
        answers.join()


def _answer(asked: Path, done: threading.Event) -> None:
    """Run the requested commands. At the end kill those that still run."""
    commands: dict[Path, Command] = {}
    while not done.is_set():
        for path in asked.glob("*/words"):
            if path.parent not in commands:
                commands[path.parent] = _start(path.parent)
        for folder, command in commands.items():
            if command.poll() is not None and not (folder / "code").exists():
                (folder / "code.partial").write_text(str(command.poll()))
                (folder / "code.partial").rename(folder / "code")
        time.sleep(0.02)
    for command in commands.values():
        command.kill()


def _start(folder: Path) -> Command:
    directory, *words = (folder / "words").read_text().split("\0")[:-1]
    variables = (folder / "environment").read_text().split("\0")[:-1]
    environment = {name: value for name, _, value in (text.partition("=") for text in variables)}
    streams = Streams(folder / "output", folder / "error")
    return start_main(cli.main, words, streams, Surroundings(None, Path(directory), environment))
