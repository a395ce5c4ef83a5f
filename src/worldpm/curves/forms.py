"""The curves of scaling laws, each a sum of terms: `y = sum of c_j term_j(x; eta)`.

Coefficients `c` are linear, so the solver computes them exactly at any `eta`; some may be fixed.
Every parameter is positive, except Gao's and the slopes of a broken law.

Shapes: S settings of Q nonlinear parameters `eta`, n points `x` on one or two axes, J terms.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
COIN_LOSS_NATS = math.log(2)
"""Preference loss of a coin flip, where every training run starts."""
BEND = 8.0
"""Sharpness of a plateau's bend: at half of its place, the curve has 99.6 % of its slope."""
LARGEST_EXPONENT = 500.0
"""Exponents are clipped to this size: exp overflows at 710."""


class Terms(NamedTuple):
    """The terms of a form at S settings of its nonlinear parameters and n points."""

    values: Array
    """Shape (S, n, J)."""
    slopes: Array
    """Their derivatives by the Q nonlinear parameters, shape (S, n, J, Q)."""


class Location(NamedTuple):
    """A parameter that is a value on an axis, such as the size at which a curve turns."""

    parameter: str
    """Its name."""
    axis: int
    """Index of the axis among the rows of x."""


class Form(NamedTuple):
    """One family of curves."""

    name: str
    """As in the options and in `laws.json`."""
    equation: str
    """For readers; the computation is in `terms`."""
    axes: int
    """How many inputs the curve has: one of N, D and C, or N and D."""
    linear: tuple[str, ...]
    """Names of the coefficients that are fitted; they come before the nonlinear parameters."""
    nonlinear: tuple[str, ...]
    """Names of `eta`, in the order of its columns."""
    terms: Callable[[Array, Array], Terms]
    """Compute the terms from `eta` of shape (S, Q) and `x` of shape (axes, n)."""
    starts: Callable[[Array], Array]
    """The grid of `eta` to start from, for `x`, shape (S, Q)."""
    fixed: tuple[float, ...] = ()
    """Coefficients of the last terms, which are not fitted."""
    signed: frozenset[str] = frozenset()
    """Parameters that may be negative."""
    locations: tuple[Location, ...] = ()
    """Parameters that are values on an axis, in the order of `parameters`."""
    takes_zero: bool = False
    """Whether x may be 0 or below; other forms take its logarithm or a power of it."""

    @property
    def parameters(self) -> tuple[str, ...]:
        """Names of all fitted parameters, in order."""
        return self.linear + self.nonlinear

    @property
    def starts_at_coin_loss(self) -> bool:
        """Whether the curve begins at ln 2, so that it describes preference losses only."""
        return COIN_LOSS_NATS in self.fixed


def curve(form: Form, theta: Array, x: Array) -> tuple[Array, Array]:
    """Values (B, n) and their derivatives (B, n, P) at B settings of all parameters, shape (B, P),
    and x of shape (axes, n)."""
    count = len(form.linear)
    terms = form.terms(theta[:, count:], x)

    fixed = np.broadcast_to(np.array(form.fixed, dtype=np.float64), (len(theta), len(form.fixed)))
    coefficients = np.concatenate([theta[:, :count], fixed], axis=1)

    # The derivative by a linear coefficient is its term; by eta it is the weighted sum of slopes.
    values = np.einsum("bnj,bj->bn", terms.values, coefficients)
    by_nonlinear = np.einsum("bnjq,bj->bnq", terms.slopes, coefficients)
    return values, np.concatenate([terms.values[:, :, :count], by_nonlinear], axis=2)


# Terms. Each returns values and slopes together, because both need the same powers.


def _columns(eta: Array) -> list[Array]:
    """The nonlinear parameters one by one, each of shape (S, 1), to broadcast over points."""
    return [eta[:, index : index + 1] for index in range(eta.shape[1])]


def _ones(eta: Array, x: Array) -> Array:
    return np.ones((len(eta), x.shape[1]))


