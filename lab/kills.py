"""Kill a verb at random moments, restart it each time, and compare every bit of its results with an
uninterrupted run.

python lab/kills.py train [--kills 20] [--seed 0]
python lab/kills.py data DUMP... [--kills 50]   ingest and group; speed/forum_dump.py writes dumps
"""

import argparse
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from worldpm.storage.manifest import PROGRESS, TIMINGS

TRAINED = ("model.safetensors", "metrics.jsonl", "worldpm.json", "config.json", "tokenizer.json")
TRAIN = (
    "--model",
    "tiny",
    "--max-steps",
    "60",
    "--batch-pairs",
    "24",
    "--dtype",
    "float32",
    "--max-length",
    "192",
)

Words = tuple[object, ...]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=("train", "data"))
    parser.add_argument("dumps", type=Path, nargs="*")
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    rng = random.Random(options.seed)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if options.what == "train":
            assert start("simulate", "--threads", 200, "--out", folder / "threads").wait() == 0
            assert start("group", folder / "threads", "--out", folder / "groups").wait() == 0
            hunt(("train", folder / "groups", *TRAIN), folder, rng, options.kills, TRAINED)
        else:
            hunt(("ingest", *options.dumps, "--workers", 2), folder, rng, options.kills // 2)
            hunt(
                ("group", folder / "ingest", "--workers", 2),
                folder,
                rng,
                options.kills - options.kills // 2,
            )


def hunt(
    words: Words, folder: Path, rng: random.Random, kills: int, files: tuple[str, ...] = ()
) -> None:
    """Kill the verb `kills` times, in as many runs as needed. `files`, or all files except timings,
    must equal those of an uninterrupted run."""
    whole = folder / str(words[0])
    started = time.monotonic()
    assert start(*words, "--out", whole).wait() == 0
    seconds = time.monotonic() - started
    print(f"{words[0]} without kills: {seconds:.1f} s", flush=True)
    compared = files or sorted(
        str(path.relative_to(whole))
        for path in whole.rglob("*")
        if path.is_file() and path.name != TIMINGS
    )
    done = runs = 0
    while done < kills:
        runs += 1
        out = folder / f"{words[0]}-{runs}"
        done += with_kills(words, out, rng, seconds, at_most=kills - done)
        for file in compared:
            assert (out / file).read_bytes() == (whole / file).read_bytes(), file
    print(
        f"{words[0]}: {done} kills in {runs} runs. Each time the files equal those of a run without"
        f" kills to the last bit: {', '.join(compared)}",
        flush=True,
    )


def with_kills(words: Words, out: Path, rng: random.Random, seconds: float, *, at_most: int) -> int:
    """Run to the end with kills at random moments. Return the number of kills."""
    kills = 0
    while True:
        process = start(*words, "--out", out)
        try:
            process.wait(rng.uniform(0.1, 0.9) * seconds if kills < at_most else None)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            process.wait()
            kills += 1
            finished = sorted(
                path.name
                for path in (out / PROGRESS).glob("**/*")
                if path.suffix == ".json" or path.parent.name == "resume"
            )
            print(
                f"{out.name}, kill {kills}: finished before: {', '.join(finished) or 'nothing'}",
                flush=True,
            )
        else:
            assert process.returncode == 0, process.returncode
            return kills


def start(*words: object) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "worldpm.cli", *map(str, words)]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


if __name__ == "__main__":
    main()
