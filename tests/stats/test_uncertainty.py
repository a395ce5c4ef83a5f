"""Intervals over clusters."""

import math
import time

import numpy as np
import pytest

from worldpm.stats import sign_flips
from worldpm.stats.uncertainty import (
    Array,
    PairedJudges,
    cluster_sums,
    clustered_interval,
    false_discovery,
    holm,
    paired_difference,
)


def test_independent_coins_give_the_binomial_interval() -> None:
    credit = np.array([1.0] * 60 + [0.0] * 40)
    low, high = clustered_interval(credit, np.ones(100), np.arange(100))
    reach = 1.96 * math.sqrt(0.6 * 0.4 / 100)
    assert low == pytest.approx(0.6 - reach, abs=0.015)
    assert high == pytest.approx(0.6 + reach, abs=0.015)


def test_copies_of_a_cluster_add_no_certainty() -> None:
    credit = np.array([1.0] * 60 + [0.0] * 40)
    single = clustered_interval(credit, np.ones(100), np.arange(100))
    triple = clustered_interval(np.repeat(credit, 3), np.ones(300), np.repeat(np.arange(100), 3))
    assert triple == pytest.approx(single, abs=1e-9)


def test_the_same_seed_gives_the_same_interval() -> None:
    values, clusters = np.random.default_rng(1).random(50), np.arange(50) % 10
    assert clustered_interval(values, np.ones(50), clusters, seed=3) == clustered_interval(
        values, np.ones(50), clusters, seed=3
    )


def test_one_cluster_has_no_interval() -> None:
    assert all(math.isnan(end) for end in clustered_interval([1.0, 0.0], [1.0, 1.0], ["a", "a"]))


def test_cluster_sums_weigh_the_values() -> None:
    numerators, denominators = cluster_sums([1.0, 0.0, 1.0], [0.5, 0.5, 2.0], ["b", "b", "a"])
    assert numerators.tolist() == [2.0, 0.5]
    assert denominators.tolist() == [2.0, 1.0]


def test_a_paired_difference_by_hand() -> None:
    first, second = np.array([1.0] * 8 + [0.0] * 2), np.array([0.0] * 8 + [0.0] * 2)
    difference = paired_difference(first, second, np.ones(10), np.arange(10))

    assert difference.estimate == 0.8
    # all eight prompts that differ do so in one direction
    assert difference.p_value == pytest.approx(2 / 2**8)
    assert difference.interval.low > 0.4
    assert difference.detectable == pytest.approx(2.8016 * math.sqrt(0.16 / 10), rel=0.05)


def test_one_prompt_shows_no_difference_of_judges() -> None:
    difference = paired_difference([1.0, 1.0], [0.0, 0.0], np.ones(2), ["a", "a"])
    assert difference.p_value == 1.0
    assert math.isnan(difference.detectable)


def test_equal_judges_are_called_different_in_about_five_of_a_hundred_cases() -> None:
    generator = np.random.default_rng(0)
    called = 0
    for _ in range(300):
        first, second = generator.random((2, 60)) < 0.7
        difference = paired_difference(first, second, np.ones(60), np.arange(60), resamples=500)
        called += difference.p_value < 0.05
    assert 3 <= called <= 27


def test_holm_by_hand() -> None:
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.9, 0.5]) == [1.0, 1.0]
    assert holm([]) == []


def test_false_discovery_by_hand() -> None:
    # 0.01 x 4 / 1, 0.02 x 4 / 2, 0.03 x 4 / 3, 0.5
    assert false_discovery([0.5, 0.01, 0.03, 0.02]) == pytest.approx([0.5, 0.04, 0.04, 0.04])
    assert false_discovery([]) == []


