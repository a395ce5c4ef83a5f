"""What the points of a series say: a power law, emergence, no trend, or that they do not say it.

The words are given by rules that stand here, not by the reader of a figure. A verdict is about a
loss, never about accuracy alone, whose jumps are made by its threshold.
"""

from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

import numpy as np

from worldpm.curves.forms import COIN_LOSS_NATS, FORMS, Array, curve
from worldpm.curves.solver import LOG_SQUARES, Fit, fit
from worldpm.laws import evidence
from worldpm.laws.evidence import Points, Resamples
from worldpm.stats.uncertainty import Interval

Json = dict[str, Any]
Word = Literal["power law", "emergent", "no trend", "not identified"]

LEAST_SIZES, LEAST_DECADES = 4, 1.5
NEGLIGIBLE_SLOPE = 0.01
"""A loss that changes by less than 2.3 % a decade has no trend."""
LEAST_FALL = 1e-4
"""The power by which a curve falls along an axis that it heeds; coefficients are positive, so that
without an effect it is not 0."""
CLEARLY_BETTER = 6.0
"""A difference of Akaike's criterion that leaves the worse form a twentieth of the better one's
support."""
SINGULAR = 1e8
"""Condition of a plane's normal equations beyond which its slopes are rounding errors."""
SIZES_EACH_SIDE = 3
LEAST_STEEPNESS = 3.0
"""Of a threshold of size: nine tenths are open at 4.3 times the size at which one tenth is."""
SMOOTH, ABRUPT = ("power", "power_floor", "saturating"), ("broken", "sigmoid")
SMOOTH_PLANES = ("joint", "saturating_joint", "saturating_product")


class Verdict(NamedTuple):
    """A word, why, and the numbers behind it."""

    word: Word
    reason: str
    evidence: Json
    form: str = "constant"
    """The form that describes the points best, by Akaike's criterion; what a figure draws."""


def of_line(points: Points, draws: Resamples) -> Verdict:
    """A series over one axis.

    Too short an axis: not identified. A slope whose interval lies within NEGLIGIBLE_SLOPE: no
    trend. An interval that has 0 in it beyond that, or a rise: not identified. A fall: a power law
    if the best smooth form beats a constant on points held out and no abrupt form, which turns
    somewhere, is clearly better than it. One axis never shows emergence, which is that some sizes
    do not learn whatever the data.
    """
    places = np.sort(evidence.places(points.x)[0])
    decades = _decades(places)
    told: Json = {
        "places": len(places),
        "decades": decades,
        "runs": len(np.unique(points.runs)),
        "points": len(points.y),
    }
    if short := _too_short(len(places), decades):
        return Verdict("not identified", short, told)
    trend = evidence.slope(points, draws)
    told["slope"] = {
        "estimate": trend.estimate,
        "interval": list(trend.interval),
        "detectable": trend.detectable,
    }
    fits = _fits(points, ("constant", *SMOOTH, *ABRUPT))
    held_out = evidence.largest(points)
    told["forms"] = {
        name: {
            "aicc": evidence.aicc(found, points),
            "held_out_error": evidence.extrapolation_error(
                found.form, points, LOG_SQUARES, held_out
            ),
        }
        for name, found in fits.items()
    }
    smooth, abrupt = _best(told["forms"], SMOOTH), _best(told["forms"], ABRUPT)
    better = (
        smooth is not None
        and told["forms"][smooth]["held_out_error"] < told["forms"]["constant"]["held_out_error"]
    )
    best = _best(told["forms"], tuple(told["forms"])) or "constant"
    if smooth and better and not np.isfinite(told["forms"][smooth]["aicc"]):
        best = smooth
    by_slope = _by_slope(trend.interval)
    if by_slope is not None:
        return Verdict(by_slope[0], by_slope[1], told, best)
    if (
        abrupt
        and smooth
        and told["forms"][abrupt]["aicc"] + CLEARLY_BETTER < told["forms"][smooth]["aicc"]
    ):
        told["turn"] = list(
            turn := evidence.bootstrap(fits[abrupt], points, LOG_SQUARES, draws).intervals["x0"]
        )
        reason = (
            f"the loss falls, but no smooth form describes it: {abrupt} does, with its turn at"
            f" {turn.low:.3g} to {turn.high:.3g}"
        )
        return Verdict("not identified", reason, told, best)
    if better:
        return Verdict(
            "power law",
            f"{smooth} fits best, and foretells the largest better than a constant",
            told,
            best,
        )
    return Verdict(
        "not identified",
        "the loss falls, but no smooth form foretells the largest better than a constant",
        told,
        best,
    )


