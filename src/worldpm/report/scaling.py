"""What a folder of laws shows."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from worldpm import plots
from worldpm.console import interval
from worldpm.laws import figures
from worldpm.report.layout import Fold, Grid, Section, Shown
from worldpm.storage import folders

Json = dict[str, Any]


def laws(path: Path, manifest: Json) -> list[Section]:
    """Verdicts, figures, and every fit with what speaks against reading it."""
    found, points = (
        json.loads((path / name).read_text(encoding="utf-8"))
        for name in ("laws.json", "points.json")
    )
    optima: dict[str, Json] = folders.read_json(path / "compute_optimal.json")
    y = manifest["config"]["y"]
    drawn = [
        Shown(plots.svg(one.draw(plots.PAGE)), one.caption)
        for one in figures.pictures(found, points, optima, y=y)
    ]
    whole = [law for law in found if ": " not in law["series"]]
    dropped = manifest["drops"].get("points", {})
    left_out = (
        f" Left out: {', '.join(f'{number} {reason}' for reason, number in dropped.items())}."
        if dropped
        else ""
    )
    runs = len({point["run"] for point in points})
    return [
        Section(
            title=f"Scaling laws: {path.name}",
            text=(
                f"{len(points):,} points of {runs:,} runs. Verdicts are given by stated rules from"
                " the fits, about losses only; intervals draw whole runs and prompts"
                f" anew.{left_out}"
            ),
            wide=drawn,
            tables=[_verdicts(whole)] if any("verdict" in law for law in whole) else [],
            folds=[
                Fold(
                    title="Parts of the tests",
                    tables=[_verdicts([law for law in found if law not in whole])],
                ),
                Fold(title="Every fit", tables=[_fits(found)]),
                *(
                    [Fold(title="Best size for a budget", tables=[_optima(optima)])]
                    if optima
                    else []
                ),
            ],
        )
    ]


def _verdicts(found: Sequence[Json]) -> Grid:
    """One row a slice."""
    rows, seen = [], set()
    for law in found:
        key = (law["series"], *law["x"], law["size"])
        if key in seen or "verdict" not in law:
            continue
        seen.add(key)
        slope = law["evidence"].get("slope")
        trend = (
            f"{slope['estimate']:.3f} ({interval(_ends(slope['interval']))})"
            if slope and slope["estimate"] is not None
            else "-"
        )
        least = f"{slope['detectable']:.3f}" if slope and slope["detectable"] is not None else "-"
        rows.append([law["series"], _where(law), law["verdict"], law["reason"], trend, least])
    return Grid(
        "Verdicts",
        ("test", "over", "verdict", "because", "slope, d ln y / d ln x", "least slope to be seen"),
        rows,
    )


def _ends(values: Sequence[float | None]) -> list[float] | None:
    known = [value for value in values if value is not None]
    return known if len(known) == len(values) else None


def _where(law: Json) -> str:
    return " and ".join(law["x"]) + (f" at N = {law['size']:,.0f}" if law["size"] else "")


def _fits(found: Sequence[Json]) -> Grid:
    rows = []
    for law in found:
        numbers = ", ".join(
            f"{name} {value:.4g} ({_range(law['intervals'][name])})"
            for name, value in (law["parameters"] or {}).items()
        )
        error = (law.get("held_out") or {}).get("relative_error")
        held_out = "-" if error is None else f"{error:.2%}"
        rows.append(
            [
                law["series"],
                _where(law),
                law["form"],
                numbers or "-",
                held_out,
                "; ".join(law["warnings"]) or "-",
            ]
        )
    return Grid(
        "",
        (
            "test",
            "over",
            "form",
            "parameters (95 % interval)",
            "error on held-out points",
            "warnings",
        ),
        rows,
    )


def _range(ends: Sequence[float | None]) -> str:
    if all(end is None for end in ends):
        return "no interval"
    low, high = ("open" if end is None else f"{end:.4g}" for end in ends)
    return f"{low} to {high}"


def _optima(optima: Mapping[str, Json]) -> Grid:
    rows = []
    for name, found in optima.items():
        for approach, label in (
            ("envelope", "1: envelope"),
            ("isoflop", "2: parabolas"),
            ("joint", "3: joint law"),
        ):
            one = found.get(approach)
            exponent = "-" if not one or one["exponent"] is None else f"{one['exponent']:.3f}"
            ends = "-" if not one or not one["interval"] else _range(one["interval"])
            rows.append([name, label, exponent, ends, (one or {}).get("warning", "-")])
    return Grid("", ("test", "approach", "a in N = G C^a", "95 % interval", "warning"), rows)
