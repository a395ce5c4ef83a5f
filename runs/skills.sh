#!/usr/bin/env bash
# The paper's main figure in miniature: a ladder on a simulated forum of separate skills, and a ladder on a control forum
# without the hard skill. Runs from scratch, offline and on a CPU: `full` takes about two hours on two cores, `small` eight minutes.
#
#   runs/skills.sh OUT [full|small]
set -euo pipefail
out=${1:?a folder to write} preset=${2:-full} here=$(dirname "$0")
case $preset in
  full) threads=48000 sizes="w16 w24 w32 w48 w64 w96 w128 w160" seeds="0 1 2" control=16000 control_sizes="w16 w24 w32 w48 w64 w96"
    export RESAMPLES=${RESAMPLES:-300} ;;
  small) threads=8000 sizes="w16 w24 w32 w64" seeds="0 1" control=2000 control_sizes=$sizes
    export SNAPSHOTS=${SNAPSHOTS:-8} RESAMPLES=${RESAMPLES:-100} ;;
  *) echo "$preset: not a preset. Give full or small." >&2; exit 2 ;;
esac
for forum in skills control; do
  [ $forum = control ] && threads=$control sizes=$control_sizes
  worldpm simulate --forum $forum --threads "$threads" --out "$out/$forum/threads"
  worldpm group "$out/$forum/threads" --out "$out/$forum/groups" --test-share 0 --validation-share 0.01
  "$here/ladder.sh" "$out/$forum" "$out/$forum/groups" "$sizes" "$seeds" "$out/$forum/threads/tests"/*.parquet -- --max-length 128
done
