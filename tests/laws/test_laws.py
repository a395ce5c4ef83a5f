"""Tables and ladders become laws, by the command line."""

import csv
import json
import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.conftest import run
from worldpm.laws import measurements
from worldpm.laws.measurements import SeriesOfCheckpoint

SMALL_RUNS = (
    "d=96_l=8_h=4-1.0",
    "d=512_l=8_h=4-1.0",
    "d=576_l=24_h=8-1.0",
    "d=1024_l=24_h=8-1.0",
    "d=96_l=8_h=4-16.0",
)
Json = dict[str, Any]


def table(path: Path, rows: Iterable[Json]) -> Path:
    """A CSV file of the rows."""
    kept = list(rows)
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(kept[0]))
        writer.writeheader()
        writer.writerows(kept)
    return path


def chinchilla(
    e: float = 1.69, a: float = 406.4, b: float = 410.7, alpha: float = 0.465, beta: float = 0.155
) -> list[Json]:
    """Noiseless points of the joint law on a grid of 6 x 6."""
    sizes, amounts = np.geomspace(5e7, 1e10, 6), np.geomspace(1e9, 5e11, 6)
    return [
        {"N": n, "D": d, "loss": e + a * n**-alpha + b * d**-beta}
        for n in sizes.tolist()
        for d in amounts.tolist()
    ]


def laws(folder: Path) -> list[Json]:
    found: list[Json] = json.loads((folder / "laws.json").read_text())
    return found


def test_a_table_gives_back_the_planted_law(tmp_path: Path) -> None:
    path = table(tmp_path / "table.csv", chinchilla())
    assert run("laws", path, "--form", "joint", "--resamples", 20, "--out", tmp_path / "laws") == 0
    (law,) = laws(tmp_path / "laws")
    assert law["parameters"] == pytest.approx(
        {"E": 1.69, "A": 406.4, "B": 410.7, "alpha": 0.465, "beta": 0.155}, rel=1e-6
    )
    assert (law["objective"], law["n_points"], law["converged"], law["verdict"]) == (
        "Huber(1e-3) of ln y",
        36,
        True,
        "power law",
    )
    assert law["held_out"]["relative_error"] < 1e-6
    for name in ("residuals", "isoflop", "frontier"):
        assert (tmp_path / "laws" / "figures" / f"{name}.png").stat().st_size > 5000
        assert "var(--" not in (tmp_path / "laws" / "figures" / f"{name}.svg").read_text()
    assert run("report", tmp_path / "laws", "--out", tmp_path / "report.html") == 0
    page = (tmp_path / "report.html").read_text()
    assert "power law" in page
    assert "var(--ink)" in page


def test_the_same_words_again_do_nothing_and_others_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = (
        "laws",
        table(tmp_path / "t.csv", chinchilla()),
        "--form",
        "joint",
        "--resamples",
        5,
        "--out",
        tmp_path / "laws",
    )
    assert run(*words) == 0
    written = (tmp_path / "laws" / "manifest.json").stat().st_mtime_ns
    assert run(*words) == 0
    assert (tmp_path / "laws" / "manifest.json").stat().st_mtime_ns == written
    assert run(*words, "--seed", 1) == 2
    assert "choose" in capsys.readouterr().err


def test_the_published_errors_of_gadre_come_out(real_data: Path, tmp_path: Path) -> None:
    with (real_data / "published" / "gadre" / "gadre_104_models.csv").open() as file:
        runs = {
            row["name"].removeprefix("rpj-"): row
            for row in csv.DictReader(file)
            if row["dataset"] == "rpj"
        }
    tested = ("open_lm_1b-32.0", "open_lm_7b-1.0")
    rows = [
        {
            "N": runs[name]["N"],
            "D": runs[name]["D"],
            "loss": runs[name]["loss_c4_val"],
            "held_out": name in tested,
        }
        for name in (*SMALL_RUNS, *tested)
    ]
    path = table(tmp_path / "loss.csv", rows)
    words = ("--form", "joint_tied", "--objective", "squares", "--resamples", 5)
    assert run("laws", path, *words, "--out", tmp_path / "loss") == 0
    predictions = laws(tmp_path / "loss")[0]["held_out"]["predictions"]
    assert [round(100 * one["relative_error"], 4) for one in predictions] == [0.7103, 0.7320]
    # their error is foretold from the foretold loss, by a curve through the small runs and one of
    # 1.4 billion parameters
    small = [
        {"loss": runs[name]["loss_c4_val"], "error": runs[name]["err_avg17"], "held_out": False}
        for name in (*SMALL_RUNS, "open_lm_1b-1.0")
    ]
    large = [
        {"loss": p["predicted"], "error": runs[n]["err_avg17"], "held_out": True}
        for n, p in zip(tested, predictions, strict=True)
    ]
    path = table(tmp_path / "error.csv", small + large)
    assert (
        run("laws", path, "--form", "error_of_loss", "--resamples", 5, "--out", tmp_path / "error")
        == 0
    )
    errors = [
        100 * one["relative_error"]
        for one in laws(tmp_path / "error")[0]["held_out"]["predictions"]
    ]
    assert [round(error, 4) for error in errors] == [3.6365, 0.0464]


