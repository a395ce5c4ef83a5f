"""Verdicts on series over size and data together."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np

from worldpm.curves.forms import FORMS, Array, curve
from worldpm.curves.solver import LOG_SQUARES, Fit, fit
from worldpm.laws import evidence
from worldpm.laws.evidence import Points
from worldpm.laws.law import ByAxis, Evidence, Score, ends, finite
from worldpm.laws.verdicts import (
    CLEARLY_BETTER,
    NEGLIGIBLE_SLOPE,
    Finding,
    Shape,
    Verdict,
    by_plateau,
    by_turn,
    decades_of,
    fits_of,
    is_between,
    misses,
    percentiles,
    shortage_of,
    spread_of,
    turn_of,
)
from worldpm.stats.uncertainty import Interval

LEAST_FALL = 1e-4
"""Least exponent of a curve's fall along an axis that affects it. Coefficients are always positive,
so the exponent is not exactly 0 even without an effect."""
SINGULAR_CONDITION = 1e8
"""Condition number of a plane's normal equations above which its slopes are rounding errors."""
CONSTANT_P = 0.05
"""A constant describes the points if noise gives its misfit with at least this probability."""
FLAT = "neither size nor data changes it by more than a negligible amount"
SIZES_EACH_SIDE = 3
"""Least number of sizes on either side of a threshold."""
LEAST_STEEPNESS = 3.0
"""Least steepness of a threshold of size. At this steepness, the gate rises from one tenth to nine
tenths while the size grows by a factor of 4.3."""
RESAMPLES_OF_SIZES, RESAMPLES_OF_SLOPES = 4000, 1000
"""Number of draws for the intervals of means and slopes."""

FORMS_OF_PLANES: Mapping[str, Shape] = {
    "joint": "smooth",
    "saturating_joint": "smooth",
    "saturating_product": "smooth",
    "emergent": "gated",
    "turning_joint": "turning",
    "plateau_joint": "plateau",
}
"""The forms of a plane that a verdict compares, besides a constant."""
ONLY_BY_NOISE = ("turning_joint", "plateau_joint")
"""Forms that are compared only if the noise between runs is known."""
GATES = ("emergent", "saturating_joint")
"""Forms whose loss stays at ln 2 below a size, if they are steep: `gate_of` gives this size."""
SMOOTH = tuple(name for name, shape in FORMS_OF_PLANES.items() if shape == "smooth")


def judge(points: Points, *, of_loss: bool = True) -> Verdict:
    """The verdict on a series over N and D together; `of_loss` is False for errors. Each size is
    left out in turn, and predicted from the other sizes; likewise each amount of data.

    The noise between runs at equal N and D, or else between neighbours of a grid, judges the forms:
    a form is clearly better than another if its criterion is lower by CLEARLY_BETTER.

    Emergent: a form with a threshold, below which sizes learn nothing from data, is clearly better
    than every other form (with unknown noise: predicts left-out sizes better than every smooth
    form). At least three sizes are on either side of the threshold, and the interval of its
    steepness is above LEAST_STEEPNESS. Turns: a form that rises after its minimum over data is
    clearly better than every other, the minimum is within the amounts, and the interval of the rise
    is above LEAST_RISE. Saturates: a form that no longer falls above a size is clearly better than
    every other, and this size is within the sizes. Power law: the best smooth form predicts better
    than a constant, does not miss the points by more than noise explains, and both this form and a
    least-squares plane fall along each axis, by their intervals. No trend: the intervals of the
    slopes along both axes are within NEGLIGIBLE_SLOPE.
    """
    sizes, amounts = (np.sort(evidence.distinct_values(axis[None])[0]) for axis in points.x)
    numbers = Evidence(
        sizes=len(sizes),
        decades=decades_of(sizes),
        amounts=len(amounts),
        runs=len(np.unique(points.runs)),
    )
    obstacle = _obstacle(points, sizes, amounts)
    if obstacle is not None:
        return Verdict("not identified", obstacle, numbers)

    slopes = _slopes(points)
    constant = fit(FORMS["constant"], points.x, points.y, LOG_SQUARES)
    if slopes.are_negligible and _explains_all(constant, points):
        return Verdict("no trend", FLAT, replace(numbers, slopes=slopes.as_json()))

    contest = _contest(points, of_loss=of_loss)
    numbers = replace(numbers, forms=contest.scores())
    if contest.smooth is None:
        reason = "too few distinct points to compare the forms"
        return Verdict("not identified", reason, numbers)

    # Test emergence first, because a gated surface also falls along both axes.
    emergence = _emergence(points, contest)
    finding = _by_emergence(emergence, sizes)
    numbers = _with_emergence(numbers, emergence)
    if finding is None:
        finding, numbers = _by_shape(points, contest, numbers)
    if finding is None:
        effects = _effects(points, contest, contest.smooth, slopes)
        # A gate that is not steep falls smoothly, so it may describe the points too.
        described = contest.best_of((*SMOOTH, *GATES)) or contest.smooth
        finding = _by_effects(effects, contest.smooth, contest.misfits.get(described))
        numbers = _with_effects(numbers, effects)
    of_word = {"power law": contest.smooth, "turns": "turning_joint", "saturates": "plateau_joint"}
    drawn = of_word.get(finding.word, contest.best)
    return Verdict(finding.word, finding.reason, numbers, drawn or "constant")


