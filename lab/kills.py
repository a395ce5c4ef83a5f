"""Kill a training at twenty random moments, start it again each time, and compare every bit with a run that was left alone.

python lab/kills.py [--kills 20] [--seed 0]
"""

import argparse
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from worldpm.formats import folders

COMPARED = ("model.safetensors", "metrics.jsonl", "worldpm.json", "config.json", "tokenizer.json")
TRAIN = ("--model", "tiny", "--max-steps", "60", "--batch-pairs", "24", "--dtype", "float32", "--max-length", "192")


def start(*words: object) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "worldpm.cli", *map(str, words)]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    rng = random.Random(options.seed)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        assert start("simulate", "--threads", 200, "--out", folder / "threads").wait() == 0
        assert start("group", folder / "threads", "--out", folder / "groups").wait() == 0
        started = time.monotonic()
        assert start("train", folder / "groups", *TRAIN, "--out", folder / "whole").wait() == 0
        seconds = time.monotonic() - started
        print(f"left alone: {seconds:.1f} s", flush=True)
        kills = runs = 0
        while kills < options.kills:
            runs += 1
            killed = folder / f"killed{runs}"
            kills += train_with_kills(folder / "groups", killed, rng, seconds, at_most=options.kills - kills)
            for file in COMPARED:
                assert (killed / file).read_bytes() == (folder / "whole" / file).read_bytes(), file
        print(f"{kills} kills in {runs} runs: {', '.join(COMPARED)} equal to the last bit each time")


def train_with_kills(groups: Path, out: Path, rng: random.Random, seconds: float, *, at_most: int) -> int:
    """Train to the end, killed at random moments on the way; how often that was."""
    kills = 0
    while True:
        process = start("train", groups, *TRAIN, "--out", out)
        try:
            process.wait(rng.uniform(0.2, 0.8) * seconds if kills < at_most else None)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            process.wait()
            kills += 1
            states = sorted(path.name for path in (out / folders.PROGRESS / "resume").glob("*"))
            print(f"{out.name}, kill {kills}: states {', '.join(states) or 'none'}", flush=True)
        else:
            assert process.returncode == 0, process.returncode
            return kills


if __name__ == "__main__":
    main()
