#!/usr/bin/env bash
# How many pairs should a thread give: one random pair as in the paper, more, or all with weights? All make equally many passes.
#   runs/studies/pairs_per_thread.sh OUT THREADS [TEST...]
set -euo pipefail
out=${1:?a folder to write} threads=${2:?a folder of threads}
shift 2
. "$(dirname "$0")/conditions.sh"
condition one-random "$threads" "--rule worldpm" "--epochs 3"
condition one "$threads" "--pairs-per-thread 1" "--epochs 3"
condition three "$threads" "--pairs-per-thread 3" "--epochs 3"
condition all "$threads" "" "--epochs 3"
compare "$out/groups/all" "$@"
