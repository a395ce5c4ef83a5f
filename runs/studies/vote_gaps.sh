#!/usr/bin/env bash
# Does it matter how far apart the votes of a training pair are? The paper's table 5.
#   runs/studies/vote_gaps.sh OUT THREADS [TEST...]
set -euo pipefail
out=${1:?a folder to write} threads=${2:?a folder of threads}
shift 2
. "$(dirname "$0")/conditions.sh"
condition gap-1-2 "$threads" "--least-gap 1 --most-gap 2" "--epochs 3"
condition gap-3-5 "$threads" "--least-gap 3 --most-gap 5" "--epochs 3"
condition gap-6-10 "$threads" "--least-gap 6 --most-gap 10" "--epochs 3"
condition gap-11-up "$threads" "--least-gap 11" "--epochs 3"
compare "$out/groups/gap-1-2" "$@"
