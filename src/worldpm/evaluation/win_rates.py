"""Win rates of generators from the verdict files of Arena-Hard and AlpacaEval: raw,
style-controlled and length-controlled.

In both, a judge compares texts of a policy, for instance its best of n under a reward model, with
texts of a baseline. A row of Arena-Hard's `model_judgment/JUDGE/MODEL.jsonl`, a row of its
`model_answer/MODEL.jsonl`, and a row of AlpacaEval's `annotations.json`:

    {"uid": "7", "model": "mine", "baseline": "base", "category": "hard",
     "games": [{"score": "A>B"}, {"score": "A<<B"}]}
    {"uid": "7", "messages": [{"content": {"answer": "Yes."}}], "metadata": {"token_len": 2}}
    {"instruction": "Q?", "output_1": "No.", "output_2": "Yes.", "generator_2": "mine",
     "preference": 1.8, "instruction_difficulty": -0.3}

Source: https://github.com/lmarena/arena-hard-auto, commit 196f6b8, `show_result.py`;
https://github.com/tatsu-lab/alpaca_eval, commit cd543a1, `metrics/glm_winrate.py`; Dubois et al.
2024, arXiv 2404.04475.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NamedTuple, TypeVar

import msgspec
import numpy as np
import torch
from numpy.typing import NDArray

from worldpm.errors import ConfigError, DataError
from worldpm.stats import bradley_terry, style_control
from worldpm.stats.style import style_of
from worldpm.stats.uncertainty import clustered_interval
from worldpm.storage import rows

Array = NDArray[np.float64]
Parsed = TypeVar("Parsed")
RowType = TypeVar("RowType")

SMALLEST_DEVIATION = 1e-9
"""A style difference with a smaller deviation is constant up to rounding."""


class _Content(msgspec.Struct, frozen=True):
    """The content of a message that has more than text."""

    answer: str


class _Turn(msgspec.Struct, frozen=True):
    """A message of a conversation."""

    content: str | _Content


class _AnswerMetadata(msgspec.Struct, frozen=True):
    """Metadata of an answer."""

    token_len: int | None = None


class _AnswerRow(msgspec.Struct, frozen=True):
    """A row of Arena-Hard's `model_answer`."""

    uid: str
    messages: list[_Turn]
    metadata: _AnswerMetadata = _AnswerMetadata()


class _Game(msgspec.Struct, frozen=True):
    """A judge's comparison of two sides."""

    score: str | None = None


class _GamesRow(msgspec.Struct, frozen=True):
    """A row of Arena-Hard's `model_judgment`."""

    uid: str
    model: str
    games: list[_Game | None]
    baseline: str
    category: str | None = None


class _AnnotationRow(msgspec.Struct, frozen=True):
    """A row of AlpacaEval's `annotations.json`."""

    instruction: str
    output_1: str
    output_2: str
    generator_2: str
    preference: float | None
    instruction_difficulty: float | None = None


class Verdict(NamedTuple):
    """A judge's verdict on two sides."""

    credit: float
    """Credit of the first side: 1 for a win, 0 for a loss, 0.5 for a tie."""
    weight: float
    """3 for a strong verdict, otherwise 1."""


VERDICTS = {
    ">>": Verdict(1.0, 3.0),
    ">": Verdict(1.0, 1.0),
    "=": Verdict(0.5, 1.0),
    "<": Verdict(0.0, 1.0),
    "<<": Verdict(0.0, 3.0),
}


@dataclass(frozen=True)
class StyleCounts:
    """Style counts of one text."""

    length: int
    """Number of tokens if the file has it, otherwise of characters."""
    headers: int
    """Number of lines that start with one to six `#`."""
    lists: int
    """Number of list items."""
    bold: int
    """Number of bold spans."""


@dataclass(frozen=True)
class StylePair:
    """Style counts of both sides of a battle."""

    generator: StyleCounts
    """Counts of the generator's text."""
    baseline: StyleCounts
    """Counts of the baseline's text."""


@dataclass(frozen=True, kw_only=True)
class Battle:
    """One verdict on a generator's text against the baseline's text."""

    generator: str
    """Name of the generator."""
    prompt_id: str
    """The cluster of intervals, the same for both games of a prompt."""
    credit: float
    """Credit of the generator: 1 for a win, 0 for a loss, 0.5 for a tie."""
    weight: float
    """3 for a strong verdict, otherwise 1."""
    styles: StylePair | None
    """None if the texts are unknown."""
    difficulty: float | None = None
    """Difficulty of the instruction, in logits; None if the file does not have it."""
    part: str = ""
    """The category of the prompts, the baseline and the judge, if the files have them. Each part
    has its own win rates."""


