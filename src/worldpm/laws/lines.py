"""Verdicts on series over one axis."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from worldpm.curves.solver import LOG_SQUARES, Fit
from worldpm.laws import evidence
from worldpm.laws.evidence import Points, Resamples, Slope
from worldpm.laws.law import Evidence, Score, Trend, ends, finite
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
    misses,
    shortage_of,
    spread_of,
    turn_of,
)
from worldpm.stats.uncertainty import Interval

FORMS_OF_LINES: Mapping[str, Shape] = {
    "constant": "constant",
    "power": "smooth",
    "power_floor": "smooth",
    "saturating": "smooth",
    "turning": "turning",
    "plateau": "plateau",
    "broken": "abrupt",
    "sigmoid": "abrupt",
}
"""The forms of a line that a verdict compares."""
SMOOTH = tuple(name for name, shape in FORMS_OF_LINES.items() if shape == "smooth")
ABRUPT = tuple(name for name, shape in FORMS_OF_LINES.items() if shape == "abrupt")


def judge(points: Points, draws: Resamples, axis: str = "N", *, of_loss: bool = True) -> Verdict:
    """The verdict on a series over one axis, by the axis's name. `of_loss` is False for errors.

    "Not identified" if the axis is too short. Turns, or saturates: a form that rises after its
    minimum, or that no longer falls from an x on, is clearly better than every smooth form, no
    abrupt form (one with any other bend) is clearly better than it, and this x is within the
    points. "No trend" if the interval of the slope is within NEGLIGIBLE_SLOPE. For any other
    interval that contains 0, and for a rise, "not identified". A fall is a power law if the best
    smooth form predicts held-out points better than a constant, no abrupt form is clearly better,
    and the form does not miss the points by more than noise explains. One axis cannot show
    emergence, because emergence means that some sizes learn from no amount of data.
    """
    values = np.sort(evidence.distinct_values(points.x)[0])
    numbers = Evidence(
        places=len(values),
        decades=decades_of(values),
        runs=len(np.unique(points.runs)),
        points=len(points.y),
    )
    shortage = shortage_of(values)
    if shortage is not None:
        return Verdict("not identified", shortage, numbers)

    trend = evidence.slope(points, draws)
    contest = _contest(points, of_loss=of_loss)
    numbers = replace(numbers, slope=_trend(trend), forms=contest.scores())

    finding = None
    if contest.stands_out("turning"):
        turning = contest.fits["turning"]
        spread = spread_of(points, turning, contest.noise)
        turn = turn_of(points, turning, spread, fall="A", exponent="alpha")
        finding = by_turn(turn, values, axis)
        numbers = replace(numbers, turn=ends(turn.minimum), rise=ends(turn.rise))
    elif contest.plateau is not None:
        fitted = contest.fits[contest.plateau]
        start = spread_of(points, fitted, contest.noise).intervals["x0"]
        finding = by_plateau(start, values, axis)
        numbers = replace(numbers, plateau=ends(start))

    # The bend of an abrupt form needs a bootstrap, so compute it only for a fall.
    finding = finding or _by_slope(trend.interval)
    if finding is None:
        bend = _bend(contest, points, draws)
        finding = _by_forms(contest, bend)
        numbers = replace(numbers, bend=ends(bend) if bend else None)
    of_word = {"power law": contest.smooth, "turns": "turning", "saturates": contest.plateau}
    drawn = of_word.get(finding.word, contest.best)
    return Verdict(finding.word, finding.reason, numbers, drawn or "constant")


def _trend(slope: Slope) -> Trend:
    return Trend(
        estimate=finite(slope.estimate),
        interval=ends(slope.interval),
        detectable=finite(slope.detectable),
    )


@dataclass(frozen=True)
class Contest:
    """A comparison of the forms of a line. The keys of all dicts are names of forms."""

    fits: dict[str, Fit]
    criteria: dict[str, float]
    """Akaike's criterion; infinite with too few points."""
    errors: dict[str, float]
    """Mean relative error on the largest third; NaN if there are too few other points."""
    misfits: dict[str, evidence.Misfit]
    """Misfits beyond noise; empty if the noise between runs is unknown."""
    noise: evidence.Noise | None
    """None if unknown."""
    most: float
    """The largest x."""

    @property
    def smooth(self) -> str | None:
        """The best smooth form; None if none could be fitted."""
        return self._best_of(SMOOTH)

    @property
    def abrupt(self) -> str | None:
        """The best abrupt form; None if none could be fitted."""
        return self._best_of(ABRUPT)

    def leads(self, name: str) -> bool:
        """Whether a form is clearly better than every other form that is not abrupt."""
        if name not in self.fits:
            return False
        others = [other for other in self.fits if other != name and other not in ABRUPT]
        return all(self._is_clearly_better(name, other) for other in others)

    def stands_out(self, name: str) -> bool:
        """Whether a form leads, and no abrupt form is clearly better. An abrupt form can bend like
        any other."""
        abrupt = [other for other in ABRUPT if other in self.fits]
        return self.leads(name) and not any(
            self._is_clearly_better(other, name) for other in abrupt
        )

    @property
    def plateau(self) -> str | None:
        """The form of a fall that ends at its x0; None if the fall does not end."""
        if self.stands_out("plateau"):
            return "plateau"
        # The bend can be sharper or softer than that of our form.
        ends_flat = self.abrupt == "broken" and _is_flat_after_bend(self.fits["broken"], self.most)
        return "broken" if ends_flat and self.leads("plateau") else None

    def _is_clearly_better(self, name: str, other: str) -> bool:
        return self.criteria[name] + CLEARLY_BETTER < self.criteria[other]

    @property
    def smooth_predicts(self) -> bool:
        """Whether the best smooth form predicts the largest points better than a constant."""
        return self.smooth is not None and self.errors[self.smooth] < self.errors["constant"]

    @property
    def abrupt_is_clearly_better(self) -> bool:
        """Whether the best abrupt form is clearly better than the best smooth form."""
        if self.abrupt is None or self.smooth is None:
            return False
        return self._is_clearly_better(self.abrupt, self.smooth)

    @property
    def best(self) -> str:
        """The form that describes the points best."""
        # With too few points for the smooth form's criterion, its predictions decide.
        if self.smooth and self.smooth_predicts and not np.isfinite(self.criteria[self.smooth]):
            return self.smooth
        return self._best_of(tuple(self.fits)) or "constant"

    def scores(self) -> dict[str, Score]:
        """The scores of all forms, for JSON."""
        return {name: self._score(name) for name in self.fits}

    def _score(self, name: str) -> Score:
        misfit = self.misfits.get(name)
        return Score(
            aicc=finite(self.criteria[name]),
            held_out_error=finite(self.errors[name]),
            misfit=finite(misfit.excess) if misfit else None,
            misfit_p=finite(misfit.p) if misfit else None,
        )

    def _best_of(self, names: Sequence[str]) -> str | None:
        """The form with the best criterion or, with too few points for the criterion, the form that
        predicts held-out points best."""
        fitted = [name for name in names if name in self.fits]
        usable = any(np.isfinite(self.criteria[name]) for name in fitted)
        by_name = self.criteria if usable else self.errors
        comparable = (name for name in fitted if np.isfinite(by_name[name]))
        return min(comparable, key=by_name.__getitem__, default=None)