@dataclass(frozen=True)
class Contest:
    """A comparison of the forms of a plane. The keys of all dicts are names of forms."""

    fits: dict[str, Fit]
    criteria: dict[str, float]
    """Akaike's criterion; infinite with too few points."""
    squared_errors: dict[str, Array]
    """Mean squared error of ln y of each size, predicted from the other sizes; not for forms that
    only known noise can favour."""
    amount_errors: dict[str, Array]
    """Mean squared error of ln y of each amount of data, predicted from the other amounts; only for
    a constant and smooth forms."""
    misfits: dict[str, evidence.Misfit]
    """Misfits beyond noise; empty if the noise between runs is unknown."""
    noise: evidence.Noise | None
    """None if unknown."""

    @property
    def smooth(self) -> str | None:
        """The best smooth form; None if none could be fitted."""
        fitted = (name for name in SMOOTH if name in self.fits)
        return min(fitted, key=self._rank, default=None)

    @property
    def best(self) -> str:
        """The best form."""
        return min(self.fits if self.misfits else self.squared_errors, key=self._rank)

    @property
    def winner(self) -> str | None:
        """The form that is clearly better than every other; None if there is none, or if the noise
        between runs is unknown."""
        if not self.misfits:
            return None
        first, second = sorted(self.fits, key=self.criteria.__getitem__)[:2]
        return first if self.is_clearly_better(first, second) else None

    def is_clearly_better(self, name: str, other: str) -> bool:
        """Whether a form's criterion is clearly lower than another's."""
        return self.criteria[name] + CLEARLY_BETTER < self.criteria[other]

    def best_of(self, names: Iterable[str]) -> str | None:
        """The form with the lowest criterion; None if none could be fitted."""
        fitted = (name for name in names if name in self.fits)
        return min(fitted, key=self.criteria.__getitem__, default=None)

    def _rank(self, name: str) -> float:
        # The criterion is reliable only if the noise is known.
        return self.criteria[name] if self.misfits else self.error(name)

    def error(self, name: str) -> float:
        """Root mean square error of ln y over left-out sizes."""
        return float(np.sqrt(self.squared_errors[name].mean()))

    def gain(self, name: str, baseline: str) -> Interval:
        """The interval of the baseline's squared errors minus the form's, over left-out sizes."""
        return _mean_interval(self.squared_errors[baseline] - self.squared_errors[name])

    def gain_over_amounts(self, name: str, baseline: str) -> Interval:
        """Like `gain`, over left-out amounts of data."""
        return _mean_interval(self.amount_errors[baseline] - self.amount_errors[name])

    def scores(self) -> dict[str, Score]:
        """The scores of all forms, for JSON."""
        return {name: self._score(name) for name in self.fits}

    def _score(self, name: str) -> Score:
        misfit = self.misfits.get(name)
        return Score(
            aicc=finite(self.criteria[name]),
            left_out_error=_root_mean(self.squared_errors.get(name)),
            left_out_amounts=_root_mean(self.amount_errors.get(name)),
            misfit=finite(misfit.excess) if misfit else None,
            misfit_p=finite(misfit.p) if misfit else None,
        )


