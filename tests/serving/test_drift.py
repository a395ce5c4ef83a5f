"""Drift: a change that matters is reported, random variation is not."""

import json
from pathlib import Path

import numpy as np
import pytest
from fastapi.testclient import TestClient

from tests.conftest import run
from worldpm.errors import DataError
from worldpm.options.serve import ServeOptions
from worldpm.serving import decision_files, drift
from worldpm.serving.run import assemble


def requests(generator: np.random.Generator, size: int, *, mean: float = 0.0) -> np.ndarray:
    return np.column_stack(
        [
            generator.normal(mean, 1, size),
            generator.integers(10, 500, (size, 2)),
            generator.integers(0, drift.WORDS, size),
        ]
    )


def reference(generator: np.random.Generator, size: int = 2000) -> dict[str, np.ndarray]:
    return dict(zip(drift.SERIES, requests(generator, size).T, strict=True))


def test_the_stability_index_is_the_one_computed_by_hand() -> None:
    # shares (10.5, 30.5) / 41 and (20.5, 20.5) / 41
    expected = (10.5 - 20.5) / 41 * np.log(10.5 / 20.5) + (30.5 - 20.5) / 41 * np.log(30.5 / 20.5)
    assert drift._stability_index(np.array([10, 30]), np.array([20, 20])) == pytest.approx(expected)
    assert drift._stability_index(np.array([5, 5]), np.array([5, 5])) == 0


def test_random_variation_is_rarely_reported_and_a_change_always() -> None:
    generator = np.random.default_rng(0)
    old = reference(generator)
    false_alarms = 0
    for _ in range(200):
        by_chance = drift.compare(old, requests(generator, drift.WINDOW))
        false_alarms += sum(change.drifted for change in by_chance.values())
    assert false_alarms <= 4

    for _ in range(20):
        changes = drift.compare(old, requests(generator, drift.WINDOW, mean=0.6))
        assert changes["reward"].drifted
        assert not changes["word"].drifted


def test_constant_series_do_not_drift() -> None:
    old = {name: np.ones(600) for name in drift.SERIES}
    changes = drift.compare(old, np.ones((drift.WINDOW, 4)))
    assert not any(change.drifted for change in changes.values())


def test_adwin_detects_a_shift_of_the_mean() -> None:
    generator = np.random.default_rng(0)
    watch = drift.Drift(reference(generator))
    for values in requests(generator, 3000):
        watch.observe(tuple(values))
    assert watch.shifts == 0
    for values in requests(generator, 1000, mean=1.0):
        watch.observe(tuple(values))
    assert watch.shifts >= 1


def test_a_server_reports_drift_from_a_reference_of_its_log(
    road: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log, saved = tmp_path / "log.sqlite", tmp_path / "reference.json"
    monkeypatch.setattr(drift, "LEAST_REQUESTS", 40)
    monkeypatch.setattr(drift, "WINDOW", 40)
    assert run("log", "reference", log, "--out", saved) == 2

    application, service = assemble(ServeOptions(model=str(road / "checkpoint"), log=log))
    assert service.decisions is not None
    with TestClient(application, base_url="http://127.0.0.1") as client:
        for number in range(60):
            client.post(
                "/v1/rewards",
                json={"prompt": f"question {number}", "responses": [f"answer {number} is this"]},
            )
    service.decisions.close()
    assert decision_files.verify(log).decisions == 60
    assert run("log", "reference", log, "--out", saved) == 0
    assert len(json.loads(saved.read_text())["reward"]) == 60

    application, _ = assemble(ServeOptions(model=str(road / "checkpoint"), reference=saved))
    with TestClient(application, base_url="http://127.0.0.1") as client:
        for number in range(40):
            client.post(
                "/v1/rewards",
                json={
                    "prompt": f"a much longer question than before, {number}",
                    "responses": ["no"],
                },
            )
        metrics = client.get("/metrics").text
    assert 'worldpm_drifted{of="prompt characters"} 1.0' in metrics
    assert 'worldpm_drifted{of="response characters"} 1.0' in metrics


def test_a_file_that_is_not_a_reference_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "reference.json"
    with pytest.raises(DataError, match="no such file"):
        drift.read(path)
    path.write_text("{}")
    with pytest.raises(DataError, match="lacks a list of"):
        drift.read(path)
    path.write_text(json.dumps({name: [1.0] for name in drift.SERIES}))
    with pytest.raises(DataError, match="fewer than"):
        drift.read(path)
    path.write_text(json.dumps({name: ["1"] * drift.WINDOW for name in drift.SERIES}))
    with pytest.raises(DataError, match="values that are not numbers"):
        drift.read(path)
