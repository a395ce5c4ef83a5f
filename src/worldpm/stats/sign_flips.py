"""The p-value of a sum under random signs of its terms, also far in the tail.

If two judges are equally good, exchanging them in a whole cluster is as likely as not, and changes
the sign of this cluster's difference. Draws of signs cannot show a probability below one in their
number, so it is computed: exactly for few terms and for terms of one size, on a grid if few terms
are much larger than the others, and otherwise by a saddlepoint.
"""

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import brentq
from scipy.special import bdtrc, ndtr

Array = NDArray[np.float64]
MOST_ENUMERATED = 20
"""Most terms whose signs are enumerated: a million sums."""
ROUNDING = 1e-9
"""Sums within this share of the largest possible sum count as equal."""
MOST_MULTIPLE = 1000
"""Largest multiple of their unit that terms of a lattice may have."""
LARGE_SHARE = 0.02
"""A term with a larger share of all squares is large: the sum is then far from normal."""
CELLS = 2**15
"""Cells of a grid of sums, from the least to the largest sum."""
NEAR_CENTRE = 1e-3
"""Below this signed root of the likelihood ratio the saddlepoint formula loses its digits."""


def p_value(terms: Array) -> float:
    """The two-sided probability that random signs give a sum as far from 0 as the observed one;
    at least the smallest positive number.

    Source: Fisher 1935 (the test); Lugannani and Rice 1980, and Daniels 1987 for lattices.
    """
    # Terms of 0 have no sign.
    sizes = np.abs(terms[terms != 0])
    if len(sizes) == 0:
        return 1.0

    observed, most = abs(float(terms.sum())), float(sizes.sum())
    if observed <= ROUNDING * most:
        return 1.0
    if np.ptp(sizes) <= ROUNDING * sizes.max():
        p = _of_equal_terms(len(sizes), observed / float(sizes[0]))
    elif len(sizes) <= MOST_ENUMERATED:
        p = _enumerated(sizes, observed)
    elif observed >= most * (1 - ROUNDING):
        p = 2.0 * 0.5 ** len(sizes)
    elif sizes.max() ** 2 > LARGE_SHARE * float(sizes @ sizes):
        p = _on_a_grid(np.abs(terms), terms > 0)
    else:
        p = 2 * _upper_tail(sizes, observed)
    return float(np.clip(p, np.finfo(np.float64).tiny, 1.0))


def _of_equal_terms(count: int, observed: float) -> float:
    """Twice the binomial tail: k of n signs are positive, and the sum is 2 k - n terms."""
    positive = round((observed + count) / 2)
    return 2 * float(bdtrc(positive - 1, count, 0.5))


def _enumerated(sizes: Array, observed: float) -> float:
    """The share of all signs that give as large a sum."""
    sums = np.zeros(1)
    for size in sizes:
        sums = np.concatenate([sums + size, sums - size])
    least = observed - ROUNDING * float(sizes.sum())
    return float((np.abs(sums) >= least).mean())


def _on_a_grid(sizes: Array, positive: NDArray[np.bool_]) -> float:
    """Twice the tail of the sum of terms that are rounded to a grid: to their unit if they have
    one.

    The sum is twice that of the positive terms minus all, and each term is positive by a coin.
    """
    span = _span(sizes[sizes > 0])
    unit = span / 2 if span is not None else float(sizes.sum()) / CELLS
    steps = np.round(sizes / unit).astype(np.int64)
    if steps.sum() > 4 * CELLS:
        steps = np.round(sizes / (float(sizes.sum()) / CELLS)).astype(np.int64)

    chance = np.zeros(int(steps.sum()) + 1)
    chance[0] = 1.0
    filled = 1
    for step in steps[steps > 0].tolist():
        # with and without the term; all parts are added, so small chances keep their digits
        without = chance[:filled].copy()
        chance[:filled] *= 0.5
        chance[step : step + filled] += 0.5 * without
        filled += step

    observed = int(steps[positive].sum())
    larger = max(observed, int(steps.sum()) - observed)
    return 2 * float(chance[larger:].sum())


def _upper_tail(sizes: Array, observed: float) -> float:
    """The probability of a sum of at least `observed`, between 0 and the largest sum.

    K(t) = sum of ln cosh(a t) is the cumulant function of the sum, K' its slope.
    """

    def slope_minus(t: float) -> float:
        return float(sizes @ np.tanh(sizes * t)) - observed

    # tanh(a t) is 1 up to rounding beyond a t = 40
    t = float(brentq(slope_minus, 0.0, 40.0 / float(sizes.min()), xtol=1e-14, rtol=1e-12))
    scaled = sizes * t
    cumulant = float((scaled + np.log1p(np.exp(-2 * scaled)) - np.log(2)).sum())
    curvature = float(sizes**2 @ (1 / np.cosh(np.minimum(scaled, 300.0)) ** 2))

    w = float(np.sqrt(2 * max(0.0, t * observed - cumulant)))
    span = _span(sizes)
    # Sums of a lattice jump, and the observed one belongs to the tail.
    u = (t if span is None else -np.expm1(-span * t) / span) * np.sqrt(curvature)
    if w < NEAR_CENTRE:
        # near the centre the sum is nearly normal
        deviation = float(np.sqrt(sizes @ sizes))
        return float(ndtr(-(observed - (span or 0.0) / 2) / deviation))
    density = np.exp(-(w**2) / 2) / np.sqrt(2 * np.pi)
    return float(ndtr(-w) + density * (1 / u - 1 / w))


def _span(sizes: Array) -> float | None:
    """The distance of neighbouring sums: twice the largest unit that divides all terms; None if
    they have none."""
    smallest = float(sizes.min())
    for parts in range(1, 13):
        multiples = sizes / (smallest / parts)
        rounded = np.round(multiples)
        if rounded.max() <= MOST_MULTIPLE and np.allclose(multiples, rounded, rtol=0, atol=1e-6):
            return 2 * smallest / parts
    return None
