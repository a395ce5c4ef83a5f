"""The scripts in runs/ work with tiny models and data."""

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests import warm_program

RUNS = Path(__file__).resolve().parents[1] / "runs"
PROMPTS = [f"How many grams of flour for {i} loaves?" for i in range(60)]
SETS: dict[str, list[dict[str, Any]]] = {
    "helpsteer2": [
        {"prompt": p, "response": r, "helpfulness": h}
        for p in PROMPTS
        for r, h in (("About 500.", 4), ("No.", 1))
    ],
    "ultrafeedback": [
        {
            "instruction": p,
            "completions": [
                {"response": f"About {s}.", "overall_score": s} for s in (9.0, 7.5, 7.5, 2.0)
            ],
        }
        for p in PROMPTS
    ],
    "rlhflow": [
        {
            side: [{"role": "user", "content": p}, {"role": "assistant", "content": r}]
            for side, r in (("chosen", "9"), ("rejected", "8"))
        }
        for p in PROMPTS
    ],
}
STEPS = {"helpsteer2": (128, 2 * 60), "ultrafeedback": (512, 2 * 60 * 5), "rlhflow": (512, 2 * 60)}


def story(
    name: str, *words: object, cwd: Path, **variables: str
) -> subprocess.CompletedProcess[str]:
    """Run a script of `runs/` as a user would."""
    command = ["bash", str(RUNS / name), *map(str, words)]
    with warm_program.on_the_path(cwd) as environment:
        return subprocess.run(
            command,
            capture_output=True,
            check=False,
            text=True,
            env={**environment, **variables},
            timeout=300,
            cwd=cwd,
        )


@pytest.mark.parametrize("name", SETS)
def test_a_fine_tuning_run_uses_the_papers_settings(name: str, road: Path, tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    for split, rows in (("train", SETS[name]), ("validation", SETS[name][:8])):
        (tmp_path / "data" / f"{split}.jsonl").write_text(
            "".join(json.dumps(row) + "\n" for row in rows)
        )
    done = story(
        f"finetune_{name}.sh",
        road / "checkpoint",
        tmp_path / "out",
        tmp_path / "data",
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    batch, pairs = STEPS[name]
    assert (
        manifest["config"]["batch_pairs"],
        manifest["config"]["epochs"],
        manifest["config"]["lr"],
    ) == (batch, 2.0, 3e-6)
    counts = manifest["counts"]
    assert (counts["pairs_seen"], counts["validation_groups"] > 0) == (pairs, True)


@pytest.mark.proof
def test_a_ladder_trains_evaluates_fits_and_resumes(road: Path, tmp_path: Path) -> None:
    words = (
        "ladder.sh",
        "out",
        road / "groups",
        "w16 w24",
        "0",
        road / "groups",
        "--",
        "--max-steps",
        8,
        "--max-length",
        128,
    )
    few = {"RESAMPLES": "50", "SNAPSHOTS": "4"}
    done = story(*words, cwd=tmp_path, **few)
    assert done.returncode == 0, done.stderr
    ended = [line.partition(",")[0] for line in done.stdout.splitlines()]
    assert {"w16-s0: done", "w24-s0: done"} <= set(ended)
    assert ", 2 of 2" in done.stdout
    laws = json.loads((tmp_path / "out" / "laws" / "laws.json").read_text())
    assert {law["n_points"] for law in laws if law["x"] == ["N", "D"]} == {
        2 * 4
    }  # snapshots at steps 1, 2, 4 and 8
    assert (tmp_path / "out" / "report.html").exists()
    grown = story(*words[:3], "w16 w24 w32", *words[4:], cwd=tmp_path, **few)
    assert grown.returncode == 0, grown.stderr
    assert "nothing to do" in (tmp_path / "out" / "logs" / "w16-s0").read_text()
    laws = json.loads((tmp_path / "out" / "laws" / "laws.json").read_text())
    assert {law["n_points"] for law in laws if law["x"] == ["N", "D"]} == {3 * 4}


def test_a_ladder_refuses_two_models_with_one_name(tmp_path: Path) -> None:
    done = story("ladder.sh", "out", "groups", "a/model/ b/model", "0", "groups", cwd=tmp_path)
    assert done.returncode == 2
    assert "two sizes are called model" in done.stderr


def test_a_failed_run_is_named_and_the_ladder_stops(road: Path, tmp_path: Path) -> None:
    done = story("ladder.sh", "out", road / "groups", "w15", "0", road / "groups", cwd=tmp_path)
    assert done.returncode == 1
    assert "w15-s0 failed:" in done.stderr
    assert "--model w15: neither a built-in size" in done.stderr
    assert not (tmp_path / "out" / "laws").exists()
