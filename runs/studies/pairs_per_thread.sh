#!/usr/bin/env bash
# One random pair of a thread, as the paper takes it, or more, or all with weights, each with as many passes over the threads?
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
