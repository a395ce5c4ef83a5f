"""The stories under runs/ do what they say, on toys."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

RUNS = Path(__file__).resolve().parents[1] / "runs"
PROMPTS = [f"How many grams of flour for {i} loaves?" for i in range(60)]
SETS: dict[str, list[dict[str, Any]]] = {
    "helpsteer2": [{"prompt": p, "response": r, "helpfulness": h} for p in PROMPTS for r, h in (("About 500.", 4), ("No.", 1))],
    "ultrafeedback": [
        {"instruction": p, "completions": [{"response": f"About {s}.", "overall_score": s} for s in (9.0, 7.5, 7.5, 2.0)]} for p in PROMPTS
    ],
    "rlhflow": [
        {side: [{"role": "user", "content": p}, {"role": "assistant", "content": r}] for side, r in (("chosen", "9"), ("rejected", "8"))}
        for p in PROMPTS
    ],
}  # fmt: skip
STEPS = {"helpsteer2": (128, 2 * 60), "ultrafeedback": (512, 2 * 60 * 5), "rlhflow": (512, 2 * 60)}


@pytest.mark.parametrize("name", SETS)
def test_a_fine_tuning_run_takes_the_papers_settings(name: str, road: Path, tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    for split, rows in (("train", SETS[name]), ("validation", SETS[name][:8])):
        (tmp_path / "data" / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    words = ["bash", str(RUNS / f"finetune_{name}.sh"), str(road / "checkpoint"), str(tmp_path / "out"), str(tmp_path / "data")]
    done = subprocess.run(words, capture_output=True, check=False, text=True, env=environment, timeout=300)
    assert done.returncode == 0, done.stderr
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    batch, pairs = STEPS[name]
    assert (manifest["config"]["batch_pairs"], manifest["config"]["epochs"], manifest["config"]["lr"]) == (batch, 2.0, 3e-6)
    assert (manifest["counts"]["pairs seen"], manifest["counts"]["validation groups"] > 0) == (pairs, True)