def _contest(points: Points, *, of_loss: bool) -> Contest:
    fits = fits_of(points, FORMS_OF_LINES, of_loss=of_loss)
    noise = evidence.noise_of(points, fits.values())
    held_out = evidence.largest(points)
    return Contest(
        fits=fits,
        criteria={name: evidence.criterion(fit, points, noise) for name, fit in fits.items()},
        errors={
            name: evidence.extrapolation_error(fitted.form, points, LOG_SQUARES, held_out)
            for name, fitted in fits.items()
        },
        misfits=evidence.misfits(fits, points, noise),
        noise=noise,
        most=float(points.x.max()),
    )


def _is_flat_after_bend(broken: Fit, most: float) -> bool:
    """Whether the slope between the bend of a broken law and the largest x is negligible."""
    parameters = dict(zip(broken.form.parameters, broken.theta.tolist(), strict=True))
    # at this x, the slope is within an eighth of its end
    after = parameters["x0"] * np.exp(2 * parameters["f"])
    if after >= most:
        return False
    start, last = np.log(broken.predict(np.array([[after, most]])))
    return bool(abs(start - last) < NEGLIGIBLE_SLOPE * np.log(most / after))


def _bend(contest: Contest, points: Points, draws: Resamples) -> Interval | None:
    """The x at which the best abrupt form bends; None unless it is clearly better than every smooth
    form."""
    if contest.abrupt is None or not contest.abrupt_is_clearly_better:
        return None
    # In both abrupt forms, x0 is the x of the bend.
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
        reason = f"rises (slope {low:.3f} to {high:.3f}), but laws describe falls"
        return Finding("not identified", reason)

    if high >= 0:
        reason = f"too few runs to decide: the slope may be 0, or as steep as {low:.3f}"
        return Finding("not identified", reason)
    return None


def _by_forms(contest: Contest, bend: Interval | None) -> Finding:
    """The finding from the forms on a fall."""
    if bend is not None:
        reason = (
            f"falls, but not smoothly: {contest.abrupt}, with a bend at {bend.low:.3g} to"
            f" {bend.high:.3g}, describes it clearly better"
        )
        return Finding("not identified", reason)

    misfit = contest.misfits.get(contest.smooth or "")
    if contest.smooth_predicts and misfit is not None and misses(misfit):
        reason = (
            f"falls, but {contest.smooth} misses it by {misfit.excess:.1%} more than noise explains"
        )
        return Finding("not identified", reason)
    if contest.smooth_predicts:
        reason = (
            f"{contest.smooth} fits best, and predicts the largest points better than a constant"
        )
        return Finding("power law", reason)

    return Finding(
        "not identified",
        "falls, but no smooth form predicts the largest points better than a constant",
    )
