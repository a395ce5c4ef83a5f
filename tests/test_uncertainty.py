"""Intervals over clusters."""

import math

import numpy as np
import pytest

from worldpm.field.uncertainty import cluster_sums, clustered_interval


def test_independent_coins_give_the_binomial_interval() -> None:
    credit = np.array([1.0] * 60 + [0.0] * 40)
    low, high = clustered_interval(credit, np.ones(100), np.arange(100))
    half = 1.96 * math.sqrt(0.6 * 0.4 / 100)
    assert low == pytest.approx(0.6 - half, abs=0.015)
    assert high == pytest.approx(0.6 + half, abs=0.015)


def test_copies_of_a_cluster_add_no_certainty() -> None:
    credit = np.array([1.0] * 60 + [0.0] * 40)
    once = clustered_interval(credit, np.ones(100), np.arange(100))
    thrice = clustered_interval(np.repeat(credit, 3), np.ones(300), np.repeat(np.arange(100), 3))
    assert thrice == pytest.approx(once, abs=1e-9)


def test_the_same_seed_gives_the_same_interval() -> None:
    values, clusters = np.random.default_rng(1).random(50), np.arange(50) % 10
    assert clustered_interval(values, np.ones(50), clusters, seed=3) == clustered_interval(values, np.ones(50), clusters, seed=3)


def test_one_cluster_has_no_interval() -> None:
    assert all(math.isnan(end) for end in clustered_interval([1.0, 0.0], [1.0, 1.0], ["a", "a"]))


def test_cluster_sums_weigh_the_values() -> None:
    numerators, denominators = cluster_sums([1.0, 0.0, 1.0], [0.5, 0.5, 2.0], ["b", "b", "a"])
    assert numerators.tolist() == [2.0, 0.5]
    assert denominators.tolist() == [2.0, 1.0]