@dataclass(frozen=True, kw_only=True)
class LengthControlled:
    """A win rate at equal lengths."""

    win_rate: float
    """0 to 1."""
    length_weight: float
    """Log odds per standard deviation of a small length difference; above 0 if longer texts win
    more."""
    warnings: list[str]
    """Reasons not to trust the fit."""


@dataclass(frozen=True, kw_only=True)
class WinRate:
    """A generator against its baseline."""

    win_rate: float
    """Weighted share of verdicts for the generator, 0 to 1; a tie counts half."""
    interval: tuple[float, float] | None
    """95 % interval over prompts; None if the prompts cannot give an interval."""
    verdicts: int
    """Number of verdicts."""
    prompts: int
    """Number of distinct prompts."""
    ties: int
    """Number of verdicts with a credit of exactly 0.5."""
    style_controlled: float | None
    """Win rate at the mean style difference of all verdicts; None if texts are unknown."""
    length_controlled: LengthControlled | None
    """None if texts are unknown, or if all battles have the same length difference."""


def read_arena_hard(folder: Path) -> list[Battle]:
    """Both games of each row under `model_judgment`. Rows with a failed game are left out, as in
    Arena-Hard's code.

    Style counts come from `model_answer`, if it exists.

    Raises:
        ConfigError: If the folder has no judgment.
        DataError: If a row does not have Arena-Hard's format.
    """
    paths = sorted(folder.rglob("model_judgment/**/*.jsonl"))
    if not paths:
        raise ConfigError(
            f"{folder}: has no `model_judgment/JUDGE/MODEL.jsonl`. Name the folder of one benchmark"
            " in arena-hard-auto's `data`."
        )

    styles = {
        path.stem: dict(_read(path, _AnswerRow, _answer_styles))
        for path in sorted(folder.rglob("model_answer/*.jsonl"))
    }
    battles: list[Battle] = []
    for path in paths:
        battles += _read(
            path, _GamesRow, partial(_arena_battles, styles=styles, judge=path.parent.name)
        )
    return battles


def _answer_styles(row: _AnswerRow) -> Iterator[tuple[str, StyleCounts]]:
    """The id of an answer's question, and the answer's style counts."""
    content = row.messages[-1].content
    text = content.answer if isinstance(content, _Content) else content
    yield row.uid, _style_counts(text, row.metadata.token_len)


def _style_counts(text: str, tokens: int | None = None) -> StyleCounts:
    style = style_of(text)
    length = tokens if tokens is not None else style.characters
    return StyleCounts(length, style.headers, style.lists, style.bold)


def _arena_battles(
    row: _GamesRow, styles: Mapping[str, Mapping[str, StyleCounts]], judge: str
) -> Iterator[Battle]:
    # if a game failed, the row has only one order of the sides, which could favour a side
    scores = [game.score for game in row.games if game is not None and game.score]
    if len(row.games) != 2 or len(scores) != 2:
        return

    # answers of a model, or to some questions, may be missing
    generator = styles.get(row.model, {}).get(row.uid)
    baseline = styles.get(row.baseline, {}).get(row.uid)
    pair = StylePair(generator, baseline) if generator and baseline else None
    part = [row.category, f"against {row.baseline}", f"by {judge}"]
    for score, generator_side in zip(scores, "BA", strict=True):
        # the baseline is A in the first game, and B in the second
        verdict = _generator_verdict(score, generator_side=generator_side)
        yield Battle(
            generator=row.model,
            prompt_id=row.uid,
            credit=verdict.credit,
            weight=verdict.weight,
            styles=pair,
            part=", ".join(filter(None, part)),
        )


def _generator_verdict(score: str, *, generator_side: str) -> Verdict:
    """The verdict of a score such as `A>>B` or `B<A`, from the generator's side.

    Raises:
        ValueError: If the score has another form.
    """
    relation = score.strip("AB")
    if relation not in VERDICTS or score[0] == score[-1]:
        raise ValueError(f"unknown verdict {score!r}")

    verdict = VERDICTS[relation]
    if (score[0] == "A") == (generator_side == "A"):
        return verdict
    return Verdict(1 - verdict.credit, verdict.weight)


