"""A labelled file and a model: does it err more, or reward more, for some than for others?"""

from collections.abc import Iterator
from typing import Any

from worldpm import console
from worldpm.benchmarks.items import prompt_id
from worldpm.errors import ConfigError, DataError
from worldpm.evaluation import group_gaps
from worldpm.evaluation.group_gaps import Pair
from worldpm.options.fairness import FairnessOptions
from worldpm.scoring.requests import parse_request
from worldpm.scoring.scorer import Scorer
from worldpm.storage import folders, rows

Json = dict[str, Any]


def run(options: FairnessOptions) -> None:
    """Score the file, print the table, write the numbers."""

    if options.out is not None and not options.out.parent.is_dir():
        raise ConfigError(
            f"--out {options.out}: the folder {options.out.parent} is not there; make it first"
        )
    pairs = list(_pairs(options))
    if not pairs:
        raise DataError(options.file, "holds no line with two responses")
    found = {column: group_gaps.gaps(pairs, column) for column in options.by}
    print(_table(found))
    if options.out is not None:
        folders.write_atomically(options.out, folders.to_json(found))


def _pairs(options: FairnessOptions) -> Iterator[Pair]:
    """The best response of each line against each other one."""

    if not options.file.is_file():
        raise ConfigError(f"{options.file}: no such file")
    read = []
    for number, row in enumerate(rows.read(options.file), start=1):
        request = parse_request(row, f"{options.file}:{number}")
        best = row.get("preferred")
        if (
            not isinstance(best, int)
            or isinstance(best, bool)
            or not 0 <= best < len(request.responses)
        ):
            raise DataError(
                options.file,
                f"preferred is {best!r}; expected the place of a response, 0 to"
                f" {len(request.responses) - 1}",
                line=number,
            )
        if missing := [column for column in options.by if row.get(column) is None]:
            raise DataError(options.file, f"lacks the column {missing[0]!r}", line=number)
        read.append((request, best, {column: str(row[column]) for column in options.by}))
    scorer = Scorer.of(options.model, options)
    for (request, best, columns), scored in zip(
        read, scorer.score(one[0] for one in read), strict=True
    ):
        for place, reward in enumerate(scored.rewards):
            if place != best:
                yield Pair(prompt_id(request.prompt), columns, scored.rewards[best], reward)


def _table(found: dict[str, list[Json]]) -> str:
    head = (
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
    lines = [f"| {' | '.join(head)} |", f"|---|---|{'--:|' * (len(head) - 2)}"]
    for column, gaps in found.items():
        for row in gaps:
            interval = console.interval(row["error_interval"])
            cells = [
                column,
                row["value"],
                f"{row['pairs']:,}",
                f"{row['error']:.3f}",
                interval,
                *_gap(row["error_gap"]),
            ]
            cells += [f"{row['reward']:.3f}", *_gap(row["reward_gap"])]
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _gap(gap: Json | None) -> tuple[str, str]:
    if gap is None:
        return "-", "-"
    interval = "" if gap["interval"] is None else " ({:+.3f} to {:+.3f})".format(*gap["interval"])
    return f"{gap['difference']:+.3f}{interval}", f"{gap['p_value_holm']:.3f}"