def _logistic(z: Array) -> Array:
    """`1 / (1 + exp(-z))`, without overflow."""
    return 1 / (1 + np.exp(np.clip(-z, -LARGEST_EXPONENT, LARGEST_EXPONENT)))


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
    alpha, beta = _columns(eta)
    by_n, by_d = x[0] ** -alpha, x[1] ** -beta

    slopes = np.zeros((*by_n.shape, 3, 2))
    slopes[:, :, 1, 0] = -by_n * np.log(x[0])
    slopes[:, :, 2, 1] = -by_d * np.log(x[1])
    return Terms(np.stack([_ones(eta, x), by_n, by_d], axis=2), slopes)


def _turning_joint(eta: Array, x: Array) -> Terms:
    joint = _joint(eta[:, :2], x)
    rising = x[1] ** eta[:, 2:]

    slopes = np.zeros((*rising.shape, 4, 3))
    slopes[:, :, :3, :2] = joint.slopes
    slopes[:, :, 3, 2] = rising * np.log(x[1])
    return Terms(np.concatenate([joint.values, rising[..., None]], axis=2), slopes)


class _BentPower(NamedTuple):
    """`min(x, x0)^-alpha`, with a bend of fixed sharpness, and its derivatives."""

    value: Array
    by_alpha: Array
    by_x0: Array


def _bent_power(x: Array, alpha: Array, x0: Array) -> _BentPower:
    # ln of the smooth minimum of x / x0 and 1; its derivative by ln(x / x0) is a logistic function
    log_ratio = np.log(x / x0)
    bent = -np.logaddexp(0, -BEND * log_ratio) / BEND
    share = _logistic(-BEND * log_ratio)
    value = np.exp(-alpha * (bent + np.log(x0)))
    return _BentPower(value, -value * (bent + np.log(x0)), -value * alpha * (1 - share) / x0)


def _plateau_joint(eta: Array, x: Array) -> Terms:
    """Sizes above N0 count as N0."""
    alpha, beta, n0 = _columns(eta)
    by_n, by_d = _bent_power(x[0], alpha, n0), x[1] ** -beta

    slopes = np.zeros((*by_d.shape, 3, 3))
    slopes[:, :, 1, 0] = by_n.by_alpha
    slopes[:, :, 2, 1] = -by_d * np.log(x[1])
    slopes[:, :, 1, 2] = by_n.by_x0
    return Terms(np.stack([np.ones_like(by_d), by_n.value, by_d], axis=2), slopes)


def _turning(eta: Array, x: Array) -> Terms:
    alpha, gamma = _columns(eta)
    falling, rising = x[0] ** -alpha, x[0] ** gamma

    slopes = np.zeros((*falling.shape, 3, 2))
    slopes[:, :, 1, 0] = -falling * np.log(x[0])
    slopes[:, :, 2, 1] = rising * np.log(x[0])
    return Terms(np.stack([np.ones_like(falling), falling, rising], axis=2), slopes)


def _plateau(eta: Array, x: Array) -> Terms:
    alpha, x0 = _columns(eta)
    bent = _bent_power(x[0], alpha, x0)

    slopes = np.zeros((*bent.value.shape, 2, 2))
    slopes[:, :, 1, 0], slopes[:, :, 1, 1] = bent.by_alpha, bent.by_x0
    return Terms(np.stack([np.ones_like(bent.value), bent.value], axis=2), slopes)


def _joint_tied(eta: Array, x: Array) -> Terms:
    # One exponent for both axes: by the chain rule its slope is the sum of the two.
    terms = _joint(np.repeat(eta, 2, axis=1), x)
    return Terms(terms.values, terms.slopes.sum(axis=3, keepdims=True))


def _between(share: Array, slopes: Array) -> Terms:
    """Two terms, 1 - share and share, for a curve that runs from the second coefficient to the
    first."""
    return Terms(np.stack([1 - share, share], axis=2), np.stack([-slopes, slopes], axis=2))


def _saturating(eta: Array, x: Array) -> Terms:
    alpha, x0 = _columns(eta)
    ratio = x[0] / x0

    # (1 + r)^-alpha by log1p, which keeps the digits of a small r.
    share = np.exp(-alpha * np.log1p(ratio))
    by_alpha = -share * np.log1p(ratio)
    by_x0 = share * alpha * ratio / (1 + ratio) / x0
    return _between(share, np.stack([by_alpha, by_x0], axis=2))


