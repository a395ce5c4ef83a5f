"""Verdicts on the points of a series: a power law, emergence, a turn, a plateau, no trend, or not
identified.

Fixed rules decide the verdict, not the reader of a figure. Verdicts are given for losses, not for
accuracies: the threshold in accuracy can cause jumps that the loss does not have.
"""

import contextlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

import numpy as np

from worldpm.curves.forms import COIN_LOSS_NATS, FORMS, Array, curve
from worldpm.curves.solver import LOG_SQUARES, Fit, fit
from worldpm.laws import evidence
from worldpm.laws.evidence import Points, Resamples, Slope
from worldpm.laws.law import ByAxis, Evidence, Score, Trend, Word, ends, finite
from worldpm.stats.uncertainty import Interval

LEAST_VALUES = 4
"""Least number of distinct values of an axis for a law."""
LEAST_DECADES = 1.5
"""Least number of decades of an axis for a law."""
NEGLIGIBLE_SLOPE = 0.01
"""A loss that changes by less than 2.3 % per decade has no trend."""
LEAST_FALL = 1e-4
"""Least exponent of a curve's fall along an axis that affects it. Coefficients are always positive,
so the exponent is not exactly 0 even without an effect."""
CLEARLY_BETTER = 6.0
"""A difference of Akaike's criterion at which the worse form has a twentieth of the better form's
support."""
SINGULAR_CONDITION = 1e8
"""Condition number of a plane's normal equations above which its slopes are rounding errors."""
MISFIT_P, MISFIT = 0.001, 0.01
"""A law must not miss the points by more than noise explains at this probability, if the
unexplained misfit is above 1 % of the loss."""
CONSTANT_P = 0.05
"""A constant describes the points if noise gives its misfit with at least this probability."""
FLAT = "neither size nor data changes the loss by more than a negligible amount"
SIZES_EACH_SIDE = 3
"""Least number of sizes on either side of a threshold."""
VALUES_EACH_SIDE = 2
"""Least number of values of an axis on either side of a turn or of the start of a plateau."""
LEAST_RISE = 0.005
"""A loss that rises by less than half a per cent after its minimum does not turn."""
LEAST_STEEPNESS = 3.0
"""Least steepness of a threshold of size. At this steepness, the gate rises from one tenth to nine
tenths while the size grows by a factor of 4.3."""
RESAMPLES_OF_SIZES, RESAMPLES_OF_SLOPES, RESAMPLES_OF_FORMS = 4000, 1000, 200
"""Number of draws for the intervals of a plane. Each draw of forms needs a search."""

Shape = Literal["constant", "smooth", "abrupt", "gated", "turning", "plateau"]
"""How a form falls: not at all, smoothly, with a bend, only above a threshold of size, with a rise
after its minimum, or only up to a size."""