def test_signs_of_few_terms_are_enumerated_and_of_equal_terms_counted() -> None:
    # of 8 signs, only +++ and --- give 6 or more
    assert sign_flips.p_value(np.array([1.0, 2.0, 3.0])) == pytest.approx(2 / 8)
    # +-1 +-2 +-3 gives 4 or more in size for +++, -++ and their opposites
    assert sign_flips.p_value(np.array([-1.0, 2.0, 3.0, 0.0])) == pytest.approx(4 / 8)
    # 2 P(at least 60 of 100 coins) from tables
    terms = np.repeat([1.0, -1.0], [60, 40])
    assert sign_flips.p_value(terms) == pytest.approx(0.0569, abs=5e-5)
    assert sign_flips.p_value(np.ones(34)) == pytest.approx(2.0**-33)
    assert sign_flips.p_value(np.array([1.0, -1.0])) == sign_flips.p_value(np.zeros(3)) == 1.0
    # never 0, even where the number is too small to be written
    assert sign_flips.p_value(np.ones(5000)) > 0


@pytest.mark.parametrize("sizes", ["fractions", "halves", "thirds"])
def test_the_saddlepoint_is_near_the_enumeration_far_into_the_tail(sizes: str) -> None:
    generator = np.random.default_rng(0)
    for share in (0.6, 0.75, 0.9):
        for _ in range(5):
            terms = {
                "fractions": generator.uniform(0.2, 1, 20),
                "halves": generator.choice([0.5, 1.0], 20),
                "thirds": generator.choice([1 / 3, 2 / 3, 1.0], 20),
            }[sizes] * np.where(generator.random(20) < share, 1, -1)
            observed, most = abs(terms.sum()), np.abs(terms).sum()
            if not 0.05 * most < observed < 0.85 * most:
                continue
            exact = sign_flips._enumerated(np.abs(terms), observed)
            near = 2 * sign_flips._upper_tail(np.abs(terms), observed)
            assert near == pytest.approx(exact, rel=0.15), (exact, near)


@pytest.mark.parametrize(
    ("large", "small"),
    [
        (np.full(5, 100.3), -np.linspace(0.5, 1, 15)),
        (np.full(7, 50.0), -np.ones(13)),
        (np.array([30.0]), np.linspace(0.1, 3, 19) * (-1) ** np.arange(19)),
        (np.exp(np.linspace(-2, 4, 12)), -np.exp(np.linspace(-3, 1, 8))),
    ],
    ids=["few large", "whole numbers", "one large", "heavy tail"],
)
def test_sums_with_few_large_terms_are_counted_on_a_grid(large: Array, small: Array) -> None:
    terms = np.concatenate([large, small])
    exact = sign_flips._enumerated(np.abs(terms), abs(float(terms.sum())))
    assert sign_flips._on_a_grid(np.abs(terms), terms > 0) == pytest.approx(exact, rel=0.02)

    # two more small terms are too many to be enumerated; the chance hardly changes
    more = np.concatenate([terms, np.full(2, 1e-6)])
    assert sign_flips.p_value(more) == pytest.approx(exact, rel=0.05)


def test_a_single_heavy_prompt_does_not_make_an_interval_short() -> None:
    generator = np.random.default_rng(0)
    inside = 0
    for _ in range(200):
        sizes = [100, *[2] * 19]
        skill = np.repeat(generator.beta(1.05, 0.45, 20), sizes)
        right = (generator.random(len(skill)) < skill).astype(float)
        low, high = clustered_interval(right, np.ones(len(right)), np.repeat(range(20), sizes))
        inside += low <= 0.7 <= high
    assert inside >= 186


def test_always_right_against_always_wrong_is_significant_among_many_models() -> None:
    judges = PairedJudges.of(np.tile(np.arange(34.0)[:, None] % 2, 60), np.ones(60), range(60))
    p_values = [
        judges.difference(first, second).p_value
        for first in range(34)
        for second in range(first + 1, 34)
    ]
    assert min(holm(p_values)) < 1e-10
    assert max(holm(p_values)) == 1.0


def test_judges_together_get_the_differences_of_each_two() -> None:
    generator = np.random.default_rng(1)
    values = (generator.random((3, 80)) < 0.6).astype(float)
    weights, clusters = generator.uniform(0.5, 1, 80), np.repeat(np.arange(40), 2)
    together = PairedJudges.of(values, weights, clusters, resamples=500)
    alone = paired_difference(values[0], values[2], weights, clusters, resamples=500)
    of_both = together.difference(0, 2)
    assert of_both.interval == pytest.approx(alone.interval)
    assert (of_both.estimate, of_both.p_value) == pytest.approx((alone.estimate, alone.p_value))


