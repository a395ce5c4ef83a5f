"""What a checkpoint shows."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from worldpm import plots
from worldpm.curves import sudden_drops
from worldpm.curves.forms import COIN_LOSS_NATS
from worldpm.curves.sudden_drops import SuddenDrop
from worldpm.plots import Series
from worldpm.report.layout import Grid, Section, Shown

Json = dict[str, Any]


def checkpoint(path: Path, manifest: Json) -> list[Section]:
    """The curves of a training run."""
    rows = [
        json.loads(line)
        for line in (path / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    ]
    train = [row for row in rows if "loss_nats" in row]
    seen = [row for row in rows if "validation/loss_nats" in row]

    def drawn(key: str, title: str, unit: str, chance: float) -> str:
        series = Series([row["step"] for row in train], [row[key] for row in train])
        held = Series([row["step"] for row in seen], [row[f"validation/{key}"] for row in seen])
        return plots.curves(
            title, series, held, unit=unit, chance=chance, marks=[drop.step for drop in drops]
        )

    counts, kept = (
        manifest["counts"],
        manifest["counts"].get("kept step", manifest["counts"].get("step")),
    )
    drops = sudden_drops.find(
        *(np.array([row[key] for row in train]) for key in ("loss_nats", "grad_norm"))
    )
    chosen = "those of least validation loss" if seen else "the last"
    return [
        Section(
            title=f"Training: {path.name}",
            text=(
                f"The weights of step {kept:,} of {counts['steps']:,}, {chosen}, make the"
                f" checkpoint. {counts['truncated train responses']:,} of"
                f" {counts['train responses']:,} training responses were cut to fit. {_told(drops)}"
            ),
            tiles=[
                (f"{counts['parameters'] / 1e6:.2f} M", "parameters"),
                (f"{counts['pairs seen']:,}", "pairs seen"),
                (f"{counts['effective pairs seen']:,.0f}", "effective pairs (sum of weights)"),
                (f"{counts['tokens seen'] / 1e6:.2f} M", "tokens, prompts counted once"),
            ],
            tables=[_drops(drops)] if drops else [],
            figures=[
                Shown(
                    drawn("loss_nats", "Loss", "nats per pair", COIN_LOSS_NATS),
                    "Bradley-Terry loss. A coin flip costs ln 2 = 0.693.",
                ),
                Shown(
                    drawn("accuracy", "Accuracy", "thread-weighted accuracy", 0.5),
                    "Share of preferences with a positive margin; a tie counts half.",
                ),
            ],
        )
    ]


def _told(drops: Sequence[SuddenDrop]) -> str:
    if not drops:
        return (
            "No sudden drop of the loss was found; the test is set to find one in 1 of 100 runs"
            " that have none."
        )
    spikes = sum(drop.is_epiphany for drop in drops)
    return (
        f"{len(drops)} sudden drops of the loss were found, {spikes} of them with a spike of the"
        " gradient norm (a moment of epiphany)."
    )


def _drops(drops: Sequence[SuddenDrop]) -> Grid:
    rows = [
        [
            f"{drop.step:,}",
            f"{drop.steps.low:,.0f} to {drop.steps.high:,.0f}",
            f"{drop.drop_nats:.4f}",
            f"{drop.interval.low:.4f} to {drop.interval.high:.4f}",
            f"{drop.p_value:.1e}",
            f"{drop.spike:.1f}",
        ]
        for drop in drops
    ]
    return Grid(
        "Sudden drops",
        (
            "step",
            "95 % interval",
            "drop, nats",
            "95 % interval",
            "p, whole run",
            "gradient spike, deviations",
        ),
        rows,
    )
