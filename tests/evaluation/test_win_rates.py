"""Win rates from judges' files, by hand."""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import run
from worldpm.errors import ConfigError, DataError
from worldpm.evaluation import win_rates
from worldpm.storage.json_files import read_json


def arena(folder: Path, *verdicts: tuple[str | None, str | None], answers: bool = False) -> Path:
    """Write one row per pair of games. The baseline is A in the first game, the model in the
    second."""
    rows = [
        {
            "uid": str(i),
            "model": "mine",
            "baseline": "base",
            "games": [first and {"score": first}, second and {"score": second}],
        }
        for i, (first, second) in enumerate(verdicts)
    ]
    judged = folder / "model_judgment" / "judge" / "mine.jsonl"
    judged.parent.mkdir(parents=True)
    judged.write_text("\n".join(map(json.dumps, rows)))
    if answers:
        for name, text in (("mine", "# A long and **bold** answer"), ("base", "short")):
            path = folder / "model_answer" / f"{name}.jsonl"
            path.parent.mkdir(exist_ok=True)
            lines = [
                {"uid": str(i), "messages": [{"content": {"answer": f"{text} {'x' * i}"}}]}
                for i in range(len(verdicts))
            ]
            path.write_text("\n".join(map(json.dumps, lines)))
    return folder


def alpaca(path: Path, preferences: Sequence[Any], **columns: Any) -> Path:
    rows = [
        {
            "instruction": str(i),
            "output_1": "a" * 9,
            "output_2": "b" * (3 + 5 * (i % 4)),
            "generator_2": "mine",
            "preference": preference,
        }
        | {key: values[i] for key, values in columns.items()}
        for i, preference in enumerate(preferences)
    ]
    path.write_text(json.dumps(rows))
    return path


def test_a_strong_verdict_of_arena_hard_counts_three_times(tmp_path: Path) -> None:
    # game 1 is lost strongly (0, weight 3), game 2 won (1); then a tie and a strong win
    battles = win_rates.read_arena_hard(arena(tmp_path, ("A>>B", "A>B"), ("A=B", "A>>B")))
    rate = win_rates.judge(battles)["mine"]
    assert rate.win_rate == pytest.approx((0 * 3 + 1 + 0.5 + 1 * 3) / 8)
    assert (rate.verdicts, rate.prompts, rate.ties) == (4, 2, 1)
    assert rate.style_controlled is None


def test_a_verdict_may_name_its_sides_in_either_order(tmp_path: Path) -> None:
    battles = win_rates.read_arena_hard(arena(tmp_path, ("B>A", "B<<A")))
    assert [(battle.credit, battle.weight) for battle in battles] == [(1.0, 1.0), (1.0, 3.0)]


def test_a_row_with_a_failed_game_is_left_out_whole(tmp_path: Path) -> None:
    assert [
        battle.prompt_id
        for battle in win_rates.read_arena_hard(arena(tmp_path, (None, "A>B"), ("A=B", "A=B")))
    ] == ["1", "1"]


def test_style_control_of_equal_texts_is_the_plain_win_rate(tmp_path: Path) -> None:
    # the style difference hardly varies, so the win rate at its mean is the plain win rate
    verdicts = [("A<B", "A>B"), ("A>B", "A<B"), ("A<B", "A>B"), ("A<B", "A<B")] * 5
    battles = win_rates.read_arena_hard(arena(tmp_path, *verdicts, answers=True))
    rate = win_rates.judge(battles)["mine"]
    assert rate.style_controlled == pytest.approx(rate.win_rate, abs=0.03)


def test_a_strong_verdict_is_three_in_style_control_too(tmp_path: Path) -> None:
    verdicts = [("A<<B", "A>B"), ("A>B", "A<B"), ("A<B", "A>>B"), ("A<B", "A<B")] * 5
    battles = win_rates.read_arena_hard(arena(tmp_path, *verdicts, answers=True))
    apart = [replace(battle, weight=1.0) for battle in battles for _ in range(int(battle.weight))]
    assert win_rates.style_controlled(battles) == pytest.approx(win_rates.style_controlled(apart))


def test_categories_and_judges_are_not_mixed(tmp_path: Path) -> None:
    arena(tmp_path, ("A<B", "A>B"), ("A>B", "A<B"))
    another = tmp_path / "model_judgment" / "another" / "mine.jsonl"
    another.parent.mkdir()
    row = {
        "uid": "9",
        "model": "mine",
        "baseline": "base",
        "category": "hard",
        "games": [{"score": "A<B"}, {"score": "A>B"}],
    }
    another.write_text(json.dumps(row))
    rates = win_rates.judge(win_rates.read_arena_hard(tmp_path))
    assert {name: rate.win_rate for name, rate in rates.items()} == {
        "mine (hard, against base, by another)": 1.0,
        "mine (against base, by judge)": 0.5,
    }


def test_draws_of_alpacaeval_count_half_and_failures_are_left_out(tmp_path: Path) -> None:
    battles = win_rates.read_alpaca_eval(
        alpaca(tmp_path / "a.json", [1.0, 2.0, 0, 1.5, 1.75, None])
    )
    assert [battle.credit for battle in battles] == [0.0, 1.0, 0.5, 0.5, 0.75]


def test_length_control_removes_the_advantage_of_length(tmp_path: Path) -> None:
    bought = [
        1.0 + min(1.0, 0.2 + 0.25 * (i % 4)) for i in range(40)
    ]  # the longer the text, the more certain the win
    rate = win_rates.judge(win_rates.read_alpaca_eval(alpaca(tmp_path / "a.json", bought)))["mine"]
    assert rate.length_controlled is not None
    assert rate.length_controlled.length_weight > 0
    assert rate.win_rate == pytest.approx(0.575)
    assert "difficulties" in rate.length_controlled.warnings[0]


def test_difficulties_are_used_where_the_file_has_them(tmp_path: Path) -> None:
    path = alpaca(
        tmp_path / "a.json",
        [1.2, 1.9, 1.4, 1.6] * 10,
        instruction_difficulty=[0.5, -1.0, 0.1, 0.3] * 10,
    )
    rate = win_rates.judge(win_rates.read_alpaca_eval(path))["mine"]
    assert rate.length_controlled is not None
    assert rate.length_controlled.warnings == []


@pytest.mark.parametrize("preference", [3.0, "text", [1]])
def test_an_invalid_verdict_is_refused(tmp_path: Path, preference: Any) -> None:
    with pytest.raises(DataError, match="row 1 does not have the judge's format"):
        win_rates.read_alpaca_eval(alpaca(tmp_path / "a.json", [preference]))
    with pytest.raises(DataError, match="row 1 does not have the judge's format"):
        win_rates.read_arena_hard(arena(tmp_path, ("A>A", "A=B")))


def test_a_folder_without_judgments_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no `model_judgment"):
        win_rates.read_arena_hard(tmp_path)


def test_win_rates_from_the_command_line_reach_the_page(tmp_path: Path) -> None:
    path = alpaca(tmp_path / "a.json", [1.0, 2.0, 1.5])
    assert (
        run("evaluate", "--verdicts", path, "--on", "alpacaeval", "--out", tmp_path / "results")
        == 0
    )
    checkpoints = read_json(tmp_path / "results" / "metrics.json")["checkpoints"]
    assert checkpoints["mine"]["win_rates"]["alpacaeval"]["win_rate"] == 0.5
    assert run("report", tmp_path / "results", "--out", tmp_path / "r.html") == 0
    assert "Win rates: results" in (tmp_path / "r.html").read_text()
