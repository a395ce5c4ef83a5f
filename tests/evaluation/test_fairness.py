"""Fairness gaps: planted gaps are reported, with numbers that were computed by hand."""

import json
from pathlib import Path

import numpy as np
import pytest

from tests.conftest import run
from worldpm.evaluation import group_gaps
from worldpm.evaluation.group_gaps import Gap, Pair, ValueResult


def pairs_of(errors: dict[str, list[float]]) -> list[Pair]:
    """A pair for each error, each with a different prompt. An error of 1 is a margin of -1."""
    return [
        Pair(f"{value}{number}", {"language": value}, 1 - 2 * error, 0.0)
        for value, column in errors.items()
        for number, error in enumerate(column)
    ]


def error_gap(result: ValueResult) -> Gap:
    """The gap of errors of a value that must have one."""
    assert result.error_gap is not None
    return result.error_gap


def reward_gap(result: ValueResult) -> Gap:
    """The gap of rewards of a value that must have one."""
    assert result.reward_gap is not None
    return result.reward_gap


def ends(interval: tuple[float, float] | None) -> tuple[float, float]:
    """The ends of an interval that must not be None."""
    assert interval is not None
    return interval


def test_errors_rewards_and_gaps_by_hand() -> None:
    results = group_gaps.gaps(
        pairs_of({"en": [0.0] * 18 + [1.0] * 2, "fi": [0.0] * 10 + [1.0] * 10, "is": [1.0] * 3}),
        "language",
    )
    en, fi, rare = results
    assert [result.value for result in results] == ["en", "fi", "is"]
    assert (en.error, fi.error, rare.error) == (0.1, 0.5, 1.0)
    assert en.reward == pytest.approx((18 * 0.5 - 2 * 0.5) / 20)
    assert error_gap(en).difference == pytest.approx(2 / 20 - 13 / 23)
    assert rare.error_gap is None  # three prompts are too few
    assert ends(error_gap(en).interval)[1] < 0
    assert error_gap(en).p_value_holm < 0.05


def test_a_tie_is_half_an_error() -> None:
    assert Pair("a", {}, 1.0, 1.0).error == 0.5


@pytest.mark.proof
def test_random_errors_give_no_gap() -> None:
    generator = np.random.default_rng(0)
    alarms = 0
    for _ in range(20):
        errors = {value: generator.integers(0, 2, 60).astype(float).tolist() for value in "abc"}
        results = group_gaps.gaps(pairs_of(errors), "language")
        alarms += any(error_gap(result).p_value_holm < 0.05 for result in results)
    assert alarms <= 4


def test_a_group_without_errors_may_be_like_the_others() -> None:
    """Three of 60 pairs are errors. No error among twelve still allows a rate of up to 0.265,
    by Clopper and Pearson."""
    none, _ = group_gaps.gaps(pairs_of({"a": [0.0] * 12, "b": [0.0] * 57 + [1.0] * 3}), "language")
    assert none.error_interval == pytest.approx((0.0, 1 - 0.025 ** (1 / 12)))
    low, high = ends(error_gap(none).interval)
    assert low < 0 < high
    assert high == pytest.approx(-0.05 + np.hypot(1 - 0.025 ** (1 / 12), 0.05), abs=0.03)


@pytest.mark.proof
def test_groups_that_differ_in_spread_alone_have_no_gap() -> None:
    generator = np.random.default_rng(0)
    alarms = missed = 0
    for _ in range(40):
        wide, narrow = generator.normal(0, 3, 12), generator.normal(0, 1, 300)
        pairs = [Pair(f"w{n}", {"a": "w"}, reward, reward - 1) for n, reward in enumerate(wide)]
        pairs += [Pair(f"n{n}", {"a": "n"}, reward, reward - 1) for n, reward in enumerate(narrow)]
        gap = next(
            reward_gap(result) for result in group_gaps.gaps(pairs, "a") if result.value == "w"
        )
        low, high = ends(gap.interval)
        alarms += gap.p_value < 0.05
        missed += not low <= 0 <= high
    assert alarms <= 6
    assert missed <= 6


def test_groups_with_constant_rewards_have_a_gap_without_an_interval() -> None:
    pairs = [
        Pair(f"{name}{n}", {"a": name}, reward, reward)
        for name, reward in (("x", 1.0), ("y", 2.0))
        for n in range(12)
    ]
    x, y = (reward_gap(result) for result in group_gaps.gaps(pairs, "a"))
    assert (x.difference, x.interval, y.difference, y.interval) == (-1.0, None, 1.0, None)
    assert x.p_value < 0.01


def test_the_command_prints_a_table_and_names_bad_lines(
    road: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = tmp_path / "labelled.jsonl"
    rows = [
        {
            "prompt": f"Question {n}?",
            "responses": ["yes " * (1 + n % 5), "no"],
            "preferred": n % 2,
            "language": "en" if n % 3 else "de",
        }
        for n in range(60)
    ]
    lines.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert (
        run(
            "fairness",
            road / "checkpoint",
            lines,
            "--by",
            "language",
            "--out",
            tmp_path / "gaps.json",
        )
        == 0
    )
    table = capsys.readouterr().out
    assert "| language | de | 20 |" in table
    assert [
        row["pairs"] for row in json.loads((tmp_path / "gaps.json").read_text())["language"]
    ] == [20, 40]
    assert run("fairness", road / "checkpoint", lines, "--by", "region") == 2
    assert "lacks the column 'region'" in capsys.readouterr().err
    lines.write_text(json.dumps({**rows[0], "responses": ["a", "\ud800"]}) + "\n")
    assert run("fairness", road / "checkpoint", lines, "--by", "language") == 2
    assert ":1: contains an unpaired surrogate" in capsys.readouterr().err
    lines.write_text(json.dumps({**rows[0], "preferred": 2}) + "\n")
    assert run("fairness", road / "checkpoint", lines, "--by", "language") == 2
    assert ":1: preferred is 2. Give the index of a response, 0 to 1." in capsys.readouterr().err


def test_a_prompt_counts_once_however_many_pairs_it_has() -> None:
    single = [
        Pair(f"a{number}", {"language": "a"}, float(number % 2 == 0), 0.5) for number in range(10)
    ]
    repeated = [Pair("a0", {"language": "a"}, 1.0, 0.5)] * 15
    rest = [Pair(f"b{number}", {"language": "b"}, 1.0, 0.5) for number in range(10)]
    a, b = group_gaps.gaps([*single, *repeated, *rest], "language")
    assert (a.pairs, a.prompts, a.error, b.error) == (25, 10, 0.5, 0.0)
    assert error_gap(a).difference == pytest.approx(a.error - b.error)


def test_the_gaps_of_two_values_differ_only_in_sign() -> None:
    a, b = (
        error_gap(result)
        for result in group_gaps.gaps(
            pairs_of({"a": [0.0] * 9 + [1.0], "b": [0.0] * 6 + [1.0] * 4}), "language"
        )
    )
    assert b.difference == -a.difference
    low, high = ends(a.interval)
    assert b.interval == (-high, -low)
    assert a.p_value_holm == b.p_value_holm == a.p_value
