"""Confidence from margins: thresholds with the promised coverage, settings that act as documented,
and confidence from evaluation results."""

from pathlib import Path

import numpy as np
import pytest

from worldpm.errors import ConfigError
from worldpm.evaluation import calibrating
from worldpm.scoring.confidence import Confidence, Settings, StyleModel, choose, read_settings
from worldpm.stats import calibration

PLAIN = {"length": 10.0, "headers": 0.0, "lists": 0.0, "bold": 0.0, "code": 0.0, "links": 0.0}


def test_the_threshold_is_the_rank_counted_by_hand() -> None:
    margins = [
        3.0,
        2.0,
        1.0,
        0.5,
        -0.5,
        -1.0,
        4.0,
        5.0,
        6.0,
    ]  # sorted losses: -6 -5 -4 -3 -2 -1 -.5 .5 1
    assert calibration.sure_beyond(margins, 0.9) == 1.0  # ceil(10 * 0.9) = 9th
    assert calibration.sure_beyond(margins, 0.8) == 0.5
    assert calibration.sure_beyond(margins, 0.5) == 0.0  # the 5th is -2: every pair is decided
    assert calibration.sure_beyond(margins, 0.95) is None  # ten pairs would be needed
    assert calibration.sure_beyond([], 0.9) is None


def test_wrong_decisions_are_as_rare_as_the_level_promises() -> None:
    generator = np.random.default_rng(0)
    wrong = []
    for _ in range(400):
        margins = generator.normal(0.7, 1.0, 120)
        beyond = calibration.sure_beyond(margins.tolist(), 0.9)
        assert beyond is not None
        wrong.append(float(np.mean(generator.normal(0.7, 1.0, 200) < -beyond)))
    assert np.mean(wrong) <= 0.102
    assert np.mean(wrong) > 0.08  # few wrong decisions, but not because there are few decisions


def test_without_weights_choice_follows_rewards_and_with_them_the_documented_term() -> None:
    known = Confidence(temperature=2.0, style=StyleModel(0.8, {"length": 1.5}))
    counts = [{**PLAIN, "length": 30.0}, {**PLAIN, "length": 10.0}]
    plain = choose(known, [1.0, 1.0], counts, Settings())
    assert plain.probabilities == [[0.5, 0.5], [0.5, 0.5]]
    assert plain.ranking == [0, 1]
    weighed = choose(known, [1.0, 0.0], counts, Settings(weights={"length": -4.0}))
    log_odds = 0.8 * 1.0 - 4.0 * (30 - 10) / (30 + 10)
    assert weighed.probabilities[0][1] == pytest.approx(1 / (1 + np.exp(-log_odds)))
    assert weighed.ranking == [1, 0]
    assert weighed.terms["length"][1][0] == pytest.approx(2.0)
    assert known.probabilities([1.0, 0.0])[0][1] == pytest.approx(1 / (1 + np.exp(-0.5)))


def test_weights_move_the_margins_that_can_be_decided() -> None:
    # the worst of the 9 judged margins is -2: so margins up to 2 are ties at a level of 0.9
    known = Confidence(
        temperature=2.0,
        margins=[5.0] * 8 + [-2.0],
        style=StyleModel(0.5, {}),
    )
    counts = [{**PLAIN, "length": 30.0}, {**PLAIN, "length": 10.0}]

    def is_decided(margin: float, weight: float) -> bool:
        settings = Settings(weights={"length": weight} if weight else {})
        can_tell = choose(known, [margin, 0.0], counts, settings).can_tell
        assert can_tell is not None
        assert can_tell[0][1] == can_tell[1][0]
        return can_tell[0][1]

    # the lengths differ by (30 - 10) / (30 + 10) = 0.5, and one logit of margin is 0.5 log odds
    assert [is_decided(2.1, 0), is_decided(1.9, 0)] == [True, False]
    assert [is_decided(1.9, 0.2), is_decided(2.1, -0.2)] == [True, False]
    assert [is_decided(1.0, -3.0), is_decided(1.0, -2.9)] == [False, False]
    assert is_decided(1.0, -3.1)  # the other response is ahead by more than 2

    no_weights = choose(known, [2.1, 0.3], counts, Settings())
    assert no_weights.can_tell == known.can_tell([2.1, 0.3], 0.9)
    assert choose(Confidence(), [9.0, 0.0], counts, Settings()).can_tell is None


