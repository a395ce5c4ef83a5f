#!/usr/bin/env bash
# Make the small checkpoint that the package contains, `worldpm/tiny-forum`, in about five minutes on one core.
#   runs/tiny_forum.sh OUT
# OUT/tiny-forum is what the package has in src/worldpm/checkpoints.
set -euo pipefail
out=${1:?a folder to write}
worldpm simulate --threads 6500 --seed 0 --out "$out/threads"
worldpm group "$out/threads" --out "$out/groups"
worldpm train "$out/groups" --model w96 --max-length 512 --batch-pairs 64 --epochs 2 --dtype float32 --out "$out/trained/tiny-forum"
worldpm evaluate "$out/trained/tiny-forum" --on "$out/groups" --out "$out/results"
worldpm export "$out/trained/tiny-forum" --to model --results "$out/results" --licence apache-2.0 --note "$(dirname "$0")/tiny_forum.md" \
  --out "$out/tiny-forum"
