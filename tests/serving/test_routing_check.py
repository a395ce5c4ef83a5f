"""`worldpm route` sends rows to queues, and the numbers of its check equal those computed by
hand."""

import json
from pathlib import Path

import numpy as np
import pytest

from tests.conftest import REPOSITORY, run
from worldpm.errors import DataError
from worldpm.scoring.confidence import Confidence
from worldpm.serving.routing import Cost, RoutingRules
from worldpm.serving.rule_checks import LabelledRewards, check
from worldpm.storage.json_files import Json

RULES: Json = {
    "rules": [{"queue": "publish", "reward_at_least": 1.0}],
    "otherwise": "review",
    "costs": {"publish": {"wrong": 20}, "review": {"each": 1}},
}
PLAIN = Confidence()


def rules_of(tmp_path: Path, content: Json = RULES) -> RoutingRules:
    path = tmp_path / "rules.json"
    path.write_text(json.dumps(content))
    return RoutingRules.read(path)


def labelled(*rewards_and_queues: tuple[float, str]) -> list[LabelledRewards]:
    """One prompt with one response for each reward and queue."""
    return [
        LabelledRewards(f"p{i}", [reward], [queue])
        for i, (reward, queue) in enumerate(rewards_and_queues)
    ]


def test_shares_and_costs_are_those_counted_by_hand(tmp_path: Path) -> None:
    # three are published, one of them wrongly; of three that belong to publish, one is missed
    groups = labelled(
        (2.0, "publish"), (1.0, "publish"), (1.5, "review"), (0.5, "publish"), (0.0, "review")
    )
    result = check(rules_of(tmp_path), groups, PLAIN)
    publish, review = result.as_they_are.queues
    assert (publish.sent, publish.right, publish.precision, publish.recall) == (3, 3, 2 / 3, 2 / 3)
    assert (review.sent, review.right, review.precision, review.recall) == (2, 2, 0.5, 0.5)
    # one wrong at 20 and two of review at 1: 22 for five
    assert result.as_they_are.cost == pytest.approx(100 * 22 / 5)
    for queue in (publish, review):
        for share, ends in (
            (queue.precision, queue.precision_interval),
            (queue.recall, queue.recall_interval),
        ):
            assert ends is not None
            assert share is not None
            assert 0 <= ends.low <= share <= ends.high <= 1

    (sweep,) = result.sweeps
    (unchanged,) = [one for one in sweep.results if one.threshold == 1.0]
    assert unchanged.queues == result.as_they_are.queues
    sent = [one.queues[0].sent for one in sweep.results]
    assert sent == sorted(sent, reverse=True)


def test_the_cheapest_threshold_is_found_and_evaluated_on_other_prompts(tmp_path: Path) -> None:
    # responses above 0 belong to publish, and the file's threshold of 1 sends too few there
    rng = np.random.default_rng(0)
    rewards = rng.normal(size=400)
    groups = labelled(
        *((float(reward), "publish" if reward > 0 else "review") for reward in rewards)
    )
    (sweep,) = check(rules_of(tmp_path), groups, PLAIN).sweeps
    assert abs(sweep.cheapest) < 0.3
    best = min(sweep.results, key=lambda one: one.cost)
    assert best.threshold == sweep.cheapest
    assert sweep.cheapest_cost_elsewhere is not None
    assert best.cost <= sweep.cheapest_cost_elsewhere
    (unchanged,) = [one for one in sweep.results if one.threshold == 1.0]
    assert sweep.cheapest_cost_elsewhere < unchanged.cost


def test_a_rule_on_other_responses_is_swept_over_probabilities(tmp_path: Path) -> None:
    content = {**RULES, "rules": [{"queue": "publish", "preferred_to_others": 0.9}]}
    groups = [
        LabelledRewards(f"p{i}", [float(i % 3), 0.0], ["publish" if i % 3 else "review", None])
        for i in range(30)
    ]
    result = check(rules_of(tmp_path, content), groups, PLAIN)
    assert result.responses == result.prompts == 30
    (sweep,) = result.sweeps
    thresholds = [one.threshold or 0.0 for one in sweep.results]
    assert thresholds == sorted(thresholds)
    assert all(0.5 <= threshold <= 0.9 for threshold in thresholds)


