"""A labelled file and a model: does it err more, or reward more, for some than for others?"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tyro.conf import Positional

from worldpm.field.errors import ConfigError, DataError
from worldpm.formats import console

if TYPE_CHECKING:
    from worldpm.parts.fairness import Pair

Json = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Config:
    """Tell reward and error gaps between the values of columns, with intervals."""

    model: Positional[str]
    """Folder or hub id of a reward model."""
    file: Positional[Path]
    """JSON lines: `prompt`, `responses`, `preferred` (the place of the best one), and columns such as `language` or `region`."""
    by: tuple[str, ...]
    """Columns."""
    out: Path | None = None
    """JSON file to write; a table on standard output either way."""

    def __post_init__(self) -> None:
        if not self.by:
            raise ConfigError("--by names no column")


def run(config: Config) -> None:
    """Score the file, print the table, write the numbers."""
    from worldpm.formats import folders
    from worldpm.parts import fairness

    if config.out is not None and not config.out.parent.is_dir():
        raise ConfigError(f"--out {config.out}: the folder {config.out.parent} is not there; make it first")
    pairs = list(_pairs(config))
    if not pairs:
        raise DataError(config.file, "holds no line with two responses")
    found = {column: fairness.gaps(pairs, column) for column in config.by}
    print(_table(found))
    if config.out is not None:
        folders.write_atomically(config.out, folders.to_json(found))


def _pairs(config: Config) -> "Iterator[Pair]":
    """The best response of each line against each other one."""
    from worldpm.formats import rows
    from worldpm.parts.benchmarks.items import prompt_id
    from worldpm.parts.fairness import Pair
    from worldpm.parts.scorer import Scorer
    from worldpm.steps.score import parse_request

    if not config.file.is_file():
        raise ConfigError(f"{config.file}: no such file")
    read = []
    for number, row in enumerate(rows.read(config.file), start=1):
        request = parse_request(row, f"{config.file}:{number}")
        best = row.get("preferred")
        if not isinstance(best, int) or isinstance(best, bool) or not 0 <= best < len(request.responses):
            raise DataError(
                config.file, f"preferred is {best!r}; expected the place of a response, 0 to {len(request.responses) - 1}", line=number
            )
        if missing := [column for column in config.by if row.get(column) is None]:
            raise DataError(config.file, f"lacks the column {missing[0]!r}", line=number)
        read.append((request, best, {column: str(row[column]) for column in config.by}))
    scorer = Scorer.load(config.model, cut=True)
    for (request, best, columns), scored in zip(read, scorer.score(one[0] for one in read), strict=True):
        for place, reward in enumerate(scored.rewards):
            if place != best:
                yield Pair(prompt_id(request.prompt), columns, scored.rewards[best], reward)


def _table(found: dict[str, list[Json]]) -> str:
    head = ("column", "value", "pairs", "errors", "95 % interval", "gap to others", "p (Holm)", "mean reward", "gap to others", "p (Holm)")
    lines = [f"| {' | '.join(head)} |", f"|---|---|{'--:|' * (len(head) - 2)}"]
    for column, rows in found.items():
        for row in rows:
            interval = console.interval(row["error_interval"])
            cells = [column, row["value"], f"{row['pairs']:,}", f"{row['error']:.3f}", interval, *_gap(row["error_gap"])]
            cells += [f"{row['reward']:.3f}", *_gap(row["reward_gap"])]
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _gap(gap: Json | None) -> tuple[str, str]:
    if gap is None:
        return "-", "-"
    interval = "" if gap["interval"] is None else " ({:+.3f} to {:+.3f})".format(*gap["interval"])
    return f"{gap['difference']:+.3f}{interval}", f"{gap['p_value_holm']:.3f}"
