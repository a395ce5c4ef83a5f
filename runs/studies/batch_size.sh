#!/usr/bin/env bash
# Batch size at equal data. The paper's figure 9 fixes the number of steps instead, so its larger batches see more data.
#   runs/studies/batch_size.sh OUT THREADS [TEST...]
set -euo pipefail
out=${1:?a folder to write} threads=${2:?a folder of threads}
shift 2
. "$(dirname "$0")/conditions.sh"
for pairs in 32 64 128 256 512; do condition "batch-$pairs" "$threads" "" "--epochs 3 --batch-pairs $pairs"; done
compare "$out/groups/batch-128" "$@"