def test_averages_rank_as_the_ranking_does() -> None:
    generator = np.random.default_rng(0)
    rings = 0
    for _ in range(300):
        rewards = generator.normal(0, 2, 4).tolist()
        lengths = generator.integers(1, 200, 4)
        counts = [{**PLAIN, "length": float(length)} for length in lengths]
        choice = choose(Confidence(), rewards, counts, Settings(weights={"length": 6.0}))
        averages = [choice.averages[index] for index in choice.ranking]
        assert averages == sorted(averages, reverse=True)

        means = [(sum(choice.probabilities[index]) - 0.5) / 3 for index in choice.ranking]
        rings += means != sorted(means, reverse=True)
    assert rings  # means of probabilities have another order

    two = Confidence(temperature=2.0)
    assert two.averages([1.0, 0.0])[0] == pytest.approx(two.probability(1.0))
    assert (two.averages([]), two.averages([3.0])) == ([], [0.5])


def test_responses_outside_a_range_rank_last_with_any_rewards() -> None:
    counts = [PLAIN, {**PLAIN, "headers": 9.0}]
    choice = choose(Confidence(), [0.0, 50.0], counts, Settings(ranges={"headers": (0, 3)}))
    assert choice.ranking == [0, 1]
    assert choice.outside == [[], ["headers is 9, allowed are 0 to 3"]]


def test_no_responses_and_one_response_are_fine() -> None:
    assert choose(Confidence(), [], [], Settings()).ranking == []
    assert choose(
        Confidence(), [2.0], [PLAIN], Settings(weights={"length": 1.0})
    ).probabilities == [[0.5]]


def test_settings_are_read_from_arguments() -> None:
    settings = read_settings(["length=20:400"], ["bold=-0.5"])
    assert (settings.ranges, settings.weights) == ({"length": (20.0, 400.0)}, {"bold": -0.5})
    for ranges, weights in (
        (["length=20"], []),
        ([], ["length=1:2"]),
        ([], ["size=1"]),
        ([], ["bold=nan"]),
        (["length"], []),
    ):
        with pytest.raises(ConfigError, match="does not have the form FEATURE="):
            read_settings(ranges, weights)


def test_the_pair_of_a_prompt_is_drawn_at_random() -> None:
    prompts = [f"q{number}" for number in range(300) for _ in range(3)]
    drawn = calibrating._one_a_prompt(prompts, [0.0, 1.0, 2.0] * 300)
    counts = [drawn.count(margin) for margin in (0.0, 1.0, 2.0)]
    assert sum(counts) == 300
    assert min(counts) > 70
    assert drawn == calibrating._one_a_prompt(prompts, [0.0, 1.0, 2.0] * 300)


def test_results_of_an_evaluation_give_temperature_thresholds_and_style(road: Path) -> None:
    confidence = calibrating.confidence_of(road / "results", "checkpoint")
    assert confidence.temperature is not None
    assert confidence.temperature > 0
    assert confidence.style is not None
    assert len(confidence.margins) >= 20
    rewards = [0.0, 1e6]
    decided = confidence.can_tell(rewards, 0.8)
    assert decided is not None
    assert decided[0][1]
    assert not decided[0][0]
    with pytest.raises(ConfigError, match="contains results of checkpoint, not of other"):
        calibrating.confidence_of(road / "results", "other")
    with pytest.raises(ConfigError, match="same --quantize"):
        calibrating.confidence_of(road / "results", "checkpoint", quantize="int8")