def _sigmoid(eta: Array, x: Array) -> Terms:
    steepness, x0 = _columns(eta)
    log_ratio = np.log(x[0] / x0)

    # 1 / (1 + (x/x0)^k) is a logistic function of -k ln(x/x0).
    share = _logistic(-steepness * log_ratio)
    by_steepness = -share * (1 - share) * log_ratio
    by_x0 = share * (1 - share) * steepness / x0
    return _between(share, np.stack([by_steepness, by_x0], axis=2))


def _broken(eta: Array, x: Array) -> Terms:
    slope_before, slope_change, x0, width = _columns(eta)
    z = np.log(x[0] / x0) / width

    # ln(1 + (x/x0)^(1/f)) = ln(1 + e^z): a smooth step from 0 to z, whose derivative is the
    # logistic function. logaddexp keeps it finite for large z.
    smooth_step, step = np.logaddexp(0, z), _logistic(z)
    exponent = -slope_before * np.log(x[0]) - slope_change * width * smooth_step
    value = np.exp(np.clip(exponent, -LARGEST_EXPONENT, LARGEST_EXPONENT))

    by_slope_before = -value * np.log(x[0])
    by_slope_change = -value * width * smooth_step
    by_x0 = value * slope_change * step / x0
    by_width = -value * slope_change * (smooth_step - z * step)
    slopes = np.zeros((*value.shape, 2, 4))
    slopes[:, :, 1] = np.stack([by_slope_before, by_slope_change, by_x0, by_width], axis=2)
    return Terms(np.stack([_ones(eta, x), value], axis=2), slopes)


def _saturating_joint(eta: Array, x: Array) -> Terms:
    """The share of ln 2 that remains: u / (1 + u) with u = a N^-alpha + b D^-beta."""
    a, b, alpha, beta = _columns(eta)
    by_n, by_d = a * x[0] ** -alpha, b * x[1] ** -beta
    u = by_n + by_d
    share = u / (1 + u)

    # The derivative of the share by u, times those of u by each parameter.
    by_u = 1 / (1 + u) ** 2
    u_slopes = np.stack(
        [by_n / a, by_d / b, -by_n * np.log(x[0]), -by_d * np.log(x[1])],
        axis=2,
    )
    return _between(share, u_slopes * by_u[..., None])


def _emergent(eta: Array, x: Array) -> Terms:
    """Only sizes beyond a threshold learn from data: the share of ln 2 that remains is 1 - g(N) (1
    - (1 + D/D0)^-beta)."""
    threshold, steepness, d0, beta = _columns(eta)
    log_ratio = np.log(x[0] / threshold)
    gate = _logistic(steepness * log_ratio)
    ratio = x[1] / d0
    unlearned = np.exp(-beta * np.log1p(ratio))
    share = 1 - gate * (1 - unlearned)

    gate_slope = gate * (1 - gate)
    by_threshold = gate_slope * steepness / threshold * (1 - unlearned)
    by_steepness = -gate_slope * log_ratio * (1 - unlearned)
    by_d0 = gate * unlearned * beta * ratio / (1 + ratio) / d0
    by_beta = -gate * unlearned * np.log1p(ratio)
    return _between(share, np.stack([by_threshold, by_steepness, by_d0, by_beta], axis=2))


def _saturating_product(eta: Array, x: Array) -> Terms:
    """Size and data are both needed, with no threshold: the share of ln 2 that remains is 1 - (1 -
    (1 + N/N0)^-alpha) (1 - (1 + D/D0)^-beta)."""
    n0, alpha, d0, beta = _columns(eta)
    ratio_n, ratio_d = x[0] / n0, x[1] / d0
    unlearned_n = np.exp(-alpha * np.log1p(ratio_n))
    unlearned_d = np.exp(-beta * np.log1p(ratio_d))
    share = 1 - (1 - unlearned_n) * (1 - unlearned_d)

    by_n0 = unlearned_n * alpha * ratio_n / (1 + ratio_n) / n0 * (1 - unlearned_d)
    by_alpha = -unlearned_n * np.log1p(ratio_n) * (1 - unlearned_d)
    by_d0 = unlearned_d * beta * ratio_d / (1 + ratio_d) / d0 * (1 - unlearned_n)
    by_beta = -unlearned_d * np.log1p(ratio_d) * (1 - unlearned_n)
    return _between(share, np.stack([by_n0, by_alpha, by_d0, by_beta], axis=2))


