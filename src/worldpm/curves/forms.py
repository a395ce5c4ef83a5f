"""The curves of scaling laws, each a sum of terms: `y = sum of c_j term_j(x; eta)`.

Coefficients `c` enter linearly, so that they can be solved for exactly at any `eta`; a coefficient
may be fixed. Every parameter but Gao's and a broken law's slopes is positive.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
COIN_LOSS_NATS = math.log(2)
"""What a preference loss starts at."""


class Terms(NamedTuple):
    """The terms of a form at S settings of its nonlinear parameters and n points."""

    values: Array
    """Shape (S, n, J)."""
    slopes: Array
    """Their derivatives by the Q nonlinear parameters, shape (S, n, J, Q)."""


class Form(NamedTuple):
    """One family of curves."""

    name: str
    equation: str
    axes: int
    """How many inputs the curve has: one of N, D and C, or N and D."""
    linear: tuple[str, ...]
    """Names of the coefficients that are fitted; they come before the nonlinear parameters."""
    nonlinear: tuple[str, ...]
    terms: Callable[[Array, Array], Terms]
    """Of `eta` of shape (S, Q) and `x` of shape (axes, n)."""
    starts: Callable[[Array], Array]
    """The grid of `eta` to start from, for `x`, shape (S, Q)."""
    fixed: tuple[float, ...] = ()
    """Coefficients of the last terms, which are not fitted."""
    signed: frozenset[str] = frozenset()
    """Parameters that may be negative."""

    @property
    def parameters(self) -> tuple[str, ...]:
        """All that is fitted, in order."""
        return self.linear + self.nonlinear


def curve(form: Form, theta: Array, x: Array) -> tuple[Array, Array]:
    """Values (B, n) and their derivatives (B, n, P) at B settings of all parameters, shape (B, P),
    and x of shape (axes, n)."""
    count = len(form.linear)
    terms = form.terms(theta[:, count:], x)
    fixed = np.broadcast_to(np.array(form.fixed, dtype=np.float64), (len(theta), len(form.fixed)))
    coefficients = np.concatenate([theta[:, :count], fixed], axis=1)
    values = np.einsum("bnj,bj->bn", terms.values, coefficients)
    by_nonlinear = np.einsum("bnjq,bj->bnq", terms.slopes, coefficients)
    return values, np.concatenate([terms.values[:, :, :count], by_nonlinear], axis=2)


def _grid(*axes: Array) -> Array:
    return np.stack([axis.ravel() for axis in np.meshgrid(*axes, indexing="ij")], axis=1)


def _ones(eta: Array, x: Array) -> Array:
    return np.ones((len(eta), x.shape[1]))


def _exponents(x: Array) -> Array:
    return np.array([0.02, 0.05, 0.1, 0.2, 0.3, 0.5, 0.75, 1.0, 1.5, 2.0])


def _places(x: Array) -> Array:
    """Points along the axis, and a decade beyond either end."""
    return np.geomspace(x.min() / 10, x.max() * 10, 12)


def _constant(eta: Array, x: Array) -> Terms:
    return Terms(_ones(eta, x)[..., None], np.zeros((len(eta), x.shape[1], 1, 0)))


def _power(eta: Array, x: Array) -> Terms:
    falling = x[0] ** -eta
    return Terms(falling[..., None], (-falling * np.log(x[0]))[..., None, None])


def _power_floor(eta: Array, x: Array) -> Terms:
    falling = x[0] ** -eta
    slopes = np.zeros((*falling.shape, 2, 1))
    slopes[:, :, 1, 0] = -falling * np.log(x[0])
    return Terms(np.stack([_ones(eta, x), falling], axis=2), slopes)


def _joint(eta: Array, x: Array) -> Terms:
    by_n, by_d = x[0] ** -eta[:, :1], x[1] ** -eta[:, 1:]
    slopes = np.zeros((*by_n.shape, 3, 2))
    slopes[:, :, 1, 0] = -by_n * np.log(x[0])
    slopes[:, :, 2, 1] = -by_d * np.log(x[1])
    return Terms(np.stack([_ones(eta, x), by_n, by_d], axis=2), slopes)


def _joint_tied(eta: Array, x: Array) -> Terms:
    terms = _joint(np.repeat(eta, 2, axis=1), x)
    return Terms(terms.values, terms.slopes.sum(axis=3, keepdims=True))


def _between(share: Array, slopes: Array) -> Terms:
    """Two terms, 1 - share and share, for a curve that runs from the second coefficient to the
    first."""
    return Terms(np.stack([1 - share, share], axis=2), np.stack([-slopes, slopes], axis=2))


def _saturating(eta: Array, x: Array) -> Terms:
    alpha, x0 = eta[:, :1], eta[:, 1:]
    ratio = x[0] / x0
    share = np.exp(-alpha * np.log1p(ratio))
    slopes = np.stack([-share * np.log1p(ratio), share * alpha * ratio / (1 + ratio) / x0], axis=2)
    return _between(share, slopes)


def _sigmoid(eta: Array, x: Array) -> Terms:
    steepness, x0 = eta[:, :1], eta[:, 1:]
    away = np.log(x[0] / x0)
    share = 1 / (1 + np.exp(np.clip(steepness * away, -500, 500)))
    slopes = np.stack([-share * (1 - share) * away, share * (1 - share) * steepness / x0], axis=2)
    return _between(share, slopes)


def _broken(eta: Array, x: Array) -> Terms:
    before, turn, place, width = (eta[:, i : i + 1] for i in range(4))
    z = np.log(x[0] / place) / width
    soft, hard = np.logaddexp(0, z), 1 / (1 + np.exp(np.clip(-z, -500, 500)))
    value = np.exp(np.clip(-before * np.log(x[0]) - turn * width * soft, -500, 500))
    by = (
        -value * np.log(x[0]),
        -value * width * soft,
        value * turn * hard / place,
        -value * turn * (soft - z * hard),
    )
    return Terms(value[..., None], np.stack(by, axis=2)[:, :, None, :])


def _saturating_joint(eta: Array, x: Array) -> Terms:
    """The share of ln 2 that is left: u / (1 + u) with u = a N^-alpha + b D^-beta."""
    a, b, alpha, beta = (eta[:, i : i + 1] for i in range(4))
    by_n, by_d = a * x[0] ** -alpha, b * x[1] ** -beta
    u = by_n + by_d
    share = u / (1 + u)
    steep = 1 / (1 + u) ** 2
    return _between(
        share,
        np.stack([by_n / a, by_d / b, -by_n * np.log(x[0]), -by_d * np.log(x[1])], axis=2)
        * steep[..., None],
    )


def _emergent(eta: Array, x: Array) -> Terms:
    """Only sizes beyond a threshold learn from data: the share of ln 2 that is left is 1 - g(N) (1
    - (1 + D/D0)^-beta)."""
    threshold, steepness, d0, beta = (eta[:, i : i + 1] for i in range(4))
    away = np.log(x[0] / threshold)
    gate = 1 / (1 + np.exp(np.clip(-steepness * away, -500, 500)))
    ratio = x[1] / d0
    left = np.exp(-beta * np.log1p(ratio))
    share = 1 - gate * (1 - left)
    opening = gate * (1 - gate)
    by = (
        opening * steepness / threshold * (1 - left),
        -opening * away * (1 - left),
        gate * left * beta * ratio / (1 + ratio) / d0,
        -gate * left * np.log1p(ratio),
    )
    return _between(share, np.stack(by, axis=2))


def _saturating_product(eta: Array, x: Array) -> Terms:
    """Size and data are both needed, with no threshold: of ln 2 is left 1 - (1 - (1 + N/N0)^-alpha)
    (1 - (1 + D/D0)^-beta)."""
    n0, alpha, d0, beta = (eta[:, i : i + 1] for i in range(4))
    by_size, by_data = x[0] / n0, x[1] / d0
    left_n, left_d = np.exp(-alpha * np.log1p(by_size)), np.exp(-beta * np.log1p(by_data))
    by = (
        left_n * alpha * by_size / (1 + by_size) / n0 * (1 - left_d),
        -left_n * np.log1p(by_size) * (1 - left_d),
        left_d * beta * by_data / (1 + by_data) / d0 * (1 - left_n),
        -left_d * np.log1p(by_data) * (1 - left_n),
    )
    return _between(1 - (1 - left_n) * (1 - left_d), np.stack(by, axis=2))


def _gao_best_of_n(eta: Array, x: Array) -> Terms:
    return Terms(
        np.broadcast_to(np.stack([x[0], -(x[0] ** 2)], axis=1), (len(eta), x.shape[1], 2)),
        np.zeros((len(eta), x.shape[1], 2, 0)),
    )


def _gao_rl(eta: Array, x: Array) -> Terms:
    bent = -x[0] * np.log(np.maximum(x[0], 1e-300))
    return Terms(
        np.broadcast_to(np.stack([x[0], bent], axis=1), (len(eta), x.shape[1], 2)),
        np.zeros((len(eta), x.shape[1], 2, 0)),
    )


def _error_of_loss(eta: Array, x: Array) -> Terms:
    falling = np.exp(-eta * x[0])
    slopes = np.zeros((*falling.shape, 2, 1))
    slopes[:, :, 1, 0] = falling * x[0]
    return Terms(np.stack([_ones(eta, x), -falling], axis=2), slopes)


def _nothing(x: Array) -> Array:
    return np.zeros((1, 0))


def _alpha(x: Array) -> Array:
    return _grid(_exponents(x))


def _alpha_beta(x: Array) -> Array:
    return _grid(_exponents(x), _exponents(x))


def _alpha_place(x: Array) -> Array:
    return _grid(_exponents(x), _places(x))


def _steepness_place(x: Array) -> Array:
    return _grid(np.array([0.3, 1.0, 3.0, 10.0]), _places(x))


def _break_places(x: Array) -> Array:
    inside = np.geomspace(x.min(), x.max(), 8)[1:-1]
    return _grid(
        np.array([0.0, 0.05, 0.2]), np.array([-0.2, 0.1, 0.3, 1.0]), inside, np.array([0.1, 0.5])
    )


def _saturating_joint_starts(x: Array) -> Array:
    """Where each axis alone would have taken half of the way."""
    some = np.array([0.2, 0.5, 1.0])
    halves = [np.geomspace(axis.min() / 3, axis.max() * 3, 4) for axis in x]
    grid = _grid(*halves, some, some)
    return np.stack(
        [grid[:, 0] ** grid[:, 2], grid[:, 1] ** grid[:, 3], grid[:, 2], grid[:, 3]], axis=1
    )


def _emergent_starts(x: Array) -> Array:
    inside, along = (
        np.geomspace(x[0].min(), x[0].max(), 8)[1:-1],
        np.geomspace(x[1].min(), x[1].max(), 4),
    )
    return _grid(inside, np.array([2.0, 8.0]), along, np.array([0.5, 1.5]))


def _saturating_product_starts(x: Array) -> Array:
    places = (np.geomspace(axis.min() / 10, axis.max(), 5) for axis in x)
    powers = np.array([0.3, 1.0])
    grid = _grid(*places, powers, powers)
    return grid[:, [0, 2, 1, 3]]


def _gammas(x: Array) -> Array:
    return _grid(np.array([0.1, 0.3, 1.0, 2.0, 4.0, 8.0]))


FORMS = {
    form.name: form
    for form in (
        Form("constant", "E", 1, ("E",), (), _constant, _nothing),
        Form("power", "A x^-alpha", 1, ("A",), ("alpha",), _power, _alpha),
        Form("power_floor", "E + A x^-alpha", 1, ("E", "A"), ("alpha",), _power_floor, _alpha),
        Form(
            "saturating",
            "E + (ln 2 - E) (1 + x/x0)^-alpha",
            1,
            ("E",),
            ("alpha", "x0"),
            _saturating,
            _alpha_place,
            fixed=(COIN_LOSS_NATS,),
        ),
        Form(
            "broken",
            "A x^-c0 (1 + (x/x0)^(1/f))^(-c1 f)",
            1,
            ("A",),
            ("c0", "c1", "x0", "f"),
            _broken,
            _break_places,
            signed=frozenset(("c0", "c1")),
        ),
        Form(
            "sigmoid",
            "low + (high - low) / (1 + (x/x0)^k)",
            1,
            ("low", "high"),
            ("k", "x0"),
            _sigmoid,
            _steepness_place,
        ),
        Form(
            "joint",
            "E + A N^-alpha + B D^-beta",
            2,
            ("E", "A", "B"),
            ("alpha", "beta"),
            _joint,
            _alpha_beta,
        ),
        Form(
            "joint_tied",
            "E + A N^-alpha + B D^-alpha",
            2,
            ("E", "A", "B"),
            ("alpha",),
            _joint_tied,
            _alpha,
        ),
        Form(
            "saturating_joint",
            "E + (ln 2 - E) u/(1 + u), u = a N^-alpha + b D^-beta",
            2,
            ("E",),
            ("a", "b", "alpha", "beta"),
            _saturating_joint,
            _saturating_joint_starts,
            fixed=(COIN_LOSS_NATS,),
        ),
        Form(
            "saturating_product",
            "ln 2 - (ln 2 - E) (1 - (1 + N/N0)^-alpha) (1 - (1 + D/D0)^-beta)",
            2,
            ("E",),
            ("N0", "alpha", "D0", "beta"),
            _saturating_product,
            _saturating_product_starts,
            fixed=(COIN_LOSS_NATS,),
        ),
        Form(
            "emergent",
            "ln 2 - (ln 2 - E) g (1 - (1 + D/D0)^-beta), g = 1/(1 + (N/N0)^-k)",
            2,
            ("E",),
            ("N0", "k", "D0", "beta"),
            _emergent,
            _emergent_starts,
            fixed=(COIN_LOSS_NATS,),
        ),
        Form(
            "gao_best_of_n",
            "d (alpha - beta d)",
            1,
            ("alpha", "beta"),
            (),
            _gao_best_of_n,
            _nothing,
            signed=frozenset(("alpha", "beta")),
        ),
        Form(
            "gao_rl",
            "d (alpha - beta ln d)",
            1,
            ("alpha", "beta"),
            (),
            _gao_rl,
            _nothing,
            signed=frozenset(("alpha", "beta")),
        ),
        Form(
            "error_of_loss",
            "epsilon - k exp(-gamma L)",
            1,
            ("epsilon", "k"),
            ("gamma",),
            _error_of_loss,
            _gammas,
        ),
    )
}
"""Sources: `joint` Hoffmann et al. 2022, 2203.15556, equation 2; `joint_tied` and `error_of_loss`
Gadre et al. 2024, 2403.08540, equations 4 and 5; `broken` Caballero et al. 2022, 2210.14891,
equation 1, with one break and no floor; Gao et al. 2022, 2210.10760, section 3.1. `saturating`,
`saturating_joint`, `saturating_product` and `emergent` are ours: a preference loss starts at ln
2."""
