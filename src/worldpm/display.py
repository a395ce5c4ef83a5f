"""Results as a frame, a table or a figure, in Python and in notebooks."""

import html
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from importlib import import_module
from typing import Any

from worldpm.errors import ConfigError

Row = Mapping[str, object]


class Display(ABC):
    """Results with rows. A notebook shows them as a table."""

    @abstractmethod
    def rows(self) -> Sequence[Row]:
        """One row for each result; all rows have the same columns."""

    @abstractmethod
    def plot(self) -> Any:
        """A figure, which notebooks show. Its `figure` is matplotlib's, and `files(name)` are SVG
        and PNG.

        Raises:
            ConfigError: If the extra `eval` is not installed, or nothing can be drawn.
        """

    def to_frame(self) -> Any:
        """The rows as a pandas `DataFrame`. `polars.from_dicts(results.rows())` makes a Polars one.

        Raises:
            ConfigError: If pandas is not installed.
        """
        try:
            pandas = import_module("pandas")
        except ModuleNotFoundError as error:
            raise ConfigError("to_frame(): pandas is not installed. Install it.") from error
        return pandas.DataFrame(self.rows())

    def table(self) -> str:
        """The rows as a Markdown table; floating-point numbers have four digits."""
        names, lines = self._cells()
        rule = ["---"] * len(names)
        return "\n".join(f"| {' | '.join(cells)} |" for cells in [names, rule, *lines])

    def __repr__(self) -> str:
        return self.table()

    def _repr_html_(self) -> str:
        names, lines = self._cells()
        head = "".join(f"<th>{html.escape(name)}</th>" for name in names)
        body = "".join(
            f"<tr>{''.join(f'<td>{html.escape(cell)}</td>' for cell in cells)}</tr>"
            for cells in lines
        )
        return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"

    def _cells(self) -> tuple[list[str], list[list[str]]]:
        rows = self.rows()
        names = list(rows[0]) if rows else []
        return names, [[_cell(row[name]) for name in names] for row in rows]


def _cell(value: object) -> str:
    if value is None:
        return ""
    # A pipe would end a cell of Markdown
    text = f"{value:.4g}" if isinstance(value, float) else str(value)
    return text.replace("|", "/").replace("\n", " ")
