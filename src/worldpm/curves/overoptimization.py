"""Over-optimisation curves of best-of-n selection."""

from typing import Any

import numpy as np

from worldpm.curves.forms import FORMS, Array
from worldpm.curves.solver import SQUARES, fit

Json = dict[str, Any]


def best_of_n(distance: Array, gain: Array) -> Json:
    """`gain = d (alpha - beta d)` by least squares, d the square root of the KL from the policy, in
    nats.

    The gain peaks at `alpha / (2 beta)`; the peak is None where the curve does not bend down (beta
    <= 0). None for all where there are fewer than three distances above 0.
    """
    d = distance[distance > 0]
    if len(np.unique(d)) < 3:
        return {"alpha": None, "beta": None, "peak": None}
    alpha, beta = map(
        float, fit(FORMS["gao_best_of_n"], d[None], gain[distance > 0], SQUARES).theta
    )
    return {"alpha": alpha, "beta": beta, "peak": alpha / (2 * beta) if beta > 0 else None}
