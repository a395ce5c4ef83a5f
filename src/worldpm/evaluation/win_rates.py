"""Win rates of generators from the files of a judge: Arena-Hard and AlpacaEval, raw,
style-controlled and length-controlled.

They judge texts that a policy wrote, for instance its best of n under a reward model, against a
baseline's.

Source: https://github.com/lmarena/arena-hard-auto, commit 196f6b8, `show_result.py`;
https://github.com/tatsu-lab/alpaca_eval, commit cd543a1, `metrics/glm_winrate.py`; Dubois et al.
2024, arXiv 2404.04475.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from worldpm.errors import ConfigError, DataError
from worldpm.stats import bradley_terry, style_control
from worldpm.stats.style import style_of
from worldpm.stats.uncertainty import clustered_interval
from worldpm.storage import rows

Json = dict[str, Any]
Array = NDArray[np.float64]

VERDICTS = {">>": (1.0, 3.0), ">": (1.0, 1.0), "=": (0.5, 1.0), "<": (0.0, 1.0), "<<": (0.0, 3.0)}
"""The credit of the first side, and what the verdict counts: a strong one three times."""
Read = TypeVar("Read")
OWN, BASELINE = 0, 1
FEATURES = ("length", "headers", "lists", "bold")
ROUNDING = 1e-9
"""A style difference that varies by no more is the same in all battles."""


class Battle(NamedTuple):
    """One verdict on a generator's text against its baseline's."""

    generator: str
    prompt_id: str
    credit: float
    """1 the generator won, 0 it lost, 0.5 a tie."""
    weight: float
    counts: tuple[Mapping[str, float], Mapping[str, float]] | None
    """Style counts of its own text and the baseline's, None where the texts are not known."""
    difficulty: float | None = None
    """Of the instruction, in logits, where the file has it."""
    part: str = ""
    """What is not to be mixed: the category of the prompts, the baseline and the judge, where the
    files have them."""


