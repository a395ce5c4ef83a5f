"""Moments of epiphany: significant sudden drops of the training loss with a spike of the gradient
norm.

At every step, a straight line and a jump are fitted to the losses around it. Student's t of the
jump, corrected for the number of tested steps, separates a jump from noise. Gradual bends, such as
the end of a plateau, are not reported. A steep fall within one window is reported as a drop, and as
an epiphany only if the gradient norm spikes.

Source: WorldPM, arXiv 2505.10527, figure 3 and section 3.2.2, for the phenomenon; the test is ours.
"""

from collections import deque
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.stats import t as student

from worldpm.stats.uncertainty import Interval

Array = NDArray[np.float64]

ROUNDING_SHARE = 1e-12
"""Rounding error of a loss, as a share of the loss: smaller drops cannot be measured."""
FALSE_ALARM_SHARE = 0.01
"""Most runs without a jump, as a share, in which a drop is reported."""
LEAST_HALF_WIDTH_STEPS, HALF_WIDTH_SHARE = 20, 1 / 40
"""Steps on either side of a tested jump: this share of the run, but at least the first number."""
SETTLING_SHARE = 0.1
"""Share of the run, at its start, that is not tested, because the learning rate rises there."""
SPIKE_DEVIATIONS = 5.0
"""A spike is a gradient norm this far above those around it, in robust standard deviations."""
NORMAL_PER_MAD = 1.4826
"""Standard deviation of normal errors, in median absolute deviations."""
LOG_LIKELIHOOD_95 = 1.920729
"""Fall of the log likelihood within a 95 % interval of one parameter: half of 1.96 squared."""


class SuddenDrop(NamedTuple):
    """One sudden drop; an epiphany where the gradient spiked too."""

    step: int
    """The first step after it, counted from 1."""
    steps: Interval
    """95 % interval of `step`."""
    drop_nats: float
    """Fall of the loss beyond a straight line, above 0."""
    interval: Interval
    """95 % interval of the drop, in nats; not corrected for the search over steps."""
    p_value: float
    """Probability that a run without a jump has an equally clear drop at any step."""
    spike: float
    """Distance of the largest nearby gradient norm above those around it, in their robust standard
    deviations."""

    @property
    def is_epiphany(self) -> bool:
        """Whether the gradient norm spiked too; otherwise it is only a sudden drop."""
        return self.spike >= SPIKE_DEVIATIONS


class _Jumps(NamedTuple):
    """The jump in the middle of each of k windows, beyond a straight line."""

    drops_nats: Array
    """Size of the fall, shape (k,); negative where the loss rises."""
    clarity: Array
    """Student's t of the fall, shape (k,)."""


def half_width(steps: int) -> int:
    """Steps on either side of a tested jump, in a run of `steps` steps."""
    return max(LEAST_HALF_WIDTH_STEPS, round(steps * HALF_WIDTH_SHARE))


def find(losses: Array, grad_norms: Array) -> list[SuddenDrop]:
    """All sudden drops of a finished run, first to last, at least a window apart; empty if the run
    is too short for a test."""
    half = half_width(len(losses))
    first = round(SETTLING_SHARE * len(losses))
    if len(losses) - first < 2 * half:
        return []

    # Row i of the windows has the jump just before the loss of index `indices[i]`.
    indices = np.arange(first + half, len(losses) - half + 1)
    windows = np.lib.stride_tricks.sliding_window_view(losses[first:], 2 * half)
    jumps = _jumps(windows)
    p_values = _p_values(jumps.clarity, half, tests=len(indices))

    # Take the clearest jump first: the windows around a jump contain it too, less clearly.
    drops: list[SuddenDrop] = []
    for row in np.argsort(-jumps.clarity):
        if p_values[row] >= FALSE_ALARM_SHARE:
            break
        index, clarity = int(indices[row]), jumps.clarity[row]
        if any(abs(index + 1 - drop.step) < 2 * half for drop in drops):
            continue

        near = slice(max(0, row - half), row + half + 1)
        likely = indices[near][_is_likely(jumps.clarity[near], clarity)]
        drop = SuddenDrop(
            step=index + 1,
            steps=Interval(float(likely.min() + 1), float(likely.max() + 1)),
            drop_nats=float(jumps.drops_nats[row]),
            interval=_drop_interval(jumps.drops_nats[row], clarity, half),
            p_value=float(p_values[row]),
            spike=_spike(grad_norms, index, half),
        )
        drops.append(drop)

    return sorted(drops)