LINE_FORMS: Mapping[str, Shape] = {
    "constant": "constant",
    "power": "smooth",
    "power_floor": "smooth",
    "saturating": "smooth",
    "broken": "abrupt",
    "sigmoid": "abrupt",
}
"""The forms of a line that a verdict compares."""
PLANE_FORMS: Mapping[str, Shape] = {
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
SMOOTH = tuple(name for name, shape in LINE_FORMS.items() if shape == "smooth")
ABRUPT = tuple(name for name, shape in LINE_FORMS.items() if shape == "abrupt")
SMOOTH_PLANES = tuple(name for name, shape in PLANE_FORMS.items() if shape == "smooth")


@dataclass(frozen=True)
class Verdict:
    """The verdict as a word, its reason, and the numbers behind it."""

    word: Word
    reason: str
    """Text for readers, part of a sentence."""
    evidence: Evidence
    form: str = "constant"
    """The form that describes the points best, by Akaike's criterion or, for a plane, on left-out
    sizes. Figures draw it."""


class Finding(NamedTuple):
    """The verdict of one check, and its reason."""

    word: Word
    reason: str


def of_line(points: Points, draws: Resamples) -> Verdict:
    """The verdict on a series over one axis.

    The verdict is "not identified" if the axis is too short. It is "no trend" if the interval of
    the slope is within NEGLIGIBLE_SLOPE. For any other interval that contains 0, and for a rise, it
    is "not identified". A fall is a power law if the best smooth form predicts held-out points
    better than a constant, and no abrupt form (a form with a turn) is clearly better. One axis
    cannot show emergence, because emergence means that some sizes learn from no amount of data.
    """
    amounts = np.sort(evidence.distinct_values(points.x)[0])
    numbers = Evidence(
        places=len(amounts),
        decades=_decades(amounts),
        runs=len(np.unique(points.runs)),
        points=len(points.y),
    )
    shortage = _shortage(amounts)
    if shortage is not None:
        return Verdict("not identified", shortage, numbers)

    trend = evidence.slope(points, draws)
    contest = _line_contest(points)
    numbers = replace(numbers, slope=_trend(trend), forms=contest.scores())

    # The turn of an abrupt form needs a bootstrap, so compute it only for a fall.
    finding = _by_slope(trend.interval)
    if finding is None:
        turn = _turn(contest, points, draws)
        finding = _by_forms(contest, turn)
        numbers = replace(numbers, turn=ends(turn) if turn else None)
    return Verdict(finding.word, finding.reason, numbers, contest.best)


def _trend(slope: Slope) -> Trend:
    return Trend(
        estimate=finite(slope.estimate),
        interval=ends(slope.interval),
        detectable=finite(slope.detectable),
    )


@dataclass(frozen=True)
class LineContest:
    """A comparison of the forms of a line. The keys of all dicts are names of forms."""

    fits: dict[str, Fit]
    aicc: dict[str, float]
    """Infinite with too few points."""
    errors: dict[str, float]
    """Mean relative error on the largest third; NaN if there are too few other points."""

    @property
    def smooth(self) -> str | None:
        """The best smooth form; None if none could be fitted."""
        return self._best_of(SMOOTH)

    @property
    def abrupt(self) -> str | None:
        """The best abrupt form; None if none could be fitted."""
        return self._best_of(ABRUPT)

    @property
    def smooth_predicts(self) -> bool:
        """Whether the best smooth form predicts the largest points better than a constant."""
        return self.smooth is not None and self.errors[self.smooth] < self.errors["constant"]

    @property
    def abrupt_is_clearly_better(self) -> bool:
        """Whether the best abrupt form is clearly better than the best smooth form."""
        if self.abrupt is None or self.smooth is None:
            return False
        return self.aicc[self.abrupt] + CLEARLY_BETTER < self.aicc[self.smooth]

    @property
    def best(self) -> str:
        """The form that describes the points best."""
        # With too few points for the smooth form's criterion, its predictions decide.
        if self.smooth and self.smooth_predicts and not np.isfinite(self.aicc[self.smooth]):
            return self.smooth
        return self._best_of(tuple(self.fits)) or "constant"

    def scores(self) -> dict[str, Score]:
        """The scores of all forms, for JSON."""
        return {
            name: Score(aicc=finite(self.aicc[name]), held_out_error=finite(self.errors[name]))
            for name in self.fits
        }

    def _best_of(self, names: Sequence[str]) -> str | None:
        """The form with the best criterion or, with too few points for the criterion, the form that
        predicts held-out points best."""
        fitted = [name for name in names if name in self.fits]
        usable = any(np.isfinite(self.aicc[name]) for name in fitted)
        by_name = self.aicc if usable else self.errors
        comparable = (name for name in fitted if np.isfinite(by_name[name]))
        return min(comparable, key=by_name.__getitem__, default=None)


def _line_contest(points: Points) -> LineContest:
    fits = _fits(points, LINE_FORMS)
    held_out = evidence.largest(points)
    return LineContest(
        fits=fits,
        aicc={name: evidence.aicc(fitted, points) for name, fitted in fits.items()},
        errors={
            name: evidence.extrapolation_error(fitted.form, points, LOG_SQUARES, held_out)
            for name, fitted in fits.items()
        },
    )


def _turn(contest: LineContest, points: Points, draws: Resamples) -> Interval | None:
    """The x at which the best abrupt form turns; None unless it is clearly better than every smooth
    form."""
    if contest.abrupt is None or not contest.abrupt_is_clearly_better:
        return None
    # In both abrupt forms, x0 is the x of the turn.
    spread = evidence.bootstrap(contest.fits[contest.abrupt], points, LOG_SQUARES, draws)
    return spread.intervals["x0"]


def _by_slope(interval: Interval) -> Finding | None:
    """The finding from the slope alone; None for a fall."""
    low, high = interval
    # With too few runs the ends are NaN, which compares as False.
    if not low <= high:
        return Finding("not identified", "too few runs to distinguish a trend from chance")

    if max(-low, high) < NEGLIGIBLE_SLOPE:
        reason = f"the slope is between {low:.3f} and {high:.3f}, which is negligible"
        return Finding("no trend", reason)

    if low > 0:
        rise = f"slope {low:.3f} to {high:.3f}"
        reason = f"the loss rises ({rise}), but laws describe falling losses"
        return Finding("not identified", reason)

    if high >= 0:
        reason = f"too few runs to decide: the slope may be 0, or as steep as {low:.3f}"
        return Finding("not identified", reason)
    return None


def _by_forms(contest: LineContest, turn: Interval | None) -> Finding:
    """The finding from the forms on a falling loss."""
    if turn is not None:
        reason = (
            f"the loss falls, but not smoothly: {contest.abrupt}, with a turn at {turn.low:.3g} to"
            f" {turn.high:.3g}, describes it clearly better"
        )
        return Finding("not identified", reason)

    if contest.smooth_predicts:
        reason = (
            f"{contest.smooth} fits best, and predicts the largest points better than a constant"
        )
        return Finding("power law", reason)

    return Finding(
        "not identified",
        "the loss falls, but no smooth form predicts the largest points better than a constant",
    )


def of_plane(points: Points) -> Verdict:
    """The verdict on a series over N and D together. Each size is left out in turn, and predicted
    from the other sizes; likewise each amount of data.

    If there are several runs at equal N and D, their noise judges the forms: a form is clearly
    better than another if its criterion is lower by CLEARLY_BETTER.

    Emergent: a form with a threshold, below which sizes learn nothing from data, is clearly better
    than every other form (without such runs: predicts left-out sizes better than every smooth
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
        decades=_decades(sizes),
        amounts=len(amounts),
        runs=len(np.unique(points.runs)),
    )
    obstacle = _obstacle(points, sizes, amounts)
    if obstacle is not None:
        return Verdict("not identified", obstacle, numbers)

    noise = evidence.replicates(points)
    if noise is not None and _is_constant(points, noise):
        slopes = _plane_slopes(points)
        numbers = replace(numbers, slopes=slopes.as_json())
        return Verdict("no trend", FLAT, numbers)

    contest = _plane_contest(points, noise)
    numbers = replace(numbers, forms=contest.scores())
    if contest.smooth is None:
        reason = "too few distinct points to compare the forms"
        return Verdict("not identified", reason, numbers)

    # Test emergence first, because a gated surface also falls along both axes.
    emergence = _emergence(points, contest)
    finding = _by_emergence(emergence, sizes)
    numbers = _with_emergence(numbers, emergence)
    if finding is None and contest.winner == "turning_joint":
        turn = _turn_of_plane(points, contest)
        finding = _by_turn(turn, amounts)
        numbers = replace(numbers, turn=ends(turn.amount), rise=ends(turn.rise))
    if finding is None and contest.winner == "plateau_joint":
        start = _spread(points, contest.fits["plateau_joint"]).intervals["N0"]
        finding = _by_plateau(start, sizes)
        numbers = replace(numbers, plateau=ends(start))
    if finding is None:
        effects = _effects(points, contest, contest.smooth)
        # A gate that is not steep falls smoothly, so it may describe the points too.
        described = contest.best_of((*SMOOTH_PLANES, *GATES)) or contest.smooth
        finding = _by_effects(effects, contest.smooth, contest.misfits.get(described))
        numbers = _with_effects(numbers, effects)
    return Verdict(finding.word, finding.reason, numbers, contest.best)


@dataclass(frozen=True)
class PlaneContest:
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

    @property
    def smooth(self) -> str | None:
        """The best smooth form; None if none could be fitted."""
        fitted = (name for name in SMOOTH_PLANES if name in self.fits)
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


def _is_constant(points: Points, noise: evidence.Replicates) -> bool:
    """Whether noise explains all differences, and the slopes along both axes are negligible. Other
    forms need not be fitted then, which takes longest on flat points."""
    constant = fit(FORMS["constant"], points.x, points.y, LOG_SQUARES)
    misfit = evidence.lack_of_fit(constant, points, noise)
    return misfit.p > CONSTANT_P and _plane_slopes(points).are_negligible


def _root_mean(squares: Array | None) -> float | None:
    return None if squares is None else finite(float(np.sqrt(squares.mean())))


def _plane_contest(points: Points, noise: evidence.Replicates | None) -> PlaneContest:
    # A constant has the same terms for any number of axes.
    fits = _fits(points, ("constant", *PLANE_FORMS))
    # Amounts that round to the same hundredth of a decade are one.
    sizes, amounts = np.round(np.log10(points.x) * evidence.VALUES_A_DECADE)
    return PlaneContest(
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
            if name in ("constant", *SMOOTH_PLANES)
        },
        misfits={}
        if noise is None
        else {name: evidence.lack_of_fit(fit, points, noise) for name, fit in fits.items()},
    )


def _obstacle(points: Points, sizes: Array, amounts: Array) -> str | None:
    """The reason why these points cannot identify a law for any losses; None if there is none."""
    for axis, values in (("size", sizes), ("data", amounts)):
        shortage = _shortage(values)
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


def _emergence(points: Points, contest: PlaneContest) -> Emergence | None:
    """The evidence for emergence; None if the form could not be fitted."""
    if "emergent" not in contest.fits or contest.smooth is None:
        return None

    # The bootstrap needs a search for each draw, so run it only if a gate is better.
    gain = contest.gain("emergent", contest.smooth)
    gate = _better_gate(contest, gain)
    if gate is None:
        return Emergence(gain)

    threshold, steepness = gate_of(gate, _spread(points, contest.fits[gate]).theta).T
    return Emergence(gain, _percentiles(threshold), _percentiles(steepness))


def _better_gate(contest: PlaneContest, gain: Interval) -> str | None:
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


def _spread(points: Points, fitted: Fit) -> evidence.Spread:
    """The spread of a form over resampled runs."""
    draws = evidence.resample(points, seed=0, resamples=RESAMPLES_OF_FORMS)
    return evidence.bootstrap(fitted, points, LOG_SQUARES, draws)


class Turn(NamedTuple):
    """A minimum over data, and the rise after it."""

    amount: Interval
    """Effective pairs at the minimum."""
    rise: Interval
    """ln y at the most data minus ln y at the minimum, at the largest size."""


def _turn_of_plane(points: Points, contest: PlaneContest) -> Turn:
    """The minimum over data of the turning form."""
    fitted = contest.fits["turning_joint"]
    theta = _spread(points, fitted).theta
    if len(theta) == 0:
        unknown = Interval(np.nan, np.nan)
        return Turn(unknown, unknown)

    columns = dict(zip(fitted.form.parameters, theta.T, strict=True))
    falling = columns["B"] * columns["beta"]
    rising = columns["G"] * columns["gamma"]
    turns = (falling / rising) ** (1 / (columns["beta"] + columns["gamma"]))

    size, most = points.x.max(axis=1)
    rises = []
    for setting, turn in zip(theta, np.minimum(turns, most), strict=True):
        minimum, last = curve(fitted.form, setting[None], np.array([[size, size], [turn, most]]))[
            0
        ][0]
        rises.append(float(np.log(last / minimum)))
    return Turn(_percentiles(turns), _percentiles(np.array(rises)))


def _by_turn(turn: Turn, amounts: Array) -> Finding | None:
    """The finding `turns`; None if the turn is not clear."""
    if not turn.rise.low > LEAST_RISE or not _is_between(amounts, turn.amount, VALUES_EACH_SIDE):
        return None
    return Finding(
        "turns",
        f"the loss falls up to {turn.amount.low:.3g} to {turn.amount.high:.3g} effective pairs, and"
        f" then rises by {np.expm1(turn.rise.low):.1%} to {np.expm1(turn.rise.high):.1%}",
    )


def _by_plateau(start: Interval, sizes: Array) -> Finding | None:
    """The finding `saturates`; None if the start of the plateau is not clear."""
    if not _is_between(sizes, start, VALUES_EACH_SIDE):
        return None
    return Finding(
        "saturates",
        f"the loss falls with size up to {start.low:.3g} to {start.high:.3g} parameters, and larger"
        " sizes are not better",
    )


def _by_emergence(emergence: Emergence | None, sizes: Array) -> Finding | None:
    """The finding `emergent`; None if the series is not emergent."""
    if emergence is None or emergence.threshold is None or emergence.steepness is None:
        return None

    threshold = emergence.threshold
    steep = emergence.steepness.low > LEAST_STEEPNESS
    if not steep or not _is_between(sizes, threshold, SIZES_EACH_SIDE):
        return None
    return Finding(
        "emergent",
        f"within the measured sizes and data, only sizes above {threshold.low:.3g} to"
        f" {threshold.high:.3g} learn the test",
    )


def _is_between(values: Array, interval: Interval, each_side: int) -> bool:
    """Whether enough values are below the interval, and enough above it."""
    below, above = int((values < interval.low).sum()), int((values > interval.high).sum())
    return below >= each_side and above >= each_side


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


def _effects(points: Points, contest: PlaneContest, smooth: str) -> Effects:
    return Effects(
        gain=contest.gain(smooth, "constant"),
        gain_over_amounts=contest.gain_over_amounts(smooth, "constant"),
        falls=_falls(contest.fits[smooth], points),
        slopes=_plane_slopes(points),
    )


def _by_effects(effects: Effects, smooth: str, misfit: evidence.Misfit | None) -> Finding:
    """The finding from the effects of size and data, for a plane that is not emergent and neither
    turns nor saturates."""
    predicts = effects.gain.low > 0 and effects.gain_over_amounts.low > 0
    misses = misfit is not None and misfit.p < MISFIT_P and misfit.excess > MISFIT
    if predicts and len(effects.falling) == 2 and misfit is not None and misses:
        reason = (
            f"the loss falls along both axes, but {smooth} misses it by {misfit.excess:.1%} more"
            " than noise explains"
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
        reason = f"the loss falls only with {axis}, so it does not follow a law of both axes"
        return Finding("not identified", reason)
    return Finding(
        "not identified",
        "no law of falling loss predicts left-out sizes and amounts better than a constant, but the"
        " loss may still change",
    )


def _with_effects(numbers: Evidence, effects: Effects) -> Evidence:
    return replace(
        numbers,
        gain_of_smooth=ends(effects.gain),
        gain_over_amounts=ends(effects.gain_over_amounts),
        falls=effects.falls.as_json(),
        slopes=effects.slopes.as_json(),
    )


def _falls(fitted: Fit, points: Points) -> OfAxes:
    """95 % intervals of the exponents of the curve's fall along N and D. Each is measured from the
    axis's least to its largest value, with the other axis at its largest value."""
    theta = _spread(points, fitted).theta
    if len(theta) == 0:
        unknown = Interval(np.nan, np.nan)
        return OfAxes(unknown, unknown)

    # The first two columns are low along one axis each; the third is high along both.
    least, most = points.x.min(axis=1), points.x.max(axis=1)
    starts = np.where(np.eye(2, dtype=np.bool_), least[:, None], most[:, None])
    corners = np.concatenate([starts, most[:, None]], axis=1)
    values = curve(fitted.form, theta, corners)[0]
    falls = np.log(values[:, :2] / values[:, 2:]) / np.log(most / least)
    return OfAxes(_percentiles(falls[:, 0]), _percentiles(falls[:, 1]))


def _plane_slopes(points: Points) -> OfAxes:
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
    return OfAxes(_percentiles(slopes[:, 0]), _percentiles(slopes[:, 1]))


def _fits(points: Points, names: Iterable[str]) -> dict[str, Fit]:
    """The forms that can be fitted, by name."""
    fits = {}
    preference_loss = points.y.min() < COIN_LOSS_NATS

    for name in names:
        form = FORMS[name]
        # Only preference losses start at ln 2, and they are below it at some point.
        if form.starts_at_coin_loss and not preference_loss:
            continue

        # A form with more parameters than distinct points cannot be fitted.
        with contextlib.suppress(ValueError):
            fits[name] = fit(form, points.x, points.y, LOG_SQUARES)
    return fits


def _decades(values: Array) -> float:
    """Decades between the ends of ascending values; 0 for a single value."""
    return float(np.log10(values[-1] / values[0])) if len(values) > 1 else 0.0


def _shortage(values: Array) -> str | None:
    """The reason why an axis with these ascending values is too short for a law; None if it is long
    enough."""
    if len(values) < LEAST_VALUES:
        return f"{len(values)} distinct values on the axis, but a law needs {LEAST_VALUES} or more"
    if _decades(values) < LEAST_DECADES:
        return f"{_decades(values):.2f} decades, but a law needs {LEAST_DECADES} or more"
    return None


def _mean_interval(values: Array) -> Interval:
    """The 95 % interval of a mean over left-out sizes, by resampling the sizes."""
    generator = np.random.default_rng(0)
    draws = generator.integers(0, len(values), size=(RESAMPLES_OF_SIZES, len(values)))
    return _percentiles(values[draws].mean(axis=1))


def _percentiles(values: Array) -> Interval:
    low, high = np.quantile(values, [0.025, 0.975])
    return Interval(float(low), float(high))
