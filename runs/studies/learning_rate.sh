#!/usr/bin/env bash
# The paper's figure 10: several learning rates with all other settings equal.
#   runs/studies/learning_rate.sh OUT THREADS [TEST...]
set -euo pipefail
out=${1:?a folder to write} threads=${2:?a folder of threads}
shift 2
. "$(dirname "$0")/conditions.sh"
for rate in 1e-4 3e-4 1e-3 3e-3; do condition "lr-$rate" "$threads" "" "--epochs 3 --lr $rate"; done
compare "$out/groups/lr-1e-3" "$@"
