"""Sudden drops of a training loss are detected, with few false alarms."""

import numpy as np

from worldpm.curves import sudden_drops
from worldpm.curves.forms import Array

NOISE = 0.02


def training(steps: int, *, drop: float = 0.0, at: int = 0, seed: int = 0) -> tuple[Array, Array]:
    """A plateau that ends in a smooth fall, with noise and optionally a drop with a spike of the
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


def test_at_most_four_of_two_hundred_smooth_runs_raise_an_alarm() -> None:
    alarms = sum(bool(sudden_drops.find(*training(600, seed=seed))) for seed in range(200))
    assert alarms <= 4


def test_a_drop_is_reported_with_its_step_size_and_spike() -> None:
    (drop,) = sudden_drops.find(*training(1500, drop=0.1, at=900))
    assert drop.is_epiphany
    assert drop.steps.low <= 901 <= drop.steps.high
    assert drop.interval.low < 0.1 < drop.interval.high


def test_a_drop_without_a_spike_is_not_an_epiphany() -> None:
    losses, norms = training(1500, drop=0.1, at=900)
    norms[890:910] = np.median(norms)
    assert [drop.is_epiphany for drop in sudden_drops.find(losses, norms)] == [False]


def test_a_run_that_is_too_short_has_no_drop() -> None:
    assert sudden_drops.find(*training(40, drop=0.3, at=20)) == []


def test_constant_losses_have_no_drop() -> None:
    for value in np.linspace(0.1, 1.0, 200):
        assert sudden_drops.find(np.full(400, value), np.ones(400)) == []


def test_a_watch_reports_the_drop_once_half_a_window_later() -> None:
    losses, norms = training(1500, drop=0.1, at=900)
    watch = sudden_drops.Watch(1500)
    reports = {}
    for step, (loss, norm) in enumerate(zip(losses, norms, strict=True), start=1):
        drop = watch.add(step, loss, norm)
        if drop is not None:
            reports[step] = drop

    ((step, drop),) = reports.items()
    assert abs(drop.step - 901) <= 20
    assert 901 < step <= 901 + 2 * sudden_drops.half_width(1500)
