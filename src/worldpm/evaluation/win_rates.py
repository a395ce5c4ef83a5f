"""Win rates of generators from the files of a judge: Arena-Hard and AlpacaEval, raw,
style-controlled and length-controlled.

They judge texts that a policy wrote, for instance its best of n under a reward model, against a
baseline's. A row of Arena-Hard's `model_judgment/JUDGE/MODEL.jsonl`, one of its
`model_answer/MODEL.jsonl`, and one of AlpacaEval's `annotations.json`:

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
"""A style difference that varies by no more is the same in all battles, but for rounding."""


class _Content(msgspec.Struct, frozen=True):
    """A message that has more than its text."""

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
    """A judge's relation between two sides."""

    credit: float
    """Of the first side: 1 it won, 0 it lost, 0.5 a tie."""
    weight: float
    """A strong verdict counts three times."""


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
    """Tokens if the file has them, else characters."""
    headers: int
    """Lines that open with one to six `#`."""
    lists: int
    """Items of lists."""
    bold: int
    """Bold spans."""


@dataclass(frozen=True)
class StylePair:
    """Style counts of both sides of a battle."""

    generator: StyleCounts
    """Of the generator's text."""
    baseline: StyleCounts
    """Of the baseline's text."""


@dataclass(frozen=True, kw_only=True)
class Battle:
    """One verdict on a generator's text against its baseline's."""

    generator: str
    """Name of the generator."""
    prompt_id: str
    """The cluster of intervals: both games of a prompt have the same one."""
    credit: float
    """1 the generator won, 0 it lost, 0.5 a tie."""
    weight: float
    """3 for a strong verdict, else 1."""
    styles: StylePair | None
    """None if the texts are not known."""
    difficulty: float | None = None
    """Of the instruction, in logits; None if the file does not have it."""
    part: str = ""
    """Battles of different parts are judged separately: the category of the prompts, the baseline
    and the judge, if the files have them."""


@dataclass(frozen=True, kw_only=True)
class LengthControlled:
    """A win rate at equal lengths."""

    win_rate: float
    """0 to 1."""
    length_weight: float
    """Log odds of a small length difference, per deviation; above 0 if length buys wins."""
    warnings: list[str]
    """Reasons not to trust the fit."""


@dataclass(frozen=True, kw_only=True)
class WinRate:
    """A generator against its baseline."""

    win_rate: float
    """Weighted share of verdicts that it won, 0 to 1; a tie counts half."""
    interval: tuple[float, float] | None
    """95 % interval over prompts; None if the prompts cannot give one."""
    verdicts: int
    """Number of verdicts."""
    prompts: int
    """Number of different prompts."""
    ties: int
    """Verdicts with a credit of exactly 0.5."""
    style_controlled: float | None
    """Win rate at the mean style difference of all verdicts; None if texts are not known."""
    length_controlled: LengthControlled | None
    """None if texts are not known, or the length difference is the same in all battles."""


def read_arena_hard(folder: Path) -> list[Battle]:
    """Both games of each row under `model_judgment`; rows with a failed game are left out, as in
    its own code.

    Style counts come from `model_answer`, if it is there.

    Raises:
        ConfigError: If there is no judgment.
        DataError: If a row is not of its format.
    """
    paths = sorted(folder.rglob("model_judgment/**/*.jsonl"))
    if not paths:
        raise ConfigError(
            f"{folder}: no `model_judgment/JUDGE/MODEL.jsonl`; name the folder of one benchmark of"
            " arena-hard-auto's `data`"
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
    """The question of an answer, and the answer's style counts."""
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
    # a failed game leaves a row with one order of the sides only, which would favour a side
    scores = [game.score for game in row.games if game is not None and game.score]
    if len(row.games) != 2 or len(scores) != 2:
        return

    # answers may be missing, of a model or of single questions
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
    """The verdict of a score such as `A>>B` or `B<A`, as seen by the generator.

    Raises:
        ValueError: If it is not a score.
    """
    relation = score.strip("AB")
    if relation not in VERDICTS or score[0] == score[-1]:
        raise ValueError(f"verdict {score!r}")

    verdict = VERDICTS[relation]
    if (score[0] == "A") == (generator_side == "A"):
        return verdict
    return Verdict(1 - verdict.credit, verdict.weight)


def read_alpaca_eval(path: Path) -> list[Battle]:
    """The rows of `annotations.json`; a draw (0 or 1.5) counts half, rows without a preference are
    left out.

    Raises:
        DataError: If a row is not of its format.
    """
    return list(_read(path, _AnnotationRow, _alpaca_battles))


def _alpaca_battles(row: _AnnotationRow) -> Iterator[Battle]:
    preference = row.preference
    if preference is None or math.isnan(preference):
        return

    # 1 means that the baseline won, 2 the generator, and numbers between how sure the judge is
    credit = 0.5 if preference == 0 else preference - 1
    if not 0 <= credit <= 1:
        raise ValueError(f"preference {preference!r}, not of 1 to 2")
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
                path, f"row {number} is not of the judge's format ({type(error).__name__}: {error})"
            ) from error