def of_plane(points: Points) -> Verdict:
    """A series over N and D together; whole sizes are left out and foretold from the others.

    Emergent: sizes below a threshold learn nothing from data, and this beats every smooth null, on
    sizes left out; the threshold lies between at least three sizes on either side, and it is a
    threshold: its steepness is surely above LEAST_STEEPNESS. A power law: the best smooth null
    beats a constant there, and both it and the plane of least squares surely fall along each axis.
    No trend: the intervals of the slopes along both axes lie within NEGLIGIBLE_SLOPE.
    """
    sizes, amounts = (np.sort(evidence.places(axis[None])[0]) for axis in points.x)
    told: Json = {
        "sizes": len(sizes),
        "decades": _decades(sizes),
        "amounts": len(amounts),
        "runs": len(np.unique(points.runs)),
    }
    for what, places in (("size", sizes), ("data", amounts)):
        if short := _too_short(len(places), _decades(places)):
            return Verdict("not identified", f"{what}: {short}", told)
    if evidence.go_together(points.x):
        return Verdict(
            "not identified",
            "size and data are one axis, so that their effects cannot be told apart",
            told,
        )
    fits = _fits(points, ("constant", *SMOOTH_PLANES, "emergent"))
    told["forms"] = {name: {"aicc": evidence.aicc(found, points)} for name, found in fits.items()}
    left_out = {
        name: evidence.left_out_errors(found, points, points.x[0]) for name, found in fits.items()
    }
    for name, errors in left_out.items():
        told["forms"][name]["left_out_error"] = float(np.sqrt(errors.mean()))
    if "joint" not in fits:
        return Verdict(
            "not identified", "too few different points for the forms to be told apart", told
        )
    best = min(fits, key=lambda name: told["forms"][name]["left_out_error"])
    null = min(
        fits.keys() & set(SMOOTH_PLANES), key=lambda name: told["forms"][name]["left_out_error"]
    )
    if "emergent" in fits and (
        reason := _emerges(
            points, fits["emergent"], left_out[null] - left_out["emergent"], sizes, told
        )
    ):
        return Verdict("emergent", reason, told, best)
    told["gain_of_smooth"] = list(
        against_constant := _mean_interval(left_out["constant"] - left_out[null])
    )
    told["falls"] = {
        axis: list(ends) for axis, ends in zip("ND", _falls(fits[null], points), strict=True)
    }
    told["slopes"] = {
        axis: list(ends) for axis, ends in zip("ND", _plane_slopes(points), strict=True)
    }
    falling = [
        axis
        for axis, (low, _) in told["falls"].items()
        if low > LEAST_FALL and told["slopes"][axis][1] < 0
    ]
    if against_constant.low > 0 and len(falling) == 2:
        return Verdict(
            "power law",
            f"{null} foretells sizes left out better than a constant, and falls along both axes",
            told,
            best,
        )
    if all(max(-low, high) < NEGLIGIBLE_SLOPE for low, high in told["slopes"].values()):
        return Verdict(
            "no trend",
            "neither size nor data changes the loss by more than a negligible amount",
            told,
            best,
        )
    if against_constant.low > 0 and len(falling) == 1:
        return Verdict(
            "not identified", f"the loss falls with {falling[0]} only: no law of both", told, best
        )
    reason = (
        "no law of falling loss foretells sizes left out better than a constant, and a change is"
        " not ruled out"
    )
    return Verdict("not identified", reason, told, best)


def _emerges(points: Points, found: Fit, gain: Array, sizes: Array, told: Json) -> str | None:
    """Why a series is emergent; None where it is not. The numbers go to `told`."""
    told["gain_of_emergent"] = list(interval := _mean_interval(gain))
    if interval.low <= 0:
        return None
    spread = evidence.bootstrap(
        found, points, LOG_SQUARES, evidence.resample(points, seed=0, resamples=200)
    )
    place, steepness = spread.intervals["N0"], spread.intervals["k"]
    told["place"], told["steepness"] = list(place), list(steepness)
    if not (_between(sizes, place) and steepness.low > LEAST_STEEPNESS):
        return None
    return (
        f"of the sizes and data seen, only sizes beyond {place.low:.3g} to {place.high:.3g}"
        " learn it"
    )


