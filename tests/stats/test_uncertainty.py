"""Intervals over clusters."""

import math

import numpy as np
import pytest

from worldpm.stats.uncertainty import cluster_sums, clustered_interval, holm, paired_difference


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
    assert difference.p_value == pytest.approx(2 / 2**8, abs=0.004)
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