def _linear_terms(eta: Array, columns: Array) -> Terms:
    """Terms without a nonlinear parameter, the same at every setting; `columns` is (n, J)."""
    shape = (len(eta), *columns.shape)
    return Terms(np.broadcast_to(columns, shape), np.zeros((*shape, 0)))


def _gao_best_of_n(eta: Array, x: Array) -> Terms:
    return _linear_terms(eta, np.stack([x[0], -(x[0] ** 2)], axis=1))


def _gao_rl(eta: Array, x: Array) -> Terms:
    # d ln d tends to 0 at d = 0, where the logarithm alone is infinite.
    bent = -x[0] * np.log(np.maximum(x[0], 1e-300))
    return _linear_terms(eta, np.stack([x[0], bent], axis=1))


def _error_of_loss(eta: Array, x: Array) -> Terms:
    falling = np.exp(-eta * x[0])
    slopes = np.zeros((*falling.shape, 2, 1))
    slopes[:, :, 1, 0] = falling * x[0]
    return Terms(np.stack([_ones(eta, x), -falling], axis=2), slopes)


# Grids of starts. They are coarse: the solver follows the best of them to their optima.


def _grid(*axes: Array) -> Array:
    """All combinations of the axes' values, one a row, the last axis fastest."""
    return np.stack([axis.ravel() for axis in np.meshgrid(*axes, indexing="ij")], axis=1)


EXPONENTS = (0.02, 0.05, 0.1, 0.2, 0.3, 0.5, 0.75, 1.0, 1.5, 2.0)


def _exponents() -> Array:
    return np.array(EXPONENTS)


def _locations(x: Array) -> Array:
    """Values along the axis, and a decade beyond either end."""
    return np.geomspace(x.min() / 10, x.max() * 10, 12)


def _inner_locations(axis: Array) -> Array:
    """Values between the ends of the data: a turn at an end could not be detected."""
    return np.geomspace(axis.min(), axis.max(), 8)[1:-1]


def _nothing_starts(x: Array) -> Array:
    """The only setting of no parameters."""
    return np.zeros((1, 0))


def _alpha_starts(x: Array) -> Array:
    return _grid(_exponents())


def _alpha_beta_starts(x: Array) -> Array:
    return _grid(_exponents(), _exponents())


def _turning_starts(x: Array) -> Array:
    return _grid(_exponents(), np.array([0.2, 0.5, 1.0, 2.0]))


def _plateau_starts(x: Array) -> Array:
    return _grid(_exponents(), _inner_locations(x))


def _turning_joint_starts(x: Array) -> Array:
    exponents = np.array([0.05, 0.2, 0.5, 1.0])
    return _grid(exponents, exponents, np.array([0.2, 0.5, 1.0, 2.0]))


def _plateau_joint_starts(x: Array) -> Array:
    exponents = np.array([0.05, 0.2, 0.5, 1.0])
    return _grid(exponents, exponents, _inner_locations(x[0]))


def _saturating_starts(x: Array) -> Array:
    return _grid(_exponents(), _locations(x))


def _sigmoid_starts(x: Array) -> Array:
    return _grid(np.array([0.3, 1.0, 3.0, 10.0]), _locations(x))


def _broken_starts(x: Array) -> Array:
    slopes_before, slope_changes = np.array([0.0, 0.05, 0.2]), np.array([-0.2, 0.1, 0.3, 1.0])
    widths = np.array([0.1, 0.5])
    return _grid(slopes_before, slope_changes, _inner_locations(x), widths)