def _plane_slopes(points: Points) -> list[Interval]:
    """The 95 % intervals of d ln y / d ln N and d ln y / d ln D, by least squares on whole runs
    drawn with replacement."""
    draws = evidence.resample(points, seed=0, resamples=1000)
    centred = np.log(points.x) - np.log(points.x).mean(axis=1, keepdims=True)
    design = np.stack([np.ones(len(points.y)), *centred], axis=1)
    weighted = np.swapaxes(draws.weights[:, :, None] * design, 1, 2)
    curvature = weighted @ design
    enough = (
        np.linalg.cond(curvature) < SINGULAR
    )  # a draw may hold one size only, or runs that lie on a line
    slopes = np.linalg.solve(curvature[enough], (weighted @ np.log(points.y)[:, None])[enough])[
        :, 1:, 0
    ]
    return [Interval(*map(float, np.quantile(column, [0.025, 0.975]))) for column in slopes.T]


def _decades(places: Array) -> float:
    return float(np.log10(places[-1] / places[0])) if len(places) > 1 else 0.0


def _too_short(places: int, decades: float) -> str | None:
    if places < LEAST_SIZES:
        return f"{places} different places on the axis; a law needs {LEAST_SIZES} or more"
    return (
        f"{decades:.2f} decades; a law needs {LEAST_DECADES} or more"
        if decades < LEAST_DECADES
        else None
    )


def _by_slope(interval: Interval) -> tuple[Word, str] | None:
    low, high = interval
    if not low <= high:
        return "not identified", "too few runs: nothing tells chance from trend"
    if max(-low, high) < NEGLIGIBLE_SLOPE:
        return "no trend", f"the slope lies within {low:.3f} and {high:.3f}, which is negligible"
    if low > 0:
        return (
            "not identified",
            f"the loss rises (slope {low:.3f} to {high:.3f}); these are laws of falling losses",
        )
    if high >= 0:
        return "not identified", f"the slope may be 0 or as much as {low:.3f}: too few runs to say"
    return None


def _fits(points: Points, names: tuple[str, ...]) -> dict[str, Fit]:
    found = {}
    preference_loss = points.y.min() < COIN_LOSS_NATS
    for name in names:
        if COIN_LOSS_NATS in FORMS[name].fixed and not preference_loss:
            continue  # curves that begin at ln 2 say nothing of a loss that is never below it
        try:
            found[name] = fit(FORMS[name], points.x, points.y, LOG_SQUARES)
        except ValueError:  # more parameters than different points: the form cannot be judged
            continue
    return found


def _best(forms: Mapping[str, Json], names: tuple[str, ...]) -> str | None:
    """The form that the criterion prefers; where the points are too few for it, the one that
    foretells those held out best."""
    there = [name for name in names if name in forms]
    by = "aicc" if any(np.isfinite(forms[name]["aicc"]) for name in there) else "held_out_error"
    return min(
        (name for name in there if np.isfinite(forms[name][by])),
        key=lambda name: forms[name][by],
        default=None,
    )


def _mean_interval(values: Array) -> Interval:
    """The 95 % interval of a mean over sizes left out, by resampling them."""
    generator = np.random.default_rng(0)
    means = values[generator.integers(0, len(values), size=(4000, len(values)))].mean(axis=1)
    low, high = np.quantile(means, [0.025, 0.975])
    return Interval(float(low), float(high))


def _between(places: Array, turn: Interval) -> bool:
    """Whether enough sizes lie on either side of all of the interval."""
    return (
        int((places < turn.low).sum()) >= SIZES_EACH_SIDE
        and int((places > turn.high).sum()) >= SIZES_EACH_SIDE
    )


def _falls(found: Fit, points: Points) -> list[Interval]:
    """By what powers the curve falls along N and D, each from its least to its most where the other
    has its most: 95 % intervals."""
    theta = evidence.bootstrap(
        found, points, LOG_SQUARES, evidence.resample(points, seed=0, resamples=200)
    ).theta
    least, most = points.x.min(axis=1), points.x.max(axis=1)
    starts = np.where(
        np.eye(2, dtype=np.bool_), least[:, None], most[:, None]
    )  # column a starts low along axis a
    values = curve(found.form, theta, np.concatenate([starts, most[:, None]], axis=1))[0]
    falls = np.log(values[:, :2] / values[:, 2:]) / np.log(most / least)
    return [
        (
            Interval(*map(float, np.quantile(column, [0.025, 0.975])))
            if len(theta)
            else Interval(np.nan, np.nan)
        )
        for column in falls.T
    ]