def test_over_optimisation_is_fitted_from_its_own_columns(tmp_path: Path) -> None:
    rows = [{"d": d, "gain": d * (1.5 - 0.2 * d)} for d in (0.5, 1.0, 2.0, 3.0, 4.0)]
    assert (
        run(
            "laws",
            table(tmp_path / "t.csv", rows),
            "--form",
            "gao_best_of_n",
            "--resamples",
            5,
            "--out",
            tmp_path / "laws",
        )
        == 0
    )
    assert laws(tmp_path / "laws")[0]["parameters"] == pytest.approx({"alpha": 1.5, "beta": 0.2})
    assert "verdict" not in laws(tmp_path / "laws")[0]


def test_rows_that_cannot_be_used_are_counted_by_reason(tmp_path: Path) -> None:
    rows = chinchilla()
    bad = [
        {**rows[0], "loss": "nan"},
        {**rows[1], "loss": ""},
        {**rows[2], "loss": 0},
        {**rows[3], "N": -1},
        {**rows[4], "D": "many"},
        rows[5],
    ]
    assert (
        run(
            "laws",
            table(tmp_path / "t.csv", rows + bad),
            "--form",
            "joint",
            "--resamples",
            5,
            "--out",
            tmp_path / "laws",
        )
        == 0
    )
    drops = json.loads((tmp_path / "laws" / "manifest.json").read_text())["drops"]["points"]
    assert drops == {
        "not a number": 3,
        "loss of 0 or below": 1,
        "axis of 0 or below": 1,
        "repeated point": 1,
    }
    assert laws(tmp_path / "laws")[0]["n_points"] == 36


