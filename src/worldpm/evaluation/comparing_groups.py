"""`worldpm fairness`: tests on a labelled file whether a model errs more, or gives higher rewards,
for some groups than for others.

A line of the file. `preferred` is the index of the best response, and `language` a column of --by:

    {"prompt": "Q?", "responses": ["A.", "B."], "preferred": 1, "language": "fi"}
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from worldpm import console
from worldpm.benchmarks.items import prompt_id
from worldpm.errors import ConfigError, DataError, TemplateRefusalError
from worldpm.evaluation.group_gaps import Gap, Pair, ValueResult, gaps
from worldpm.options.fairness import FairnessOptions
from worldpm.scoring.requests import parse_request
from worldpm.scoring.scorer import Refused, Request, Scorer
from worldpm.storage import rows
from worldpm.storage.json_files import to_json, write_atomically
from worldpm.storage.rows import Row
from worldpm.webhook import Webhook

FINISHED = "fairness.finished"
"""Type of the webhook message."""
SIGNIFICANT = 0.05
HEADINGS = (
    "column",
    "value",
    "pairs",
    "errors",
    "95 % interval",
    "gap to others",
    "p (Holm)",
    "mean reward",
    "gap to others",
    "p (Holm)",
)


@dataclass(frozen=True)
class _LabelledRequest:
    """One line of the file."""

    request: Request
    best: int
    """Index of the best response."""
    columns: dict[str, str]
    """The line's values in the columns of --by."""


@dataclass(frozen=True)
class AuditGap:
    """A significant gap between one value of a column and all others."""

    column: str
    value: str
    measure: str
    """`errors` or `reward`."""
    gap: Gap


@dataclass(frozen=True)
class Audit:
    """Data of the webhook message."""

    model: str
    file: str
    out: str | None
    """File with all numbers; None if no file was written."""
    gaps: list[AuditGap]
    """Gaps with a corrected p-value below 0.05."""


def run(options: FairnessOptions) -> Mapping[str, Sequence[ValueResult]]:
    """Score the file, print the table, and write the numbers."""
    if options.out is not None and not options.out.parent.is_dir():
        raise ConfigError(
            f"--out {options.out}: the folder {options.out.parent} does not exist. Create it first."
        )

    webhook = None
    if options.webhook is not None and options.webhook_secret is not None:
        webhook = Webhook.read(options.webhook, options.webhook_secret)

    pairs = list(_pairs(options))
    if not pairs:
        raise DataError(options.file, "no line has two responses. Name another file.")

    results = {column: gaps(pairs, column) for column in options.by}
    print(_table(results))
    if options.out is not None:
        write_atomically(options.out, to_json(results))
    if webhook is not None:
        webhook.post(FINISHED, _audit(options, results))
    return results


def _pairs(options: FairnessOptions) -> Iterator[Pair]:
    """The pairs of each line's best response with each of its other responses."""
    if not options.file.is_file():
        raise ConfigError(f"{options.file}: no such file. Check the path.")

    # read all lines first, so that a bad line stops the run before the model is loaded
    labelled = [
        _labelled(row, number, options)
        for number, row in enumerate(rows.read(options.file), start=1)
    ]
    scorer = Scorer.of(options.model, options)
    scored = scorer.score(line.request for line in labelled)
    for line, scores in zip(labelled, scored, strict=True):
        if isinstance(scores, Refused):
            raise TemplateRefusalError(scores.name, scores.reason)
        prompt = prompt_id(line.request.prompt)
        for index, reward in enumerate(scores.rewards):
            if index != line.best:
                yield Pair(prompt, line.columns, scores.rewards[line.best], reward)


def _labelled(row: Row, number: int, options: FairnessOptions) -> _LabelledRequest:
    """Parse a line of the file.

    Raises:
        DataError: If the line is not a request, or lacks a label or a column.
    """
    request = parse_request(row, f"{options.file}:{number}")
    best, last = row.get("preferred"), len(request.responses) - 1
    # in Python, true and false are integers
    if not isinstance(best, int) or isinstance(best, bool) or not 0 <= best <= last:
        raise DataError(
            options.file,
            f"preferred is {best!r}. Give the index of a response, 0 to {last}.",
            line=number,
        )

    if missing := [column for column in options.by if row.get(column) is None]:
        raise DataError(
            options.file, f"lacks the column {missing[0]!r}. Add it, or change --by.", line=number
        )
    return _LabelledRequest(request, best, {column: str(row[column]) for column in options.by})


def _audit(options: FairnessOptions, results: Mapping[str, Sequence[ValueResult]]) -> Audit:
    """Data of the webhook message."""
    gaps_by_measure = [
        AuditGap(column, result.value, measure, gap)
        for column, values in results.items()
        for result in values
        for measure, gap in (("errors", result.error_gap), ("reward", result.reward_gap))
        if gap is not None and gap.p_value_holm < SIGNIFICANT
    ]
    return Audit(options.model, str(options.file), _text(options.out), gaps_by_measure)


def _text(path: Path | None) -> str | None:
    return None if path is None else str(path)


def _table(results: Mapping[str, Sequence[ValueResult]]) -> str:
    """A Markdown table of all values of all columns."""
    lines = [f"| {' | '.join(HEADINGS)} |", f"|---|---|{'--:|' * (len(HEADINGS) - 2)}"]
    for column, values in results.items():
        for result in values:
            cells = [
                column,
                result.value,
                f"{result.pairs:,}",
                f"{result.error:.3f}",
                console.interval(result.error_interval),
                *_gap_cells(result.error_gap),
                f"{result.reward:.3f}",
                *_gap_cells(result.reward_gap),
            ]
            lines.append(f"| {' | '.join(cells)} |")

    return "\n".join(lines)


def _gap_cells(gap: Gap | None) -> tuple[str, str]:
    """The difference with its interval, and the p-value."""
    if gap is None:
        return "-", "-"

    interval = ""
    if gap.interval is not None:
        low, high = gap.interval
        interval = f" ({low:+.3f} to {high:+.3f})"
    return f"{gap.difference:+.3f}{interval}", f"{gap.p_value_holm:.3f}"
