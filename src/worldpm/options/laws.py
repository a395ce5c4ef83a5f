"""Options of `worldpm laws`."""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal, NamedTuple

from tyro.conf import Positional

from worldpm.errors import ConfigError

FormName = Literal[
    "constant",
    "power",
    "power_floor",
    "saturating",
    "turning",
    "plateau",
    "broken",
    "sigmoid",
    "joint",
    "joint_tied",
    "turning_joint",
    "plateau_joint",
    "saturating_joint",
    "saturating_product",
    "emergent",
    "gao_best_of_n",
    "gao_rl",
    "error_of_loss",
]
"""A form of `curves.forms`."""

AXES = ("N", "D", "C")
"""Columns that a loss or an accuracy may depend on."""


class Columns(NamedTuple):
    """The columns of a form that does not fit a loss or an accuracy over AXES."""

    x: str
    y: str


COLUMNS = {
    "gao_best_of_n": Columns("d", "gain"),
    "gao_rl": Columns("d", "gain"),
    "error_of_loss": Columns("loss", "error"),
}
"""By the name of the form."""


@dataclass(frozen=True, kw_only=True)
class LawsOptions:
    """Fit scaling laws over a ladder of runs, or over any table."""

    EXAMPLE: ClassVar[str] = "worldpm laws ladder/results/* --out laws"
    INPUTS: ClassVar[tuple[str, ...]] = ("inputs",)

    inputs: Positional[tuple[Path, ...]]
    """Folders written by `worldpm evaluate`, or tables (CSV, Parquet, JSON lines) with a loss and
    N, D or both. A table may also have C (operations), run (snapshots of one run are not
    independent), series (each gets laws of its own), family (losses of two families are not
    compared) and held_out (rows to predict, not to fit)."""
    out: Path
    """Folder to write."""
    form: FormName | None = None
    """Fit only this form; unless set, all forms that suit the columns."""
    y: Literal["loss", "accuracy"] = "loss"
    """Column to fit. Of an accuracy the error, 1 - accuracy, is fitted, which falls like a loss."""
    objective: Literal["huber", "squares"] | None = None
    """Minimize the sum of Huber(1e-3) of ln y, or of squares of y. Unless set: squares for errors
    and gains, else huber."""
    calibrated: bool = False
    """Use the loss at each checkpoint's temperature, so that families of models may be mixed; the
    losses of a table are used as given."""
    predict: tuple[str, ...] = ()
    """Foretell the loss at places such as `N=7e9,D=1e7` or `N=7e9`. The interval is that of one new
    run: it includes the variance between runs."""
    resamples: int = 1000
    """Bootstrap resamples of runs and prompts for each interval."""
    seed: int = 0
    """Seed of the draws."""

    def __post_init__(self) -> None:
        if not self.inputs:
            raise ConfigError(
                "no input given: name folders of results, or a table with columns N, D and loss"
            )

        _ = self.places
        if self.resamples < 2 or self.seed < 0:
            raise ConfigError(
                f"--resamples {self.resamples} and --seed {self.seed}: the first must be at least"
                " 2, the second at least 0"
            )

        # Their y is a column that --y cannot name.
        if self.form in COLUMNS and self.y != "loss":
            raise ConfigError(
                f"--form {self.form}: uses the columns {' and '.join(COLUMNS[self.form])} only."
                " Leave --y out."
            )

    @property
    def places(self) -> tuple[dict[str, float], ...]:
        """The places of --predict, by axis.

        Raises:
            ConfigError: If a place is not of the form `N=7e9,D=1e7`.
        """
        return tuple(map(_place, self.predict))

    @property
    def y_column(self) -> str:
        """The column that is fitted."""
        return COLUMNS[self.form].y if self.form in COLUMNS else self.y

    @property
    def axes(self) -> tuple[str, ...]:
        """The columns that y may depend on."""
        return (COLUMNS[self.form].x,) if self.form in COLUMNS else AXES


def _place(text: str) -> dict[str, float]:
    try:
        pairs = [part.split("=") for part in text.split(",")]
        values = {axis.strip(): float(value) for axis, value in pairs}
    except ValueError:
        values = {}
    if (
        not values
        or not values.keys() <= set(AXES)
        or not all(0 < v < math.inf for v in values.values())
    ):
        raise ConfigError(
            f"--predict {text!r}: not a place on the axes {', '.join(AXES)}. Write it like"
            " N=7e9,D=1e7."
        )
    return values