def covered(
    generator: np.random.Generator, accuracy: float, prompts: int, *, kind: str, cases: int
) -> float:
    """The share of cases whose interval contains the true accuracy: four pairs a prompt with a
    correlation of 0.4 within prompts."""
    inside = 0
    for _ in range(cases):
        if kind == "beta":
            skill = generator.beta(1.5 * accuracy, 1.5 * (1 - accuracy), prompts)
            right = generator.random((prompts, 4)) < skill[:, None]
        else:
            common = generator.random((prompts, 1)) < accuracy
            alone = generator.random((prompts, 4)) < accuracy
            right = np.where(generator.random((prompts, 4)) < np.sqrt(0.4), common, alone)
        values, clusters = right.ravel().astype(float), np.repeat(np.arange(prompts), 4)
        low, high = clustered_interval(values, np.full(len(values), 0.25), clusters)
        inside += low <= accuracy <= high
    return inside / cases


@pytest.mark.parametrize(("prompts", "accuracy"), [(10, 0.8), (30, 0.95)])
def test_intervals_of_few_prompts_contain_the_true_accuracy(prompts: int, accuracy: float) -> None:
    generator = np.random.default_rng(0)
    share = covered(generator, accuracy, prompts, kind="beta", cases=300)
    assert 0.93 <= share <= 0.995


@pytest.mark.proof
@pytest.mark.parametrize("kind", ["beta", "copies"])
@pytest.mark.parametrize("accuracy", [0.6, 0.8, 0.95])
@pytest.mark.parametrize("prompts", [10, 30, 100])
def test_the_coverage_of_intervals_is_near_95_in_100(
    prompts: int, accuracy: float, kind: str
) -> None:
    generator = np.random.default_rng(prompts)
    share = covered(generator, accuracy, prompts, kind=kind, cases=2000)
    # 0.005 for the error of 2,000 cases
    assert 0.93 <= share <= 0.985, share


@pytest.mark.proof
def test_51_models_on_9000_prompts_are_compared_within_a_minute() -> None:
    generator = np.random.default_rng(0)
    ability = np.linspace(0.55, 0.85, 51)[:, None]
    values = (generator.random((51, 9000)) < ability).astype(float)
    started = time.process_time()
    judges = PairedJudges.of(values, np.ones(9000), range(9000))
    pairs = [(first, second) for first in range(51) for second in range(first + 1, 51)]
    p_values = [judges.difference(*pair).p_value for pair in pairs]
    assert time.process_time() - started < 60
    found = [low < 0.05 for low in holm(p_values)]
    more = [low < 0.05 for low in false_discovery(p_values)]
    assert len(pairs) == 1275
    assert 900 < sum(found) < sum(more) < 1275


def test_prompts_with_equal_values_have_the_exact_interval_or_none() -> None:
    alike = np.ones(12)

    # all of twelve: the share p whose p^12 is 2.5 %
    all_right = clustered_interval(alike, alike, np.arange(12))
    all_wrong = clustered_interval(0 * alike, alike, np.arange(12))
    assert all_right == pytest.approx((0.025 ** (1 / 12), 1.0))
    assert all_wrong == pytest.approx((0.0, 1 - 0.025 ** (1 / 12)))

    # no interval of ties, or of margins, which have no upper end
    for values, shares in ((0.5 * alike, True), (alike, False)):
        assert np.isnan(clustered_interval(values, alike, np.arange(12), shares=shares).low)


def test_judges_that_differ_equally_on_all_prompts_have_no_interval() -> None:
    equal = paired_difference(np.ones(12), np.ones(12), np.ones(12), np.arange(12))
    assert (equal.estimate, equal.p_value) == (0.0, 1.0)
    assert np.isnan([*equal.interval, equal.detectable]).all()
    assert paired_difference(np.ones(12), np.zeros(12), np.ones(12), np.arange(12)).p_value < 0.01