def judge(battles: Sequence[Battle]) -> dict[str, WinRate]:
    """Each generator's win rate against its baseline with its 95 % interval by prompts, and both
    controlled ones where they can be fitted.

    If categories, baselines or judges differ, each is judged by itself, and named in brackets.

    Raises:
        ConfigError: If there is no battle.
    """
    if not battles:
        raise ConfigError("the judge's files hold no verdict")

    parts = list(dict.fromkeys(battle.part for battle in battles))
    rates: dict[str, WinRate] = {}
    for part in parts:
        # a style-controlled fit goes over all generators of a part
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
    """Each generator's chance to win at the mean style difference of all verdicts; empty if texts
    are not known.

    One Bradley-Terry fit over all generators, with length as `(a - b) / (a + b)` and the markdown
    counts per token as `(a - b) / (a + b + 1)`, each with its mean taken off and divided by its
    deviation.
    """
    styles = _styles(battles)
    if styles is None:
        return {}

    names = list(dict.fromkeys(battle.generator for battle in battles))
    columns = [_indicator(battles, name) for name in names]
    weight = _weights(battles)
    for z in _style_differences(styles):
        # weighted, since its own code repeats a strong verdict three times
        mean = np.average(z, weights=weight)
        deviation = float(np.sqrt(np.average((z - mean) ** 2, weights=weight)))
        if deviation > SMALLEST_DEVIATION:
            columns.append((z - mean) / deviation)

    fitted = _fit(columns, battles)
    # at the mean style difference the style columns are 0
    chances = _chances(fitted.coefficients[: len(names)])
    return dict(zip(names, chances.tolist(), strict=True))


def _indicator(battles: Sequence[Battle], name: str) -> Array:
    """1 for the battles of a generator, else 0: its coefficient is its skill in logits."""
    return np.array([float(battle.generator == name) for battle in battles])


def _styles(battles: Sequence[Battle]) -> list[StylePair] | None:
    """The style counts of all battles; None if they are not known of each."""
    styles = [battle.styles for battle in battles if battle.styles is not None]
    return styles if len(styles) == len(battles) else None


def _style_differences(styles: Sequence[StylePair]) -> list[Array]:
    """The differences of length, headers, lists and bold between generator and baseline."""
    generator = _columns([pair.generator for pair in styles])
    baseline = _columns([pair.baseline for pair in styles])
    lengths = generator.pop("length"), baseline.pop("length")

    differences = [style_control.differences(lengths[0], lengths[1], "paper")]
    for name in generator:
        # counts per token; one token more keeps an empty text from a division by 0
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

    AlpacaEval's own fit also has an L1 penalty and the outputs of gamed baselines. Without them,
    and above all without the difficulties of the instructions, length and skill are hard to
    separate; the warnings say so. None if texts are not known, or the length difference is the same
    in all battles.
    """
    length_gaps = _length_gaps(battles)
    if length_gaps is None:
        return None

    columns = [np.tanh(length_gaps), np.ones(len(battles))]
    difficulties = _difficulties(battles)
    warnings: list[str] = []
    if difficulties is None:
        warnings.append(
            "the instructions' difficulties are not in the file: length and skill may not be told"
            " apart"
        )
    else:
        columns.append(difficulties)

    # at equal lengths the column of tanh is 0, so that its weight plays no part
    fitted = _fit(columns, battles)
    length_weight, level, *difficulty_weight = fitted.coefficients
    logits = np.full(len(battles), level)
    if difficulties is not None:
        logits = level + difficulty_weight[0] * difficulties
    if not fitted.converged:
        warnings.append("the fit has no finite best values")

    return LengthControlled(
        win_rate=float(_chances(logits).mean()),
        length_weight=float(length_weight),
        warnings=warnings,
    )


def _length_gaps(battles: Sequence[Battle]) -> Array | None:
    """Length of the generator's text minus the baseline's, in deviations; None if texts are not
    known, or all gaps are equal."""
    styles = _styles(battles)
    if styles is None:
        return None

    lengths = [pair.generator.length - pair.baseline.length for pair in styles]
    gaps = np.array(lengths, dtype=np.float64)
    deviation = float(gaps.std(ddof=1)) if len(gaps) > 1 else 0.0
    return gaps / deviation if deviation > 0 else None


def _difficulties(battles: Sequence[Battle]) -> Array | None:
    """The difficulty of each battle's instruction; None if it is not known of each."""
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