def read_arena_hard(folder: Path) -> list[Battle]:
    """Both games of each row under `model_judgment`; rows with a game that failed are left out, as
    its own code does.

    Counts come from `model_answer`, where it is.

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
    answers = {
        path.stem: dict(_read(path, _answer))
        for path in sorted(folder.rglob("model_answer/*.jsonl"))
    }
    return [
        battle
        for path in paths
        for battle in _read(path, partial(_arena_rows, answers=answers, judge=path.parent.name))
    ]


def _answer(row: Json) -> Iterator[tuple[str, dict[str, float]]]:
    text = row["messages"][-1]["content"]
    yield (
        row["uid"],
        _counts(
            text["answer"] if isinstance(text, dict) else text,
            row.get("metadata", {}).get("token_len"),
        ),
    )


def _counts(text: str, tokens: int | None = None) -> dict[str, float]:
    found = style_of(text)
    return {
        "length": tokens if tokens is not None else found.characters,
        "headers": found.headers,
        "lists": found.lists,
        "bold": found.bold,
    }


def _arena_rows(
    row: Json, answers: Mapping[str, Mapping[str, Json]], judge: str
) -> Iterator[Battle]:
    games = row["games"]
    if len(games) != 2 or not all(game and game.get("score") for game in games):
        return
    own, baseline = (answers.get(row[side], {}).get(row["uid"]) for side in ("model", "baseline"))
    counts = None if own is None or baseline is None else (own, baseline)
    part = ", ".join(
        filter(None, (row.get("category"), f"against {row['baseline']}", f"by {judge}"))
    )
    for place, game in enumerate(games):
        verdict = str(game["score"])
        if (relation := verdict.strip("AB")) not in VERDICTS or verdict[0] == verdict[-1]:
            raise ValueError(f"verdict {verdict!r}")
        credit, weight = VERDICTS[relation]
        named_first = "model" if (verdict[0] == "A") == (place == 1) else "baseline"
        yield Battle(
            row["model"],
            row["uid"],
            credit if named_first == "model" else 1 - credit,
            weight,
            counts,
            part=part,
        )


def read_alpaca_eval(path: Path) -> list[Battle]:
    """The rows of `annotations.json`; a draw (0 or 1.5) counts half, rows without a preference are
    left out.

    Raises:
        DataError: If a row is not of its format.
    """
    return list(_read(path, _alpaca_rows))


def _alpaca_rows(row: Json) -> Iterator[Battle]:
    preference = row["preference"]
    if preference is None or (isinstance(preference, float) and math.isnan(preference)):
        return
    credit = 0.5 if preference == 0 else float(preference) - 1
    if not 0 <= credit <= 1:
        raise ValueError(f"preference {preference!r}, not of 1 to 2")
    counts = (_counts(row["output_2"]), _counts(row["output_1"]))
    yield Battle(
        row["generator_2"],
        row["instruction"],
        credit,
        1.0,
        counts,
        row.get("instruction_difficulty"),
    )


def _read(path: Path, parse: Callable[[Json], Iterator[Read]]) -> Iterator[Read]:
    for number, row in enumerate(rows.read(path), start=1):
        try:
            yield from parse(row)
        except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
            raise DataError(
                path, f"row {number} is not of the judge's format ({type(error).__name__}: {error})"
            ) from error


def judge(battles: Sequence[Battle]) -> dict[str, Json]:
    """Each generator's win rate against its baseline with its 95 % interval by prompts, and both
    controlled ones where they can be.

    Where categories, baselines or judges differ, each is judged by itself, and named in brackets.

    Raises:
        ConfigError: If there is no battle.
    """
    if not battles:
        raise ConfigError("the judge's files hold no verdict")
    parts = list(dict.fromkeys(battle.part for battle in battles))
    found: dict[str, Json] = {}
    for part in parts:
        judged = _judge_part([battle for battle in battles if battle.part == part])
        found |= (
            judged if len(parts) == 1 else {f"{name} ({part})": one for name, one in judged.items()}
        )
    return found


def _judge_part(battles: Sequence[Battle]) -> dict[str, Json]:
    controlled = style_controlled(battles)
    found: dict[str, Json] = {}
    for name in dict.fromkeys(battle.generator for battle in battles):
        own = [battle for battle in battles if battle.generator == name]
        credit, weight = (
            np.array([getattr(battle, key) for battle in own]) for key in ("credit", "weight")
        )
        interval = clustered_interval(credit, weight, [battle.prompt_id for battle in own])
        found[name] = {
            "win_rate": float(np.average(credit, weights=weight)),
            "interval": None if math.isnan(interval.low) else list(interval),
            "verdicts": len(own),
            "prompts": len({battle.prompt_id for battle in own}),
            "ties": int((credit == 0.5).sum()),
            "style_controlled": controlled.get(name),
            "length_controlled": length_controlled(own),
        }
    return found


def style_controlled(battles: Sequence[Battle]) -> dict[str, float]:
    """Each generator's chance to win at the mean style difference of all verdicts; empty where
    texts are not known.

    One Bradley-Terry fit over all generators, with length as `(a - b) / (a + b)` and the markdown
    counts per token as `(a - b) / (a + b + 1)`, each with its mean taken off and divided by its
    deviation.
    """
    if not all(battle.counts for battle in battles):
        return {}
    names = list(dict.fromkeys(battle.generator for battle in battles))
    columns = [np.array([float(battle.generator == name) for battle in battles]) for name in names]
    credit, weight = (
        np.array([getattr(battle, key) for battle in battles]) for key in ("credit", "weight")
    )
    for feature in FEATURES:
        z = _style_difference(battles, feature)
        mean = np.average(z, weights=weight)  # its own code repeats a strong verdict three times
        if (deviation := float(np.sqrt(np.average((z - mean) ** 2, weights=weight)))) > ROUNDING:
            columns.append((z - mean) / deviation)
    fitted = style_control.fit(
        np.stack(columns, axis=1), credit, weight, [battle.prompt_id for battle in battles]
    )
    return dict(zip(names, _chances(fitted.coefficients[: len(names)]).tolist(), strict=True))


def _style_difference(battles: Sequence[Battle], feature: str) -> Array:
    sides = [_counted(battles, side, feature) for side in (OWN, BASELINE)]
    if feature == "length":
        return style_control.differences(sides[0], sides[1], "paper")
    density = [
        counts / (_counted(battles, side, "length") + 1)
        for side, counts in zip((OWN, BASELINE), sides, strict=True)
    ]
    return style_control.differences(density[0], density[1], "arena")


def _counted(battles: Sequence[Battle], side: int, feature: str) -> Array:
    return np.array(
        [battle.counts[side][feature] for battle in battles if battle.counts], dtype=np.float64
    )


def length_controlled(battles: Sequence[Battle]) -> Json | None:
    """`mean sigma(w2 difficulty + w3)` of the fit `sigma(w1 tanh(length difference / deviation) +
    w2 difficulty + w3)`.

    AlpacaEval's own fit is also held by an L1 penalty and the outputs of gamed baselines; without
    them, and above all without the difficulties of the instructions, length and skill are hard to
    tell apart: the warnings say so. None where texts are not known.
    """
    if not all(battle.counts for battle in battles):
        return None
    gap = _counted(battles, OWN, "length") - _counted(battles, BASELINE, "length")
    deviation = float(gap.std(ddof=1)) if len(gap) > 1 else 0.0
    if deviation == 0:
        return None
    known = all(battle.difficulty is not None for battle in battles)
    difficulty = np.array([battle.difficulty or 0.0 for battle in battles])
    columns = [np.tanh(gap / deviation), np.ones(len(gap)), *([difficulty] if known else [])]
    credit, weight = (
        np.array([getattr(battle, key) for battle in battles]) for key in ("credit", "weight")
    )
    fitted = style_control.fit(
        np.stack(columns, axis=1), credit, weight, [battle.prompt_id for battle in battles]
    )
    level = fitted.coefficients[1] + (
        fitted.coefficients[2] * difficulty if known else np.zeros(len(gap))
    )
    warnings = (
        []
        if known
        else [
            "the instructions' difficulties are not in the file: length and skill may not be told"
            " apart"
        ]
    )
    return {
        "win_rate": float(_chances(level).mean()),
        "length_weight": float(fitted.coefficients[0]),
        "warnings": warnings + ([] if fitted.converged else ["the fit has no finite best values"]),
    }


def _chances(logits: Array) -> Array:
    chances: Array = bradley_terry.probabilities(torch.from_numpy(logits)).numpy()
    return chances