def read_alpaca_eval(path: Path) -> list[Battle]:
    """The rows of `annotations.json`. A draw (0 or 1.5) counts half, and rows without a preference
    are left out.

    Raises:
        DataError: If a row does not have AlpacaEval's format.
    """
    return list(_read(path, _AnnotationRow, _alpaca_battles))


def _alpaca_battles(row: _AnnotationRow) -> Iterator[Battle]:
    preference = row.preference
    if preference is None or math.isnan(preference):
        return

    # 1: the baseline won; 2: the generator won; numbers between show how sure the judge is
    credit = 0.5 if preference == 0 else preference - 1
    if not 0 <= credit <= 1:
        raise ValueError(f"preference {preference!r} is not between 1 and 2")
    yield Battle(
        generator=row.generator_2,
        prompt_id=row.instruction,
        credit=credit,
        weight=1.0,
        styles=StylePair(_style_counts(row.output_2), _style_counts(row.output_1)),
        difficulty=row.instruction_difficulty,
    )


def _read(
    path: Path, row_type: type[RowType], parse: Callable[[RowType], Iterator[Parsed]]
) -> Iterator[Parsed]:
    for number, row in enumerate(rows.read(path), start=1):
        try:
            yield from parse(msgspec.convert(row, row_type))
        except (msgspec.ValidationError, ValueError, IndexError) as error:
            raise DataError(
                path,
                f"row {number} does not have the judge's format ({type(error).__name__}: {error})."
                " Fix or remove it.",
            ) from error


def judge(battles: Sequence[Battle]) -> dict[str, WinRate]:
    """Each generator's win rate against its baseline with a 95 % interval over prompts, and both
    controlled win rates if they can be fitted.

    Each combination of category, baseline and judge has separate win rates. If there are several,
    names of generators have it in brackets.

    Raises:
        ConfigError: If the file has no battles.
    """
    if not battles:
        raise ConfigError("--verdicts: the judge's files have no verdicts. Name other files.")

    parts = list(dict.fromkeys(battle.part for battle in battles))
    rates: dict[str, WinRate] = {}
    for part in parts:
        # the style-controlled fit is over all generators of a part
        of_part = _judge_part([battle for battle in battles if battle.part == part])
        for name, rate in of_part.items():
            rates[name if len(parts) == 1 else f"{name} ({part})"] = rate
    return rates


def _judge_part(battles: Sequence[Battle]) -> dict[str, WinRate]:
    controlled = style_controlled(battles)
    rates: dict[str, WinRate] = {}
    for name in dict.fromkeys(battle.generator for battle in battles):
        of_generator = [battle for battle in battles if battle.generator == name]
        prompts = [battle.prompt_id for battle in of_generator]
        credit, weight = _credits(of_generator), _weights(of_generator)
        interval = clustered_interval(credit, weight, prompts)

        rates[name] = WinRate(
            win_rate=float(np.average(credit, weights=weight)),
            interval=(interval.low, interval.high) if interval.known else None,
            verdicts=len(of_generator),
            prompts=len(set(prompts)),
            ties=int((credit == 0.5).sum()),
            style_controlled=controlled.get(name),
            length_controlled=length_controlled(of_generator),
        )
    return rates


def _credits(battles: Sequence[Battle]) -> Array:
    return np.array([battle.credit for battle in battles])


def _weights(battles: Sequence[Battle]) -> Array:
    return np.array([battle.weight for battle in battles])


def style_controlled(battles: Sequence[Battle]) -> dict[str, float]:
    """Each generator's win probability at the mean style difference of all verdicts; empty if texts
    are unknown.

    This is one Bradley-Terry fit over all generators. Its style features are length, as `(a - b) /
    (a + b)`, and the Markdown counts per token, as `(a - b) / (a + b + 1)`. Each feature is
    centred, and divided by its standard deviation.
    """
    styles = _styles(battles)
    if styles is None:
        return {}

    names = list(dict.fromkeys(battle.generator for battle in battles))
    columns = [_indicator(battles, name) for name in names]
    weight = _weights(battles)
    for z in _style_differences(styles):
        # weighted, because Arena-Hard's code repeats a strong verdict three times
        mean = np.average(z, weights=weight)
        deviation = float(np.sqrt(np.average((z - mean) ** 2, weights=weight)))
        if deviation > SMALLEST_DEVIATION:
            columns.append((z - mean) / deviation)

    fitted = _fit(columns, battles)
    # at the mean style difference the style columns are 0
    chances = _chances(fitted.coefficients[: len(names)])
    return dict(zip(names, chances.tolist(), strict=True))