def _explains_all(constant: Fit, points: Points) -> bool:
    """Whether noise explains all differences from a constant. Other forms need not be fitted then,
    which takes longest on flat points."""
    noise = evidence.noise_of(points, [constant])
    return noise is not None and evidence.lack_of_fit(constant, points, noise).p > CONSTANT_P


def _root_mean(squares: Array | None) -> float | None:
    return None if squares is None else finite(float(np.sqrt(squares.mean())))


def _contest(points: Points, *, of_loss: bool) -> Contest:
    # A constant has the same terms for any number of axes.
    fits = fits_of(points, ("constant", *FORMS_OF_PLANES), of_loss=of_loss)
    noise = evidence.noise_of(points, fits.values())
    # Amounts that round to the same hundredth of a decade are one.
    sizes, amounts = np.round(np.log10(points.x) * evidence.VALUES_A_DECADE)
    return Contest(
        fits=fits,
        criteria={name: evidence.criterion(fit, points, noise) for name, fit in fits.items()},
        squared_errors={
            name: evidence.left_out_errors(fit, points, sizes)
            for name, fit in fits.items()
            if name not in ONLY_BY_NOISE
        },
        amount_errors={
            name: evidence.left_out_errors(fit, points, amounts)
            for name, fit in fits.items()
            if name in ("constant", *SMOOTH)
        },
        misfits=evidence.misfits(fits, points, noise),
        noise=noise,
    )


def _obstacle(points: Points, sizes: Array, amounts: Array) -> str | None:
    """The reason why these points cannot identify a law for any losses; None if there is none."""
    for axis, values in (("size", sizes), ("data", amounts)):
        shortage = shortage_of(values)
        if shortage is not None:
            return f"{axis}: {shortage}"
    if evidence.are_collinear(points.x):
        return "size and data are collinear, so their effects cannot be separated"
    return None


@dataclass(frozen=True)
class Emergence:
    """The evidence for a threshold of size."""

    gain: Interval
    """Squared errors of the best smooth form minus those of the emergent form."""
    threshold: Interval | None = None
    """In parameters; None if no form with a threshold is better."""
    steepness: Interval | None = None
    """None if no form with a threshold is better."""


def _emergence(points: Points, contest: Contest) -> Emergence | None:
    """The evidence for emergence; None if the form could not be fitted."""
    if "emergent" not in contest.fits or contest.smooth is None:
        return None

    # The bootstrap needs a search for each draw, so run it only if a gate is better.
    gain = contest.gain("emergent", contest.smooth)
    gate = _better_gate(contest, gain)
    if gate is None:
        return Emergence(gain)

    threshold, steepness = gate_of(
        gate, spread_of(points, contest.fits[gate], contest.noise).theta
    ).T
    return Emergence(gain, percentiles(threshold), percentiles(steepness))


def _better_gate(contest: Contest, gain: Interval) -> str | None:
    """The form with a threshold that is better than all forms without one; None if none is.
    Without known noise, `gain` decides."""
    if not contest.misfits:
        return "emergent" if gain.low > 0 else None

    gate = contest.best_of(GATES)
    other = contest.best_of(name for name in contest.fits if name not in GATES)
    if gate is None or other is None or not contest.is_clearly_better(gate, other):
        return None
    return gate