class Watch:
    """A test of a run while it trains; a drop is reported half a window after it."""

    def __init__(self, steps: int) -> None:
        """For a run of `steps` steps."""
        self.half, self.first = half_width(steps), round(SETTLING_SHARE * steps)
        # As many tests as `find` makes of the finished run.
        self.tests = max(1, steps - self.first - 2 * self.half + 1)
        self.losses: deque[float] = deque(maxlen=2 * self.half)
        self.norms: deque[float] = deque(maxlen=2 * self.half)
        self.quiet_until = 0

    def add(self, step: int, loss_nats: float, grad_norm: float) -> SuddenDrop | None:
        """Take in a step, counted from 1, and return a drop in the middle of the last steps.

        None if there is none, or if it was returned before.
        """
        if step <= self.first:
            return None
        self.losses.append(loss_nats)
        self.norms.append(grad_norm)
        if len(self.losses) < 2 * self.half or step < self.quiet_until:
            return None

        jumps = _jumps(np.array(self.losses)[None])
        drop, clarity = jumps.drops_nats[0], jumps.clarity[0]
        p_value = float(_p_values(jumps.clarity, self.half, tests=self.tests)[0])
        if p_value >= FALSE_ALARM_SHARE:
            return None

        # The same jump would be significant in the next windows, too.
        self.quiet_until = step + 2 * self.half
        first_after = step - self.half + 1
        return SuddenDrop(
            step=first_after,
            # Later windows are not available yet, so this window cannot be compared with them.
            steps=Interval(first_after, first_after),
            drop_nats=float(drop),
            interval=_drop_interval(drop, clarity, self.half),
            p_value=p_value,
            spike=_spike(np.array(self.norms), self.half, self.half),
        )


def _jumps(windows: Array) -> _Jumps:
    """Least squares of a straight line and a jump in the middle, in windows of 2 h steps: shape (k,
    2 h)."""
    width = windows.shape[1]
    centred_steps = np.arange(width) - (width - 1) / 2
    jump = np.where(centred_steps > 0, 0.5, -0.5)
    design = np.stack([np.ones(width), centred_steps, jump], axis=1)

    # One inverse serves all windows, since they share the design.
    inverse = np.linalg.inv(design.T @ design)
    beta = windows @ design @ inverse
    residuals = windows - beta @ design.T
    error = np.sqrt((residuals**2).sum(axis=1) / (width - 3) * inverse[2, 2])

    # If all losses are equal, the error is rounding alone, and too small to divide by.
    rounding = ROUNDING_SHARE * np.abs(windows).max(axis=1) + 1e-300
    drops = -beta[:, 2]
    return _Jumps(drops, drops / np.maximum(error, rounding))


def _p_values(clarity: Array, half: int, *, tests: int) -> Array:
    """One-sided p-values of Student's t, with Bonferroni's correction for the number of tests."""
    return np.asarray(np.minimum(1.0, tests * student.sf(clarity, _freedom(half))))


def _freedom(half: int) -> int:
    """Degrees of freedom: a window of 2 h steps, less a constant, a slope and a jump."""
    return 2 * half - 3


def _is_likely(nearby: Array, clarity: float) -> NDArray[np.bool_]:
    """Which nearby steps may be the jump's, with 95 % confidence.

    The log likelihood of a window grows with half of t squared, up to terms of higher order.
    """
    return clarity**2 - nearby**2 <= 2 * LOG_LIKELIHOOD_95


def _drop_interval(drop: float, clarity: float, half: int) -> Interval:
    """The 95 % interval of a drop in nats."""
    error = drop / clarity
    reach = float(student.ppf(0.975, _freedom(half))) * error
    return Interval(float(drop - reach), float(drop + reach))


def _spike(grad_norms: Array, index: int, half: int) -> float:
    """Distance of the largest gradient norm close to `index` above those around it, in robust
    standard deviations."""
    around = grad_norms[max(0, index - half) : index + half]
    close = grad_norms[max(0, index - half // 4 - 1) : index + half // 4 + 1]

    # Median and median absolute deviation: the spike itself must not widen the scale.
    median = np.median(around)
    spread = NORMAL_PER_MAD * np.median(np.abs(around - median))
    return float((close.max() - median) / max(spread, 1e-12))