def _saturating_joint_starts(x: Array) -> Array:
    """Settings at which each axis alone would reach half of the fall at a value near the data."""
    exponents = np.array([0.2, 0.5, 1.0])
    half_values = [np.geomspace(axis.min() / 3, axis.max() * 3, 4) for axis in x]
    half_n, half_d, alpha, beta = _grid(*half_values, exponents, exponents).T

    # a N^-alpha = 1, which is half of the fall, at N = a^(1 / alpha).
    return np.stack([half_n**alpha, half_d**beta, alpha, beta], axis=1)


def _saturating_product_starts(x: Array) -> Array:
    n0, d0 = (np.geomspace(axis.min() / 10, axis.max(), 5) for axis in x)
    exponents = np.array([0.3, 1.0])
    grid = _grid(n0, d0, exponents, exponents)

    # From the order N0, D0, alpha, beta to that of the parameters.
    return grid[:, [0, 2, 1, 3]]


def _emergent_starts(x: Array) -> Array:
    sizes, amounts = x
    steepnesses, betas = np.array([2.0, 8.0]), np.array([0.5, 1.5])
    d0 = np.geomspace(amounts.min(), amounts.max(), 4)
    return _grid(_inner_locations(sizes), steepnesses, d0, betas)


def _gamma_starts(x: Array) -> Array:
    return _grid(np.array([0.1, 0.3, 1.0, 2.0, 4.0, 8.0]))


X0 = (Location("x0", 0),)
N0_AND_D0 = (Location("N0", 0), Location("D0", 1))