def test_responses_of_one_prompt_are_not_separate_evidence(tmp_path: Path) -> None:
    alone = labelled(*[(2.0, "publish"), (2.0, "review")] * 20)
    together = [
        LabelledRewards(f"p{i}", [2.0] * 20, [queue] * 20)
        for i, queue in enumerate(["publish", "review"])
    ]
    widths = []
    for groups in (alone, together):
        ends = check(rules_of(tmp_path), groups, PLAIN).as_they_are.queues[0].precision_interval
        assert ends is not None
        widths.append(ends.high - ends.low)
    assert widths[1] > 2 * widths[0]


def test_one_prompt_gives_no_cost_on_others_and_ties_keep_the_threshold(tmp_path: Path) -> None:
    (sweep,) = check(rules_of(tmp_path), labelled((2.0, "publish")), PLAIN).sweeps
    assert sweep.cheapest_cost_elsewhere is None
    free = {**RULES, "costs": {}}
    (sweep,) = check(rules_of(tmp_path, free), labelled((2.0, "publish")), PLAIN).sweeps
    assert sweep.cheapest == 1.0


def test_costs_are_numbers_of_known_queues(tmp_path: Path) -> None:
    assert rules_of(tmp_path).costs == {"publish": Cost(0, 20), "review": Cost(1, 0)}
    for costs, message in (
        ({"publsh": {"wrong": 1}}, "which is not a queue"),
        ({"publish": {"wrong": -1}}, "numbers from 0"),
        ({"publish": {"rong": 1}}, "numbers from 0"),
        ({"publish": 3}, "numbers from 0"),
        ([], "numbers from 0"),
    ):
        with pytest.raises(DataError, match=message):
            rules_of(tmp_path, {**RULES, "costs": costs})


def test_rows_go_to_queues_and_labelled_rows_are_checked(
    road: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rules, rows, out = tmp_path / "rules.json", tmp_path / "rows.jsonl", tmp_path / "check.json"
    rules.write_text(json.dumps(RULES))
    content = [
        {"prompt": f"ticket {i}", "responses": ["a", "b"], "queues": ["publish", None], "id": i}
        for i in range(12)
    ]
    rows.write_text("\n".join(map(json.dumps, content)))
    capsys.readouterr()

    assert run("route", road / "checkpoint", rows, "--rules", rules) == 0
    routed = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [row["id"] for row in routed] == [*range(12)]
    for row in routed:
        expected = ["publish" if reward >= 1.0 else "review" for reward in row["rewards"]]
        assert row["queues"] == expected

    check_words = ("--rules", rules, "--check", rows, "--out", out)
    assert run("route", road / "checkpoint", *check_words) == 0
    printed = capsys.readouterr().out
    assert printed.startswith("12 labelled responses of 12 prompts")
    assert "cost of 100" in printed
    assert json.loads(out.read_text())["responses"] == 12


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"prompt": "a", "responses": ["b"]}, "Give 1, one for each response"),
        ({"prompt": "a", "responses": ["b"], "queues": ["x"]}, "'x' is not a queue"),
        ({"prompt": "a", "responses": ["b"], "queues": [["x"]]}, "is not a queue"),
        ({"prompt": "a", "responses": ["b"], "queues": [None]}, "labels no response"),
        ({"prompt": "a", "responses": ["b"], "queues": ["publish", "publish"]}, "Give 1"),
    ],
)
def test_wrong_labels_stop_the_run_with_their_line(
    road: Path, tmp_path: Path, row: Json, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    rules, rows = tmp_path / "rules.json", tmp_path / "rows.jsonl"
    rules.write_text(json.dumps(RULES))
    rows.write_text(json.dumps(row))
    assert run("route", road / "checkpoint", "--rules", rules, "--check", rows) == 2
    assert message in capsys.readouterr().err


def test_the_example_of_a_support_desk_runs(road: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = REPOSITORY / "runs" / "tickets"
    words = ("--rules", folder / "rules.json", "--check", folder / "labelled.jsonl")
    assert run("route", road / "checkpoint", *words) == 0
    printed = capsys.readouterr().out
    assert "rule 0, preferred_to_others: queue publish" in printed
    assert "| senior |" in printed