def test_a_run_has_one_size_and_a_name_may_be_zero(tmp_path: Path) -> None:
    rows = [
        {"N": n, "D": d, "loss": 0.2 + n**-0.3 + d**-0.3, "run": seed}
        for n in (1e3, 1e4, 1e5, 1e6)
        for seed in (0, 1)
        for d in (1e3, 1e5)
    ]
    (tmp_path / "t.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for words in ((), (tmp_path / "t.jsonl",)):  # the same file again brings nothing new
        out = tmp_path / f"laws{len(words)}"
        assert (
            run(
                "laws",
                tmp_path / "t.jsonl",
                *words,
                "--form",
                "joint",
                "--resamples",
                5,
                "--out",
                out,
            )
            == 0
        )
        assert (laws(out)[0]["runs"], laws(out)[0]["n_points"]) == (8, 16)
    drops = json.loads((tmp_path / "laws1" / "manifest.json").read_text())["drops"]["points"]
    assert drops == {"repeated point": 16}


def test_a_column_may_begin_after_the_first_row_and_nan_is_counted(tmp_path: Path) -> None:
    rows = [
        {"N": 1000, "loss": 0.5},
        {"N": 1000, "D": 1000, "loss": math.nan},
        *(
            {"N": n, "D": d, "loss": 0.2 + n**-0.3 + d**-0.3}
            for n in (1e3, 1e4, 1e5)
            for d in (1e3, 1e5)
        ),
    ]
    (tmp_path / "t.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert (
        run(
            "laws",
            tmp_path / "t.jsonl",
            "--form",
            "joint",
            "--resamples",
            5,
            "--out",
            tmp_path / "laws",
        )
        == 0
    )
    assert laws(tmp_path / "laws")[0]["n_points"] == 6
    assert json.loads((tmp_path / "laws" / "manifest.json").read_text())["drops"]["points"] == {
        "not a number": 2
    }


def test_missing_names_of_a_parquet_table_are_no_names(tmp_path: Path) -> None:
    nothing = dict.fromkeys(("series", "run", "family"), [math.nan] * 6)
    pq.write_table(
        pa.table({"N": [1e3, 1e4, 1e5] * 2, "loss": [0.6, 0.5, 0.4, 0.61, 0.51, 0.41], **nothing}),
        tmp_path / "t.parquet",
    )
    assert (
        run(
            "laws",
            tmp_path / "t.parquet",
            "--form",
            "power",
            "--resamples",
            5,
            "--out",
            tmp_path / "laws",
        )
        == 0
    )
    (law,) = laws(tmp_path / "laws")
    assert (law["series"], law["runs"]) == ("t", 6)


def test_data_that_grows_with_size_gives_a_law_of_size_alone(tmp_path: Path) -> None:
    """As in a ladder where every model reads twenty tokens for each parameter."""
    rows = [
        {"N": n, "D": 20 * n, "loss": 1.7 + 400 * n**-0.34}
        for n in np.geomspace(1e6, 1e9, 8).tolist()
    ]
    assert (
        run("laws", table(tmp_path / "t.csv", rows), "--resamples", 20, "--out", tmp_path / "laws")
        == 0
    )
    found = {
        tuple(law["x"]): (law["verdict"], law["reason"], law["n_points"])
        for law in laws(tmp_path / "laws")
    }
    assert found["N", "D"][:2] == (
        "not identified",
        "size and data are one axis, so that their effects cannot be told apart",
    )
    assert (found["N",][0], found["N",][2]) == ("power law", 8)


def test_rows_are_held_out_by_a_number_or_a_word(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def held_out(*marks: object) -> list[Json]:
        return [
            {"N": 10.0**n, "loss": 0.2 + 2 * 10 ** (-n / 5), "held_out": mark}
            for n, mark in enumerate(marks, start=3)
        ]

    path = table(tmp_path / "t.csv", held_out("0.0", "", "False", "0.0", "no", "1.0", "true"))
    assert (
        run("laws", path, "--form", "power_floor", "--resamples", 5, "--out", tmp_path / "laws")
        == 0
    )
    (law,) = laws(tmp_path / "laws")
    assert (law["n_points"], law["held_out"]["points"]) == (5, 2)
    assert law["held_out"]["relative_error"] < 1e-6
    assert run("report", tmp_path / "laws", "--out", tmp_path / "page.html") == 0
    assert "the best fit to the full ones with" in (tmp_path / "page.html").read_text()
    for marks, message in (
        (["perhaps"] * 5, "row 1: held_out is 'perhaps'"),
        ([1] * 5, "every point is held out"),
    ):
        assert (
            run("laws", table(tmp_path / "u.csv", held_out(*marks)), "--out", tmp_path / "none")
            == 2
        )
        assert message in capsys.readouterr().err


def test_an_accuracy_that_rises_from_zero_is_drawn(tmp_path: Path) -> None:
    rows = [
        {
            "N": n,
            "D": d,
            "run": seed,
            "accuracy": round(max(0.0, 1 - (n / 50) ** -0.4 - (d / 50) ** -0.4), 6),
        }
        for n in (100, 1e3, 1e4, 1e5)
        for seed in (0, 1)
        for d in (100, 1e3, 1e4, 1e5)
    ]
    assert min(row["accuracy"] for row in rows) == 0
    path = table(tmp_path / "t.csv", rows)
    assert run("laws", path, "--y", "accuracy", "--resamples", 5, "--out", tmp_path / "laws") == 0
    assert run("report", tmp_path / "laws", "--out", tmp_path / "report.html") == 0


def test_a_torn_table_is_named_with_its_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "t.csv"
    path.write_text("N,loss\n10,0.5\n100\n")
    assert run("laws", path, "--out", tmp_path / "laws") == 2
    assert "t.csv:3: has more or fewer cells" in capsys.readouterr().err
    assert run("laws", tmp_path / "absent.csv", "--out", tmp_path / "laws") == 2
    assert not (tmp_path / "laws").exists()


@pytest.mark.parametrize(
    ("rows", "words", "message"),
    [
        ([{"N": 1, "loss": "nan"}], (), "no point to fit (1 not a number)"),
        ([{"size": 1, "loss": 0.5}], (), "needed are loss and at least one of N, D, C"),
        ([{"N": 1, "value": 0.5}], (), "needed are loss"),
        (
            [{"N": 5, "loss": 0.5}, {"N": 5, "loss": 0.6}],
            (),
            "with 1 value of N; there is no axis to fit along: one of N, D, C must vary",
        ),
        (
            [{"D": d, "loss": 1 / d} for d in (2, 3, 4)],
            ("--form", "joint"),
            "3 values of D; there is no axis to fit along with --form joint",
        ),
        (
            [{"N": 5, "accuracy": 0.5}],
            ("--y", "accuracy", "--form", "emergent"),
            "begins at a coin's loss, ln 2, which is no accuracy",
        ),
        ([{"N": 1, "accuracy": 1.5}], ("--y", "accuracy"), "1 accuracy outside 0 to 1"),
        ([{"N": 1, "loss": 0.5}], ("--form", "gao_rl"), "needed are gain and at least one of d"),
        (
            [{"N": n, "loss": 1 / n, "family": f"f{n % 2}"} for n in range(1, 9)],
            (),
            "models of 2 families (f0, f1)",
        ),
    ],
)
def test_tables_that_say_nothing_are_refused(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    rows: list[Json],
    words: tuple[str, ...],
    message: str,
) -> None:
    assert run("laws", table(tmp_path / "t.csv", rows), *words, "--out", tmp_path / "laws") == 2
    assert message in capsys.readouterr().err


def test_families_may_be_mixed_where_losses_are_calibrated(tmp_path: Path) -> None:
    rows = [
        {"N": 10**n, "loss": 0.2 + 2 * 10 ** (-n / 5), "family": f"f{n % 2}"} for n in range(3, 11)
    ]
    path = table(tmp_path / "t.csv", rows)
    assert (
        run(
            "laws",
            path,
            "--form",
            "power_floor",
            "--calibrated",
            "--resamples",
            5,
            "--out",
            tmp_path / "laws",
        )
        == 0
    )
    assert laws(tmp_path / "laws")[0]["parameters"]["alpha"] == pytest.approx(0.2, rel=1e-6)


def test_few_points_are_warned_of(tmp_path: Path) -> None:
    rows = [{"N": n, "loss": 3 * n**-0.1} for n in (100, 150, 200)]
    assert (
        run("laws", table(tmp_path / "t.csv", rows), "--resamples", 20, "--out", tmp_path / "laws")
        == 0
    )
    found = {law["form"]: law for law in laws(tmp_path / "laws")}
    assert found["power"]["verdict"] == "not identified"
    assert (
        "the first axis has 3 places over 0.30 decades; 4 and 1.5 are needed"
        in found["power"]["warnings"]
    )
    assert found["broken"]["parameters"] is None
    assert found["broken"]["warnings"] == [
        "broken has 5 parameters, and there are 3 different points"
    ]


@pytest.fixture(scope="module")
def ladder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two sizes of the forum of skills, with snapshots, judged on its tests."""
    folder = tmp_path_factory.mktemp("ladder")
    assert run("simulate", "--forum", "skills", "--threads", 200, "--out", folder / "threads") == 0
    assert (
        run(
            "group",
            folder / "threads",
            "--test-share",
            0,
            "--validation-share",
            0.05,
            "--out",
            folder / "groups",
        )
        == 0
    )
    for size in ("w16", "w24"):
        words = ("--model", size, "--snapshots", 3, "--max-length", 128, "--dtype", "float32")
        assert run("train", folder / "groups", *words, "--out", folder / size) == 0
        snapshots = sorted((folder / size / "snapshots").iterdir())
        tests = [
            folder / "threads" / "tests" / f"{name}.parquet" for name in ("adversarial", "moves")
        ]
        assert run("evaluate", *snapshots, "--on", *tests, "--out", folder / f"{size}-results") == 0
    return folder


def test_snapshots_are_checkpoints_that_say_what_they_took(ladder: Path) -> None:
    snapshots = sorted((ladder / "w16" / "snapshots").iterdir())
    told = [
        json.loads((snapshot / "worldpm.json").read_text())["training"] for snapshot in snapshots
    ]
    steps = [one["step"] for one in told]
    rows = {
        row["step"]: row
        for row in map(json.loads, (ladder / "w16" / "metrics.jsonl").read_text().splitlines())
        if "loss_nats" in row
    }
    other = json.loads((ladder / "w24" / "worldpm.json").read_text())["training"]["run"]
    assert told[0]["run"] != other
    assert steps == sorted(set(steps))
    assert steps[-1] == max(rows)
    for one in told:
        assert (one["run"], one["family"], one["non_embedding"]) == (
            told[0]["run"],
            "built-in",
            3056,
        )
        assert one["effective_pairs"] == rows[one["step"]]["effective_pairs_seen"]
        assert one["flops"] == rows[one["step"]]["flops_seen"]


def test_a_ladder_becomes_laws_by_prompt_and_by_run(ladder: Path) -> None:
    results = [ladder / "w16-results", ladder / "w24-results"]
    measured = measurements.read(results, y="loss", axes=("N", "D", "C"), calibrated=False)
    point = measured.points[0]
    assert point.scores is not None
    sums, weights = measured.items[SeriesOfCheckpoint(point.series, point.scores.checkpoint)]
    assert sums.sum() / weights.sum() == pytest.approx(point.y, rel=1e-6)
    assert run("laws", *results, "--resamples", 20, "--out", ladder / "laws") == 0
    found = laws(ladder / "laws")
    assert {law["series"] for law in found} >= {"adversarial", "moves", "moves: moves 4"}
    assert {law["verdict"] for law in found} == {"not identified"}  # two sizes
    assert run("report", ladder / "laws", ladder / "w16", "--out", ladder / "report.html") == 0


def test_snapshots_of_one_run_are_not_compared(ladder: Path) -> None:
    assert json.loads((ladder / "w16-results" / "metrics.json").read_text())["comparisons"] == []