CONSTANT = Form(
    name="constant",
    equation="E",
    axes=1,
    linear=("E",),
    nonlinear=(),
    terms=_constant,
    starts=_nothing_starts,
)
POWER = Form(
    name="power",
    equation="A x^-alpha",
    axes=1,
    linear=("A",),
    nonlinear=("alpha",),
    terms=_power,
    starts=_alpha_starts,
)
POWER_FLOOR = Form(
    name="power_floor",
    equation="E + A x^-alpha",
    axes=1,
    linear=("E", "A"),
    nonlinear=("alpha",),
    terms=_power_floor,
    starts=_alpha_starts,
)
SATURATING = Form(
    name="saturating",
    equation="E + (ln 2 - E) (1 + x/x0)^-alpha",
    axes=1,
    linear=("E",),
    nonlinear=("alpha", "x0"),
    terms=_saturating,
    starts=_saturating_starts,
    fixed=(COIN_LOSS_NATS,),
    locations=X0,
)
TURNING = Form(
    name="turning",
    equation="E + A x^-alpha + G x^gamma",
    axes=1,
    linear=("E", "A", "G"),
    nonlinear=("alpha", "gamma"),
    terms=_turning,
    starts=_turning_starts,
)
PLATEAU = Form(
    name="plateau",
    equation="E + A min(x, x0)^-alpha",
    axes=1,
    linear=("E", "A"),
    nonlinear=("alpha", "x0"),
    terms=_plateau,
    starts=_plateau_starts,
    locations=X0,
)
BROKEN = Form(
    name="broken",
    equation="E + A x^-c0 (1 + (x/x0)^(1/f))^(-c1 f)",
    axes=1,
    linear=("E", "A"),
    nonlinear=("c0", "c1", "x0", "f"),
    terms=_broken,
    starts=_broken_starts,
    signed=frozenset(("c0", "c1")),
    locations=X0,
)
SIGMOID = Form(
    name="sigmoid",
    equation="low + (high - low) / (1 + (x/x0)^k)",
    axes=1,
    linear=("low", "high"),
    nonlinear=("k", "x0"),
    terms=_sigmoid,
    starts=_sigmoid_starts,
    locations=X0,
)
JOINT = Form(
    name="joint",
    equation="E + A N^-alpha + B D^-beta",
    axes=2,
    linear=("E", "A", "B"),
    nonlinear=("alpha", "beta"),
    terms=_joint,
    starts=_alpha_beta_starts,
)
JOINT_TIED = Form(
    name="joint_tied",
    equation="E + A N^-alpha + B D^-alpha",
    axes=2,
    linear=("E", "A", "B"),
    nonlinear=("alpha",),
    terms=_joint_tied,
    starts=_alpha_starts,
)
TURNING_JOINT = Form(
    name="turning_joint",
    equation="E + A N^-alpha + B D^-beta + G D^gamma",
    axes=2,
    linear=("E", "A", "B", "G"),
    nonlinear=("alpha", "beta", "gamma"),
    terms=_turning_joint,
    starts=_turning_joint_starts,
)
PLATEAU_JOINT = Form(
    name="plateau_joint",
    equation="E + A min(N, N0)^-alpha + B D^-beta",
    axes=2,
    linear=("E", "A", "B"),
    nonlinear=("alpha", "beta", "N0"),
    terms=_plateau_joint,
    starts=_plateau_joint_starts,
    locations=(Location("N0", 0),),
)
SATURATING_JOINT = Form(
    name="saturating_joint",
    equation="E + (ln 2 - E) u/(1 + u), u = a N^-alpha + b D^-beta",
    axes=2,
    linear=("E",),
    nonlinear=("a", "b", "alpha", "beta"),
    terms=_saturating_joint,
    starts=_saturating_joint_starts,
    fixed=(COIN_LOSS_NATS,),
)
SATURATING_PRODUCT = Form(
    name="saturating_product",
    equation="ln 2 - (ln 2 - E) (1 - (1 + N/N0)^-alpha) (1 - (1 + D/D0)^-beta)",
    axes=2,
    linear=("E",),
    nonlinear=("N0", "alpha", "D0", "beta"),
    terms=_saturating_product,
    starts=_saturating_product_starts,
    fixed=(COIN_LOSS_NATS,),
    locations=N0_AND_D0,
)
EMERGENT = Form(
    name="emergent",
    equation="ln 2 - (ln 2 - E) g (1 - (1 + D/D0)^-beta), g = 1/(1 + (N/N0)^-k)",
    axes=2,
    linear=("E",),
    nonlinear=("N0", "k", "D0", "beta"),
    terms=_emergent,
    starts=_emergent_starts,
    fixed=(COIN_LOSS_NATS,),
    locations=N0_AND_D0,
)
GAO_BEST_OF_N = Form(
    name="gao_best_of_n",
    equation="d (alpha - beta d)",
    axes=1,
    linear=("alpha", "beta"),
    nonlinear=(),
    terms=_gao_best_of_n,
    starts=_nothing_starts,
    signed=frozenset(("alpha", "beta")),
    takes_zero=True,
)
GAO_RL = Form(
    name="gao_rl",
    equation="d (alpha - beta ln d)",
    axes=1,
    linear=("alpha", "beta"),
    nonlinear=(),
    terms=_gao_rl,
    starts=_nothing_starts,
    signed=frozenset(("alpha", "beta")),
    takes_zero=True,
)
ERROR_OF_LOSS = Form(
    name="error_of_loss",
    equation="epsilon - k exp(-gamma L)",
    axes=1,
    linear=("epsilon", "k"),
    nonlinear=("gamma",),
    terms=_error_of_loss,
    starts=_gamma_starts,
)

FORMS = {
    form.name: form
    for form in (
        CONSTANT,
        POWER,
        POWER_FLOOR,
        SATURATING,
        TURNING,
        PLATEAU,
        BROKEN,
        SIGMOID,
        JOINT,
        JOINT_TIED,
        TURNING_JOINT,
        PLATEAU_JOINT,
        SATURATING_JOINT,
        SATURATING_PRODUCT,
        EMERGENT,
        GAO_BEST_OF_N,
        GAO_RL,
        ERROR_OF_LOSS,
    )
}
"""Sources: `joint` Hoffmann et al. 2022, 2203.15556, equation 2; `joint_tied` and `error_of_loss`
Gadre et al. 2024, 2403.08540, equations 4 and 5; `broken` Caballero et al. 2022, 2210.14891,
equation 1, with one break; Gao et al. 2022, 2210.10760, section 3.1. `saturating`,
`saturating_joint`, `saturating_product` and `emergent` are ours: a preference loss starts at ln
2."""
