"""Moments of epiphany: sudden drops of the training loss with a spike of the gradient norm, beyond
what chance gives.

At every step the losses around it are explained by a straight line and a jump; Student's t of the
jump, corrected for the number of steps looked at, tells a jump from noise. A curve that bends, as
at the end of a plateau, is no jump; one that falls within a window, at little noise, is told as a
drop, though as no epiphany, for which the gradient norm must spike.

Source: WorldPM, arXiv 2505.10527, figure 3 and section 3.2.2, for the phenomenon; the test is ours.
"""

from collections import deque
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.stats import t as student

from worldpm.stats.uncertainty import Interval

Array = NDArray[np.float64]

ROUNDING = 1e-12
"""Of a loss, what no drop is measured finer than."""
FALSE_ALARMS = 0.01
"""Of runs without a jump, at most this share shows one."""
LEAST_HALF, HALF_SHARE = 20, 1 / 40
"""Steps on either side of a jump that are looked at: this share of the run, at least so many."""
SETTLING_SHARE = 0.1
"""Of the run, its start, where the learning rate rises."""
SPIKE = 5.0
"""Robust standard deviations of the gradient norm."""


class SuddenDrop(NamedTuple):
    """One sudden drop; an epiphany where the gradient spiked too."""

    step: int
    """The first step after it."""
    steps: Interval
    """95 % interval of its place, in steps."""
    drop_nats: float
    interval: Interval
    """95 % interval of the drop, in nats; it is not corrected for having been searched for."""
    p_value: float
    """That a run without a jump shows one as clear anywhere."""
    spike: float
    """How far the largest gradient norm near it stands out, in robust standard deviations of those
    around."""

    @property
    def is_epiphany(self) -> bool:
        """Whether the gradient norm spiked too; without, it is only a sudden drop."""
        return self.spike >= SPIKE


def half_width(steps: int) -> int:
    """Steps on either side that a run of so many steps is looked at with."""
    return max(LEAST_HALF, round(steps * HALF_SHARE))


def find(losses: Array, grad_norms: Array) -> list[SuddenDrop]:
    """All sudden drops of a finished run, first to last, at least a window apart; empty where it is
    too short to tell."""
    half = half_width(len(losses))
    first = round(SETTLING_SHARE * len(losses))
    if len(losses) - first < 2 * half:
        return []
    places = np.arange(first + half, len(losses) - half + 1)
    windows = np.lib.stride_tricks.sliding_window_view(losses[first:], 2 * half)
    drops, clarity = _drops(windows)
    p_values = np.minimum(1.0, len(places) * student.sf(clarity, 2 * half - 3))
    found: list[SuddenDrop] = []
    for row in np.argsort(-clarity):
        if p_values[row] >= FALSE_ALARMS:
            break
        if all(abs(places[row] - one.step + 1) >= 2 * half for one in found):
            place = int(places[row])
            near = slice(max(0, row - half), row + half + 1)
            found.append(
                _told(
                    place,
                    half,
                    drops[row],
                    clarity[row],
                    p_values[row],
                    places[near],
                    clarity[near],
                    grad_norms,
                )
            )
    return sorted(found)


class Watch:
    """Looks at a run while it goes; it tells of a drop half a window after it."""

    def __init__(self, steps: int) -> None:
        """Of a run of so many steps."""
        self.half, self.first = half_width(steps), round(SETTLING_SHARE * steps)
        self.looks = max(1, steps - self.first - 2 * self.half + 1)  # as many as `find` has places
        self.losses: deque[float] = deque(maxlen=2 * self.half)
        self.norms: deque[float] = deque(maxlen=2 * self.half)
        self.quiet_until = 0

    def add(self, step: int, loss_nats: float, grad_norm: float) -> SuddenDrop | None:
        """Take in one step, counted from 1; a drop in the middle of what was seen last, told
        once."""
        if step <= self.first:
            return None
        self.losses.append(loss_nats)
        self.norms.append(grad_norm)
        if len(self.losses) < 2 * self.half or step < self.quiet_until:
            return None
        drops, clarity = _drops(np.array(self.losses)[None])
        p_value = min(1.0, self.looks * float(student.sf(clarity[0], 2 * self.half - 3)))
        if p_value >= FALSE_ALARMS:
            return None
        self.quiet_until = step + 2 * self.half
        middle, norms = step - self.half, np.array(self.norms)
        return _told(
            self.half,
            self.half,
            drops[0],
            clarity[0],
            p_value,
            np.array([self.half]),
            clarity,
            norms,
        )._replace(step=middle + 1, steps=Interval(middle + 1, middle + 1))


def _drops(windows: Array) -> tuple[Array, Array]:
    """The drop in the middle of each window of 2 h steps, above a straight line, and its Student's
    t with 2 h - 3 degrees."""
    width = windows.shape[1]
    along = np.arange(width) - (width - 1) / 2
    after = np.where(along > 0, 0.5, -0.5)
    design = np.stack([np.ones(width), along, after], axis=1)
    inverse = np.linalg.inv(design.T @ design)
    beta = windows @ design @ inverse
    rest = windows - beta @ design.T
    error = np.sqrt((rest**2).sum(axis=1) / (width - 3) * inverse[2, 2])
    rounding = (
        ROUNDING * np.abs(windows).max(axis=1) + 1e-300
    )  # losses that are all alike leave nothing else
    return -beta[:, 2], -beta[:, 2] / np.maximum(error, rounding)


def _told(
    place: int,
    half: int,
    drop: float,
    clarity: float,
    p_value: float,
    places: NDArray[np.int64],
    nearby: Array,
    grad_norms: Array,
) -> SuddenDrop:
    """Where it may have been: wherever the likelihood of the window is within 1.92 of its most,
    taking t squared for it."""
    error = drop / clarity
    reach = float(student.ppf(0.975, 2 * half - 3)) * error
    likely = places[clarity**2 - nearby**2 <= 2 * 1.920729]
    around = grad_norms[max(0, place - half) : place + half]
    close = grad_norms[max(0, place - half // 4 - 1) : place + half // 4 + 1]
    middle = np.median(around)
    spread = 1.4826 * np.median(np.abs(around - middle))
    return SuddenDrop(
        step=place + 1,
        steps=Interval(float(likely.min() + 1), float(likely.max() + 1)),
        drop_nats=float(drop),
        interval=Interval(float(drop - reach), float(drop + reach)),
        p_value=float(p_value),
        spike=float((close.max() - middle) / max(spread, 1e-12)),
    )
