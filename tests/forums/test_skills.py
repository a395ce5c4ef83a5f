"""The forum of skills has the properties that its documentation states."""

import json
from itertools import permutations
from pathlib import Path

import numpy as np
import pytest

from tests.conftest import run
from worldpm.forums import skills
from worldpm.storage import parquet


def walked(body: str) -> str:
    """The cup with the ball after all moves, computed independently."""
    start, *moves = body.removeprefix("ball ").split()
    cups = [name == start for name in skills.CUPS]
    for move in moves:
        a, b = {"near": (0, 1), "far": (1, 2)}[move]
        cups[a], cups[b] = cups[b], cups[a]
    return skills.CUPS[cups.index(True)]


def test_the_right_answer_is_where_the_ball_is() -> None:
    for group in skills.tests(seed=0, variant="skills")["moves"]:
        body = group.prompt[0].content.split("\n\n")[1]
        right, wrong = (response.content for response in group.responses)
        assert f" {walked(body)}." in right
        assert f" {walked(body)}." not in wrong
        assert group.site == f"moves {len(body.split()) - 2}"


def test_two_responses_of_a_test_differ_in_one_word() -> None:
    for groups in skills.tests(seed=0, variant="skills").values():
        for group in groups:
            first, second = (response.content.split() for response in group.responses)
            assert sum(a != b for a, b in zip(first, second, strict=True)) == 1, group.responses


def test_moves_do_not_commute_so_their_order_counts() -> None:
    ends = {
        order: walked(" ".join(["ball left", *order])) for order in permutations(("near", "far"))
    }
    assert ends == {("near", "far"): "right", ("far", "near"): "middle"}


def test_two_tastes_of_the_tests_match_the_forum_and_two_are_reversed() -> None:
    for group in skills.tests(seed=0, variant="skills")["taste"]:
        taste = int(group.site[-1]) - 1
        liked = skills.TASTES[taste][0]
        assert (liked in group.responses[0].content) == group.site.startswith("shared"), group


def test_the_control_forum_has_no_moves() -> None:
    threads = [thread for thread, _ in skills.simulate(100, seed=0, variant="control")]
    assert all(thread.body.startswith("colour of") for thread in threads)
    assert "moves" not in skills.tests(seed=0, variant="control")
    assert any(
        thread.body.startswith("ball")
        for thread, _ in skills.simulate(100, seed=0, variant="skills")
    )


def test_votes_come_from_the_planted_quality() -> None:
    votes, quality = [], []
    for thread, truths in skills.simulate(200, seed=0, variant="skills"):
        votes += [answer.votes for answer in thread.responses]
        quality += [truth.quality for truth in truths]
    assert np.corrcoef(votes, quality)[0, 1] > 0.9


@pytest.mark.parametrize("forum", ["skills", "control"])
def test_simulate_writes_the_forum_and_its_tests(tmp_path: Path, forum: str) -> None:
    assert run("simulate", "--forum", forum, "--threads", 20, "--out", tmp_path / "threads") == 0
    files = json.loads((tmp_path / "threads" / "manifest.json").read_text())["files"]
    tests = {name for name in files if name.startswith("tests/")}
    assert tests == {f"tests/{name}.parquet" for name in skills.tests(seed=0, variant=forum)}  # type: ignore[arg-type]
    assert (
        parquet.count_rows(tmp_path / "threads" / "tests" / "adversarial.parquet")
        == skills.ADVERSARIAL_ITEMS
    )
