"""Over-optimisation curves of best-of-n selection."""

from dataclasses import dataclass

import numpy as np

from worldpm.curves.forms import GAO_BEST_OF_N, Array
from worldpm.curves.solver import SQUARES, fit


@dataclass(frozen=True)
class BestOfNCurve:
    """The fit of `gain = d (alpha - beta d)`; all values are None with fewer than three distances
    above 0."""

    alpha: float | None
    """Gain per square root of a nat at d = 0."""
    beta: float | None
    """How fast the gain per distance falls; negative where the curve bends upwards."""
    peak: float | None
    """Distance of the largest gain, `alpha / (2 beta)`, in square roots of nats; None where the
    curve does not bend down (beta <= 0)."""


def fit_best_of_n(distance: Array, gain: Array) -> BestOfNCurve:
    """`gain = d (alpha - beta d)` by least squares, d the square root of the KL from the policy, in
    nats."""
    positive = distance > 0
    # A curve of two parameters fits any two points, so only a third point can contradict it.
    if len(np.unique(distance[positive])) < 3:
        return BestOfNCurve(alpha=None, beta=None, peak=None)

    fitted = fit(GAO_BEST_OF_N, distance[positive][None], gain[positive], SQUARES)
    alpha, beta = map(float, fitted.theta)
    return BestOfNCurve(alpha, beta, peak=alpha / (2 * beta) if beta > 0 else None)