def gate_of(form: str, theta: Array) -> Array:
    """The threshold of size and its steepness at settings of a form of GATES; the result has shape
    (B, 2)."""
    names = FORMS[form].parameters
    columns = {name: theta[:, index] for index, name in enumerate(names)}
    if form == "emergent":
        return np.stack([columns["N0"], columns["k"]], axis=1)
    # a N^-alpha = 1 at the threshold
    return np.stack([columns["a"] ** (1 / columns["alpha"]), columns["alpha"]], axis=1)


def _by_shape(
    points: Points, contest: Contest, numbers: Evidence
) -> tuple[Finding | None, Evidence]:
    """Whether the winner turns or saturates, with the evidence; None for other winners."""
    sizes, amounts = (np.sort(evidence.distinct_values(axis[None])[0]) for axis in points.x)
    if contest.winner == "turning_joint":
        turning = contest.fits["turning_joint"]
        spread = spread_of(points, turning, contest.noise)
        turn = turn_of(points, turning, spread, fall="B", exponent="beta")
        numbers = replace(numbers, turn=ends(turn.minimum), rise=ends(turn.rise))
        return by_turn(turn, amounts, "D"), numbers
    if contest.winner == "plateau_joint":
        start = spread_of(points, contest.fits["plateau_joint"], contest.noise).intervals["N0"]
        return by_plateau(start, sizes, "N"), replace(numbers, plateau=ends(start))
    return None, numbers


def _by_emergence(emergence: Emergence | None, sizes: Array) -> Finding | None:
    """The finding `emergent`; None if the series is not emergent."""
    if emergence is None or emergence.threshold is None or emergence.steepness is None:
        return None

    threshold = emergence.threshold
    steep = emergence.steepness.low > LEAST_STEEPNESS
    if not steep or not is_between(sizes, threshold, SIZES_EACH_SIDE):
        return None
    return Finding(
        "emergent",
        f"within the measured sizes and data, only sizes above {threshold.low:.3g} to"
        f" {threshold.high:.3g} learn the test",
    )


def _with_emergence(numbers: Evidence, emergence: Emergence | None) -> Evidence:
    if emergence is None:
        return numbers
    return replace(
        numbers,
        gain_of_emergent=ends(emergence.gain),
        threshold=ends(emergence.threshold) if emergence.threshold else None,
        steepness=ends(emergence.steepness) if emergence.steepness else None,
    )


class OfAxes(NamedTuple):
    """An interval along each axis of a plane."""

    N: Interval
    D: Interval

    @property
    def are_negligible(self) -> bool:
        """Whether both intervals of slopes are within NEGLIGIBLE_SLOPE."""
        return all(max(-low, high) < NEGLIGIBLE_SLOPE for low, high in self)

    def as_json(self) -> ByAxis:
        """The intervals, for JSON."""
        return ByAxis(N=ends(self.N), D=ends(self.D))


@dataclass(frozen=True)
class Effects:
    """The effects of size and data on the loss."""

    gain: Interval
    """Squared errors of a constant minus those of the best smooth form, over left-out sizes."""
    gain_over_amounts: Interval
    """The same over left-out amounts of data."""
    falls: OfAxes
    """Exponents of the smooth form's fall."""
    slopes: OfAxes
    """Slopes of the least-squares plane."""

    @property
    def falling(self) -> list[str]:
        """The axes along which both the form's fall and the plane's slope show a fall."""
        axes = zip(OfAxes._fields, self.falls, self.slopes, strict=True)
        return [name for name, fall, slope in axes if fall.low > LEAST_FALL and slope.high < 0]

    @property
    def is_flat(self) -> bool:
        """Whether no axis changes the loss by more than a negligible amount."""
        return self.slopes.are_negligible


