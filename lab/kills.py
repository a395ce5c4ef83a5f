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
        kills = 0
        while True:
            process = start("train", folder / "groups", *TRAIN, "--out", folder / "killed")
            try:
                process.wait(rng.uniform(0, seconds) if kills < options.kills else None)
            except subprocess.TimeoutExpired:
                process.send_signal(signal.SIGKILL)
                process.wait()
                kills += 1
                states = sorted(path.name for path in (folder / "killed" / ".progress" / "resume").glob("*"))
                print(f"kill {kills}: states {', '.join(states) or 'none'}", flush=True)
                continue
            assert process.returncode == 0, process.returncode
            if kills >= options.kills or (folder / "killed" / "manifest.json").exists():
                break
        for file in ("model.safetensors", "metrics.jsonl", "worldpm.json", "config.json", "tokenizer.json"):
            same = (folder / "killed" / file).read_bytes() == (folder / "whole" / file).read_bytes()
            print(f"{file}: {'equal to the last bit' if same else 'DIFFERENT'}")
        print(f"{kills} kills")


if __name__ == "__main__":
    main()
