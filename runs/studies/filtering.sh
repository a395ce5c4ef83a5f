#!/usr/bin/env bash
# Does it help to drop the training pairs that a reward model contradicts, or does that only teach the judge's taste? The paper's
# tables 10 to 12: train on all pairs, on pairs that the judge agrees with, and on pairs that it contradicts. Evaluate the judge too.
#   runs/studies/filtering.sh OUT THREADS JUDGE [TEST...]
set -euo pipefail
out=${1:?a folder to write} threads=${2:?a folder of threads} judge=${3:?a reward model}
shift 3
. "$(dirname "$0")/conditions.sh"
condition all "$threads" "" "--epochs 3"
condition agreed "$threads" "--filter-with $judge" "--epochs 3"
condition contradicted "$threads" "--filter-with $judge --filter-keep contradicted" "--epochs 3"
worldpm evaluate "$out"/checkpoints/* "$judge" --on "$out/groups/all" "$@" --out "$out/results"
worldpm report "$out/results" --out "$out/report.html"
