"""The functions of Python: the results of the command line, on paths and on tables in memory."""

from pathlib import Path
from typing import Any

import pytest

import worldpm
from tests.conftest import run
from worldpm.errors import ConfigError
from worldpm.scoring.scorer import Scorer

PAIRS = [
    {"prompt": f"How many grams for {n} loaves?", "chosen": "About 500.", "rejected": "No."}
    for n in range(40)
]


def test_evaluating_in_python_gives_the_results_of_the_command(road: Path) -> None:
    results = worldpm.evaluate(road / "checkpoint", str(road / "groups"))
    written = worldpm.read_results(road / "results")
    (ours,), (theirs,) = (
        r.checkpoints["checkpoint"].benchmarks.values() for r in (results, written)
    )
    assert ours.accuracy == theirs.accuracy
    assert ours.interval == theirs.interval
    assert ours.loss_nats == pytest.approx(theirs.loss_nats, abs=1e-6)


def test_tables_in_memory_are_sets(road: Path) -> None:
    scorer = Scorer.load(road / "checkpoint")
    results = worldpm.evaluate({"a": scorer, "b": scorer}, {"loaves": PAIRS, "again": PAIRS})
    by_set = results.checkpoints["a"].benchmarks
    assert set(by_set) == {"loaves", "again"}
    assert by_set["loaves"].accuracy == by_set["again"].accuracy
    assert {comparison.difference for comparison in results.comparisons} == {0.0}


def test_a_training_on_a_table_gives_a_scorer_and_resumes(tmp_path: Path) -> None:
    words: dict[str, Any] = {"max_steps": 2, "max_length": 64, "batch_pairs": 8, "dtype": "float32"}
    trained = worldpm.train(PAIRS, model="w16", out=tmp_path / "out", **words)
    rewards = trained.rewards("How many?", ["About 500.", "No."])
    again = worldpm.train(PAIRS, model="w16", out=tmp_path / "out", **words)
    assert again.rewards("How many?", ["About 500.", "No."]) == rewards


def test_laws_of_a_list_are_those_of_the_command(tmp_path: Path) -> None:
    table = [{"N": n, "loss": 0.3 + 5 * n**-0.4} for n in (1e3, 1e4, 1e5, 1e6, 1e7)]
    laws = worldpm.fit_laws(table, form="power_floor", resamples=5)
    (law,) = laws.laws
    assert law.parameters is not None
    assert law.parameters["E"] == pytest.approx(0.3, rel=1e-4)

    path = tmp_path / "table.csv"
    path.write_text("".join(["N,loss\n", *(f"{row['N']!r},{row['loss']!r}\n" for row in table)]))
    words = ("laws", path, "--form", "power_floor", "--resamples", 5)
    assert run(*words, "--out", tmp_path / "laws") == 0
    assert (
        worldpm.fit_laws(path, form="power_floor", resamples=5).laws[0].parameters == law.parameters
    )


@pytest.mark.parametrize("library", ["pandas", "polars"])
def test_a_frame_is_the_list_of_its_rows(road: Path, library: str) -> None:
    frame = pytest.importorskip(library).DataFrame(PAIRS)
    results = worldpm.evaluate(road / "checkpoint", {"frame": frame, "rows": PAIRS})
    of_frame, of_rows = results.checkpoints["checkpoint"].benchmarks.values()
    assert of_frame.loss_nats == of_rows.loss_nats


def test_columns_of_other_names_are_a_mapping_or_a_text(road: Path) -> None:
    theirs = {"prompt": "question", "chosen": "good", "rejected": "bad"}
    renamed = [{theirs[name]: value for name, value in pair.items()} for pair in PAIRS]
    results = [
        worldpm.evaluate(road / "checkpoint", {"loaves": rows}, columns=columns)
        for rows, columns in (
            (PAIRS, None),
            (renamed, theirs),
            (renamed, "prompt=question,chosen=good,rejected=bad"),
        )
    ]
    assert len({result.table() for result in results}) == 1


def test_threads_and_groups_are_records(road: Path) -> None:
    threads = list(worldpm.read_threads(road / "threads"))
    assert threads[0].responses
    tests = list(worldpm.read_groups(road / "groups", "test"))
    assert {group.split for group in tests} == {"test"}
    assert len(tests) < len(list(worldpm.read_groups(road / "groups")))


def test_wrong_inputs_have_messages(road: Path) -> None:
    with pytest.raises(ConfigError, match="no rows"):
        worldpm.evaluate(road / "checkpoint", {"none": []})
    with pytest.raises(ConfigError, match="two have the same name"):
        worldpm.evaluate([road / "checkpoint", road / "checkpoint"], str(road / "groups"))
    with pytest.raises(ConfigError, match="has no results"):
        worldpm.read_results(road / "checkpoint")
    with pytest.raises(ConfigError, match=r"learning_rate: no such option\. Use lr"):
        worldpm.train(PAIRS, out=road / "never", learning_rate=1e-3)
    with pytest.raises(ConfigError, match="neither a benchmark"):
        worldpm.evaluate(road / "checkpoint", "nothing-here")


def test_results_are_rows_a_table_a_frame_and_a_figure(road: Path) -> None:
    results = worldpm.read_results(road / "results")
    (row,) = results.rows()
    (result,) = results.checkpoints["checkpoint"].benchmarks.values()
    assert (row["accuracy"], row["pairs"]) == (result.accuracy, result.n)
    lines = results.table().splitlines()
    assert lines[0].startswith("| checkpoint | set | accuracy | low | high |")
    assert f"{result.accuracy:.4g}" in lines[2]
    assert f"<td>{result.accuracy:.4g}</td>" in results._repr_html_()
    assert results.plot().figure.axes[0].get_xlabel() == "accuracy"
    assert results.plot()._repr_png_().startswith(b"\x89PNG")
    assert repr(results) == results.table()
    pytest.importorskip("pandas")
    assert list(results.to_frame()["accuracy"]) == [result.accuracy]


def test_laws_are_rows_a_table_and_a_figure() -> None:
    table = [{"N": n, "loss": 0.3 + 5 * n**-0.4} for n in (1e3, 1e4, 1e5, 1e6, 1e7)]
    laws = worldpm.fit_laws(table, form="power_floor", resamples=5)
    (row,) = laws.rows()
    assert row["points"] == 5
    assert "E 0.3" in str(row["parameters"])
    assert "power_floor" in laws.table()
    assert laws.plot().figure.axes


def test_a_table_shows_no_markup_of_names() -> None:
    results = worldpm.evaluate({"<b>|": "worldpm/tiny-forum"}, {"loaves": PAIRS})
    assert "<td>&lt;b&gt;/</td>" in results._repr_html_()


def test_an_error_in_a_callback_stops_a_training_that_resumes(tmp_path: Path) -> None:
    words: dict[str, Any] = {"max_steps": 3, "max_length": 64, "batch_pairs": 8, "dtype": "float32"}
    steps: list[int] = []

    def stop(row: object) -> None:
        steps.append(getattr(row, "step", 0))
        if len(steps) == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        worldpm.train(PAIRS, model="w16", out=tmp_path / "out", callbacks=[stop], **words)
    trained = worldpm.train(PAIRS, model="w16", out=tmp_path / "out", callbacks=[stop], **words)
    assert steps[-1] == 3
    assert trained.rewards("a", ["b"])


def test_every_public_name_is_in_the_reference() -> None:
    page = (Path(__file__).parents[1] / "docs" / "reference" / "python.md").read_text()
    names = {name for name in worldpm.__all__ if name != "__version__"}
    assert {name for name in names if f".{name}\n" not in page} == set()