def _effects(points: Points, contest: Contest, smooth: str, slopes: OfAxes) -> Effects:
    return Effects(
        gain=contest.gain(smooth, "constant"),
        gain_over_amounts=contest.gain_over_amounts(smooth, "constant"),
        falls=_falls(contest.fits[smooth], points, contest.noise),
        slopes=slopes,
    )


def _by_effects(effects: Effects, smooth: str, misfit: evidence.Misfit | None) -> Finding:
    """The finding from the effects of size and data, for a plane that is not emergent and neither
    turns nor saturates."""
    predicts = effects.gain.low > 0 and effects.gain_over_amounts.low > 0
    if predicts and len(effects.falling) == 2 and misfit is not None and misses(misfit):
        reason = (
            f"falls along both axes, but {smooth} misses it by {misfit.excess:.1%} more than noise"
            " explains"
        )
        return Finding("not identified", reason)
    if predicts and len(effects.falling) == 2:
        reason = (
            f"{smooth} predicts left-out sizes and amounts better than a constant, and falls along"
            " both axes"
        )
        return Finding("power law", reason)

    if effects.is_flat:
        return Finding("no trend", FLAT)

    if predicts and len(effects.falling) == 1:
        axis = effects.falling[0]
        reason = f"falls only with {axis}, so it does not follow a law of both axes"
        return Finding("not identified", reason)
    return Finding(
        "not identified",
        "no falling law predicts left-out sizes and amounts better than a constant, but there may"
        " still be a change",
    )


def _with_effects(numbers: Evidence, effects: Effects) -> Evidence:
    return replace(
        numbers,
        gain_of_smooth=ends(effects.gain),
        gain_over_amounts=ends(effects.gain_over_amounts),
        falls=effects.falls.as_json(),
        slopes=effects.slopes.as_json(),
    )


def _falls(fitted: Fit, points: Points, noise: evidence.Noise | None) -> OfAxes:
    """95 % intervals of the exponents of the curve's fall along N and D. Each is measured from the
    axis's least to its largest value, with the other axis at its largest value."""
    theta = spread_of(points, fitted, noise).theta
    if len(theta) == 0:
        unknown = Interval(np.nan, np.nan)
        return OfAxes(unknown, unknown)

    # The first two columns are low along one axis each; the third is high along both.
    least, most = points.x.min(axis=1), points.x.max(axis=1)
    starts = np.where(np.eye(2, dtype=np.bool_), least[:, None], most[:, None])
    corners = np.concatenate([starts, most[:, None]], axis=1)
    values = curve(fitted.form, theta, corners)[0]
    falls = np.log(values[:, :2] / values[:, 2:]) / np.log(most / least)
    return OfAxes(percentiles(falls[:, 0]), percentiles(falls[:, 1]))


def _slopes(points: Points) -> OfAxes:
    """95 % intervals of d ln y / d ln N and d ln y / d ln D, by least squares on resampled runs."""
    draws = evidence.resample(points, seed=0, resamples=RESAMPLES_OF_SLOPES)
    # Centre the axes, so that rounding errors do not grow with ln N.
    centred = np.log(points.x) - np.log(points.x).mean(axis=1, keepdims=True)
    design = np.stack([np.ones(len(points.y)), *centred], axis=1)
    weighted = np.swapaxes(draws.weights[:, :, None] * design, 1, 2)
    curvature = weighted @ design
    target = weighted @ np.log(points.y)[:, None]

    # A draw can hold a single size, or runs on a line.
    regular = np.linalg.cond(curvature) < SINGULAR_CONDITION
    slopes = np.linalg.solve(curvature[regular], target[regular])[:, 1:, 0]
    return OfAxes(percentiles(slopes[:, 0]), percentiles(slopes[:, 1]))


def _mean_interval(values: Array) -> Interval:
    """The 95 % interval of a mean over left-out sizes or amounts, by resampling them."""
    generator = np.random.default_rng(0)
    draws = generator.integers(0, len(values), size=(RESAMPLES_OF_SIZES, len(values)))
    return percentiles(values[draws].mean(axis=1))
