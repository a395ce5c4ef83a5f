"""`worldpm route`: the queues of a file's rows, or a check of the rules on labelled rows:

{"prompt": "My parcel?", "responses": ["It arrives on Monday.", "We will see."],
 "queues": ["publish", null]}
"""

import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from worldpm.benchmarks.items import prompt_id
from worldpm.console import interval
from worldpm.errors import ConfigError, DataError, TemplateRefusalError
from worldpm.evaluation.calibrating import confidence_of
from worldpm.model import sources
from worldpm.model.sources import Source
from worldpm.options.route import RouteOptions
from worldpm.scoring.confidence import Confidence
from worldpm.scoring.requests import parse_request
from worldpm.scoring.scorer import Refused, Request, Scorer
from worldpm.serving.routing import RoutingRules
from worldpm.serving.rule_checks import LabelledRewards, QueueResult, RulesCheck, Sweep, check
from worldpm.stats.uncertainty import Interval
from worldpm.storage import rows
from worldpm.storage.json_files import to_json, write_atomically
from worldpm.storage.rows import Row

QUEUES = "queues"
"""Key of a row: the queue of each response."""
HEADINGS = ("queue", "sent", "belong", "precision", "95 %", "recall", "95 %")


class _NumberedRow(NamedTuple):
    """One row of the file."""

    row: Row
    line: int
    request: Request


def run(options: RouteOptions) -> RulesCheck | None:
    """Print rows with their queues, or the check of the rules."""
    rules = RoutingRules.read(options.rules)
    file = options.file or options.check
    assert file is not None
    # read all rows first, so that a bad row stops the run before the model is loaded
    read = list(_rows(file))
    labels = [_labels(row, file, rules) for row in read] if options.check else []

    source = sources.of(options.model, options)
    confidence = _confidence(source, options)
    scored = list(_rewards(read, Scorer.of(source, options)))
    if options.check is None:
        for entry, rewards in zip(read, scored, strict=True):
            queues = [routed.queue for routed in rules.routed(confidence, rewards)]
            content = {**entry.row, "rewards": rewards, QUEUES: queues}
            sys.stdout.write(json.dumps(content, ensure_ascii=False) + "\n")
        return None

    labelled = [
        LabelledRewards(prompt_id(entry.request.prompt), rewards, queues)
        for entry, rewards, queues in zip(read, scored, labels, strict=True)
    ]
    if not any(queue for group in labelled for queue in group.queues):
        raise DataError(file, "labels no response. Give queues that are not null.")
    result = check(rules, labelled, confidence)
    print(_report(result, rules))
    if options.out is not None:
        write_atomically(options.out, to_json(result))
    return result


def _rows(file: Path) -> Iterator[_NumberedRow]:
    if not file.is_file():
        raise ConfigError(f"{file}: no such file. Check the path.")
    for line, row in enumerate(rows.read(file), start=1):
        yield _NumberedRow(row, line, parse_request(row, f"{file}:{line}"))


def _labels(entry: _NumberedRow, file: Path, rules: RoutingRules) -> list[str | None]:
    """The right queues of a row.

    Raises:
        DataError: If the row does not have a queue for each response, or if a queue is not in the
            rules.
    """
    queues, count = entry.row.get(QUEUES), len(entry.request.responses)
    if not isinstance(queues, list) or len(queues) != count:
        raise DataError(
            file,
            f"queues is {queues!r:.100}. Give {count}, one for each response.",
            line=entry.line,
        )
    known_or_none = (*rules.queues, None)
    wrong = [queue for queue in queues if queue not in known_or_none]
    if wrong:
        known = ", ".join(sorted(rules.queues))
        raise DataError(
            file, f"{wrong[0]!r:.100} is not a queue. Use one of {known}.", line=entry.line
        )
    return queues


def _confidence(source: Source, options: RouteOptions) -> Confidence:
    if options.calibration is None:
        return Confidence(sources.temperature_of(source))
    sha256 = sources.fingerprint(source).sha256
    name = source.folder.resolve().name
    return confidence_of(options.calibration, name, sha256=sha256, quantize=options.quantize)


def _rewards(read: Sequence[_NumberedRow], scorer: Scorer) -> Iterator[list[float]]:
    for scores in scorer.score(entry.request for entry in read):
        if isinstance(scores, Refused):
            raise TemplateRefusalError(scores.name, scores.reason)
        yield list(scores.rewards)


def _report(result: RulesCheck, rules: RoutingRules) -> str:
    """Markdown tables: the rules of the file, then each condition with other thresholds."""
    unchanged = result.as_they_are
    lines = [
        f"{result.responses:,} labelled responses of {result.prompts:,} prompts",
        "",
        *_table(HEADINGS, [_cells(queue) for queue in unchanged.queues]),
    ]
    if rules.costs:
        ends = _ends(unchanged.cost_interval)
        lines.append(f"\ncost of 100 responses: {unchanged.cost:.1f} ({ends})")
    for sweep in result.sweeps:
        lines += ["", *_sweep_lines(sweep, rules)]
    return "\n".join(lines)


def _sweep_lines(sweep: Sweep, rules: RoutingRules) -> list[str]:
    """The results of a rule's queue over thresholds of one condition."""
    queue = rules.rules[sweep.rule].queue
    table = []
    for result in sweep.results:
        (of_rule,) = [of_queue for of_queue in result.queues if of_queue.queue == queue]
        mark = " (file)" if result.threshold == sweep.file_threshold else ""
        cost = [f"{result.cost:.1f}", _ends(result.cost_interval)] if rules.costs else []
        table.append([f"{result.threshold:.3f}{mark}", *_cells(of_rule)[1:], *cost])

    cost_headings = ("cost of 100", "95 %") if rules.costs else ()
    lines = [
        f"rule {sweep.rule}, {sweep.condition}: queue {queue}",
        "",
        *_table(("threshold", *HEADINGS[1:], *cost_headings), table),
    ]
    if rules.costs:
        elsewhere = sweep.cheapest_cost_elsewhere
        if elsewhere is not None:
            held_out = f"; held-out cost of 100 responses: {elsewhere:.1f}"
        else:
            held_out = ""
        lines.append(f"\ncheapest at {sweep.cheapest:.3f}{held_out}")
    return lines


def _table(headings: Sequence[str], lines: Sequence[Sequence[str]]) -> list[str]:
    return [
        f"| {' | '.join(headings)} |",
        f"|---|{'--:|' * (len(headings) - 1)}",
        *(f"| {' | '.join(line)} |" for line in lines),
    ]


def _cells(result: QueueResult) -> list[str]:
    shares = []
    for share, ends in (
        (result.precision, result.precision_interval),
        (result.recall, result.recall_interval),
    ):
        shares += [
            "-" if share is None else f"{share:.3f}",
            "-" if ends is None else interval(ends),
        ]
    return [result.queue, f"{result.sent:,}", f"{result.right:,}", *shares]


def _ends(ends: Interval | None) -> str:
    return "no interval" if ends is None else f"{ends.low:.1f} to {ends.high:.1f}"
