"""The rules that all verdicts share. A verdict is a power law, emergence, a turn, a plateau, no
trend, or not identified: `lines` judges series over one axis, and `planes` series over size and
data.

Fixed rules decide the verdict, not the reader of a figure. Verdicts are given for losses and for
errors (1 - accuracy), which fall. An error is never emergent: the threshold in accuracy can cause
jumps that the loss does not have.
"""

import contextlib
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np

from worldpm.curves.forms import COIN_LOSS_NATS, FORMS, Array, curve
from worldpm.curves.solver import LOG_SQUARES, Fit, fit
from worldpm.laws import evidence
from worldpm.laws.evidence import Noise, Points, Spread
from worldpm.laws.law import Evidence, Word
from worldpm.stats.uncertainty import Interval

LEAST_VALUES = 4
"""Least number of distinct values of an axis for a law."""
LEAST_DECADES = 1.5
"""Least number of decades of an axis for a law."""
NEGLIGIBLE_SLOPE = 0.01
"""A loss that changes by less than 2.3 % per decade has no trend."""
CLEARLY_BETTER = 6.0
"""A difference of Akaike's criterion at which the worse form has a twentieth of the better form's
support."""
MISFIT_P, MISFIT = 0.001, 0.01
"""A law must not miss the points by more than noise explains at this probability, if the
unexplained misfit is above 1 % of the loss."""
VALUES_EACH_SIDE = 2
"""Least number of values of an axis on either side of a turn or of the start of a plateau."""
LEAST_RISE = 0.005
"""A loss that rises by less than half a per cent after its minimum does not turn."""
RESAMPLES_OF_FORMS = 200
"""Number of draws for the intervals of a form. Each draw needs a search."""


class Finding(NamedTuple):
    """The verdict of one check, and its reason."""

    word: Word
    reason: str


@dataclass(frozen=True)
class Verdict:
    """The verdict as a word, its reason, and the numbers behind it."""

    word: Word
    reason: str
    """Text for readers, without its subject: the loss or the error."""
    evidence: Evidence
    form: str = "constant"
    """The form that figures draw: the form of the verdict or, if it has none, the form that
    describes the points best, by Akaike's criterion or, for a plane, on left-out sizes."""


Shape = Literal["constant", "smooth", "abrupt", "gated", "turning", "plateau"]
"""How a form falls: not at all, smoothly, with a bend, only above a threshold of size, with a rise
after its minimum, or only up to a size."""


def fits_of(points: Points, names: Iterable[str], *, of_loss: bool) -> dict[str, Fit]:
    """The forms that can be fitted, by name. Forms that start at ln 2 need losses, not errors."""
    fits = {}
    preference_loss = of_loss and points.y.min() < COIN_LOSS_NATS

    for name in names:
        form = FORMS[name]
        # Only preference losses start at ln 2, and they are below it at some point.
        if form.starts_at_coin_loss and not preference_loss:
            continue

        # A form with more parameters than distinct points cannot be fitted.
        with contextlib.suppress(ValueError):
            fits[name] = fit(form, points.x, points.y, LOG_SQUARES)
    return fits


def spread_of(points: Points, fitted: Fit, noise: Noise | None) -> Spread:
    """The spread of a form over resampled runs or, with the noise of neighbours, over points drawn
    from the form."""
    if noise is not None and noise.of_neighbours:
        draws = evidence.imitate(points, fitted, noise, seed=0, resamples=RESAMPLES_OF_FORMS)
    else:
        draws = evidence.resample(points, seed=0, resamples=RESAMPLES_OF_FORMS)
    return evidence.bootstrap(fitted, points, LOG_SQUARES, draws)


class Turn(NamedTuple):
    """A minimum along an axis, and the rise after it."""

    minimum: Interval
    """The x of the minimum."""
    rise: Interval
    """ln y at the largest x minus ln y at the minimum."""


def turn_of(points: Points, fitted: Fit, spread: Spread, *, fall: str, exponent: str) -> Turn:
    """The minimum of a form that has terms `fall x^-exponent + G x^gamma` along its last axis, at
    the largest value of the other axis. The ends are NaN with a single run."""
    theta = spread.theta
    if len(theta) == 0:
        unknown = Interval(np.nan, np.nan)
        return Turn(unknown, unknown)

    columns = dict(zip(fitted.form.parameters, theta.T, strict=True))
    falling, rising = columns[fall] * columns[exponent], columns["G"] * columns["gamma"]
    minima = (falling / rising) ** (1 / (columns[exponent] + columns["gamma"]))

    most = points.x.max(axis=1)
    rises = []
    for setting, minimum in zip(theta, np.minimum(minima, most[-1]), strict=True):
        ends_of_rise = np.stack([most, most], axis=1)
        ends_of_rise[-1, 0] = minimum
        lowest, last = curve(fitted.form, setting[None], ends_of_rise)[0][0]
        rises.append(float(np.log(last / lowest)))
    return Turn(percentiles(minima), percentiles(np.array(rises)))


def by_turn(turn: Turn, values: Array, axis: str) -> Finding | None:
    """The finding `turns`; None if the turn is not clear. `values` are those of the axis."""
    if not turn.rise.low > LEAST_RISE or not is_between(values, turn.minimum, VALUES_EACH_SIDE):
        return None
    low, high = turn.minimum
    return Finding(
        "turns",
        f"falls up to {axis} = {low:.3g} to {high:.3g}, and then rises by"
        f" {np.expm1(turn.rise.low):.1%} to {np.expm1(turn.rise.high):.1%}",
    )


def by_plateau(start: Interval, values: Array, axis: str) -> Finding | None:
    """The finding `saturates`; None if the start of the plateau is not clear."""
    if not is_between(values, start, VALUES_EACH_SIDE):
        return None
    return Finding(
        "saturates",
        f"falls up to {axis} = {start.low:.3g} to {start.high:.3g}, and no further",
    )


def is_between(values: Array, interval: Interval, each_side: int) -> bool:
    """Whether enough values are below the interval, and enough above it."""
    below, above = int((values < interval.low).sum()), int((values > interval.high).sum())
    return below >= each_side and above >= each_side


def misses(misfit: evidence.Misfit | None) -> bool:
    """Whether noise does not explain a misfit, and the misfit matters."""
    return misfit is not None and misfit.p < MISFIT_P and misfit.excess > MISFIT


def decades_of(values: Array) -> float:
    """Decades between the ends of ascending values; 0 for a single value."""
    return float(np.log10(values[-1] / values[0])) if len(values) > 1 else 0.0


def shortage_of(values: Array) -> str | None:
    """The reason why an axis with these ascending values is too short for a law; None if it is long
    enough."""
    if len(values) < LEAST_VALUES:
        return f"{len(values)} distinct values on the axis, but a law needs {LEAST_VALUES} or more"
    if decades_of(values) < LEAST_DECADES:
        return f"{decades_of(values):.2f} decades, but a law needs {LEAST_DECADES} or more"
    return None


def percentiles(values: Array) -> Interval:
    """The 95 % percentile interval."""
    low, high = np.quantile(values, [0.025, 0.975])
    return Interval(float(low), float(high))
