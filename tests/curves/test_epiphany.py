"""Sudden drops of a training loss are found, and not where there are none."""

import numpy as np

from worldpm.curves import sudden_drops
from worldpm.curves.forms import Array

NOISE = 0.02


def training(steps: int, *, drop: float = 0.0, at: int = 0, seed: int = 0) -> tuple[Array, Array]:
    """A plateau that ends in a smooth fall, noise, and if asked for a drop with a spike of the
    gradient."""
    generator = np.random.default_rng(seed)
    t = np.arange(1, steps + 1)
    turn, power = generator.uniform(0.15, 0.6) * steps, generator.uniform(1, 4)
    losses = 0.3 + 0.39 / (1 + (t / turn) ** power) + generator.normal(0, NOISE, steps)
    norms = np.exp(generator.normal(0, 0.2, steps))
    if drop:
        losses[at:] -= drop
        norms[at - 2 : at + 2] *= 4
    return losses, norms


def test_of_two_hundred_smooth_runs_at_most_four_raise_an_alarm() -> None:
    alarms = sum(bool(sudden_drops.find(*training(600, seed=seed))) for seed in range(200))
    assert alarms <= 4


def test_a_drop_is_found_with_its_place_size_and_spike() -> None:
    found = sudden_drops.find(*training(1500, drop=0.1, at=900))
    assert len(found) == 1
    assert found[0].is_epiphany
    assert found[0].steps.low <= 901 <= found[0].steps.high
    assert found[0].interval.low < 0.1 < found[0].interval.high


def test_a_drop_without_a_spike_is_no_epiphany() -> None:
    losses, norms = training(1500, drop=0.1, at=900)
    norms[890:910] = np.median(norms)
    assert [one.is_epiphany for one in sudden_drops.find(losses, norms)] == [False]


def test_a_run_too_short_to_tell_has_none() -> None:
    assert sudden_drops.find(*training(40, drop=0.3, at=20)) == []


def test_losses_that_are_all_alike_have_no_drop() -> None:
    for value in np.linspace(0.1, 1.0, 200):
        assert sudden_drops.find(np.full(400, value), np.ones(400)) == []


def test_a_watch_tells_of_the_drop_once_half_a_window_later() -> None:
    losses, norms = training(1500, drop=0.1, at=900)
    watch = sudden_drops.Watch(1500)
    told = {
        step: seen
        for step in range(1, 1501)
        if (seen := watch.add(step, losses[step - 1], norms[step - 1]))
    }
    assert len(told) == 1
    ((step, seen),) = told.items()
    assert abs(seen.step - 901) <= 20
    assert 901 < step <= 901 + 2 * sudden_drops.half_width(1500)