def _indicator(battles: Sequence[Battle], name: str) -> Array:
    """1 for a generator's battles, otherwise 0. Its coefficient is the generator's skill in
    logits."""
    return np.array([float(battle.generator == name) for battle in battles])


def _styles(battles: Sequence[Battle]) -> list[StylePair] | None:
    """The style counts of all battles; None if those of any battle are unknown."""
    styles = [battle.styles for battle in battles if battle.styles is not None]
    return styles if len(styles) == len(battles) else None


def _style_differences(styles: Sequence[StylePair]) -> list[Array]:
    """The differences of length, headers, lists and bold between generator and baseline."""
    generator = _columns([pair.generator for pair in styles])
    baseline = _columns([pair.baseline for pair in styles])
    lengths = generator.pop("length"), baseline.pop("length")

    differences = [style_control.differences(lengths[0], lengths[1], "paper")]
    for name in generator:
        # counts per token; the added token avoids a division by 0 for empty texts
        densities = generator[name] / (lengths[0] + 1), baseline[name] / (lengths[1] + 1)
        differences.append(style_control.differences(densities[0], densities[1], "arena"))
    return differences


def _columns(counts: Sequence[StyleCounts]) -> dict[str, Array]:
    return {
        "length": np.array([count.length for count in counts], dtype=np.float64),
        "headers": np.array([count.headers for count in counts], dtype=np.float64),
        "lists": np.array([count.lists for count in counts], dtype=np.float64),
        "bold": np.array([count.bold for count in counts], dtype=np.float64),
    }


def length_controlled(battles: Sequence[Battle]) -> LengthControlled | None:
    """`mean sigma(w2 difficulty + w3)` of the fit `sigma(w1 tanh(length difference / deviation) +
    w2 difficulty + w3)`.

    AlpacaEval's fit also has an L1 penalty and the outputs of gamed baselines. Without them, and
    above all without the instructions' difficulties, length and skill are hard to separate, and
    `warnings` reports it. None if texts are unknown, or if all battles have the same length
    difference.
    """
    length_gaps = _length_gaps(battles)
    if length_gaps is None:
        return None

    columns = [np.tanh(length_gaps), np.ones(len(battles))]
    difficulties = _difficulties(battles)
    warnings: list[str] = []
    if difficulties is None:
        warnings.append(
            "the file does not have the instructions' difficulties: the fit may confuse length and"
            " skill"
        )
    else:
        columns.append(difficulties)

    # at equal lengths the column of tanh is 0, so its weight has no effect
    fitted = _fit(columns, battles)
    length_weight, level, *difficulty_weight = fitted.coefficients
    logits = np.full(len(battles), level)
    if difficulties is not None:
        logits = level + difficulty_weight[0] * difficulties
    if not fitted.converged:
        warnings.append("the fit did not converge: no finite coefficients are optimal")

    return LengthControlled(
        win_rate=float(_chances(logits).mean()),
        length_weight=float(length_weight),
        warnings=warnings,
    )


def _length_gaps(battles: Sequence[Battle]) -> Array | None:
    """Length of the generator's text minus the baseline's, in standard deviations; None if texts
    are unknown, or if all gaps are equal."""
    styles = _styles(battles)
    if styles is None:
        return None

    lengths = [pair.generator.length - pair.baseline.length for pair in styles]
    gaps = np.array(lengths, dtype=np.float64)
    deviation = float(gaps.std(ddof=1)) if len(gaps) > 1 else 0.0
    return gaps / deviation if deviation > 0 else None


def _difficulties(battles: Sequence[Battle]) -> Array | None:
    """The difficulty of each battle's instruction; None if any is unknown."""
    difficulties = [battle.difficulty for battle in battles if battle.difficulty is not None]
    if len(difficulties) < len(battles):
        return None
    return np.array(difficulties, dtype=np.float64)


def _fit(columns: Sequence[Array], battles: Sequence[Battle]) -> style_control.Fit:
    """A logistic fit of the battles' credits."""
    prompts = [battle.prompt_id for battle in battles]
    return style_control.fit(
        np.stack(columns, axis=1), _credits(battles), _weights(battles), prompts
    )


def _chances(logits: Array) -> Array:
    chances: Array = bradley_terry.probabilities(torch.from_numpy(logits)).numpy()
    return chances
