#!/usr/bin/env bash
# A ladder: train every size with every seed on the same groups, save snapshots at log-spaced amounts of data, evaluate each
# snapshot on every test, and fit laws to all results. If it is interrupted, the same command resumes and skips finished parts.
#
#   runs/ladder.sh OUT GROUPS "SIZES" "SEEDS" TEST... [-- TRAINING OPTIONS]
#
#   runs/ladder.sh ladder groups "w16 w32 w64 w128" "0 1 2" threads/tests/*.parquet
#
# SIZES are built-in sizes, or folders or hub ids of models. TESTS are arguments of `worldpm evaluate --on`. Variables: JOBS is the
# number of parallel runs (one per core by default), LAUNCH the command that starts a training (`worldpm` by default), SNAPSHOTS the
# number of snapshots per run (12 by default), and RESAMPLES the number of resamples for intervals (1000 by default).
set -euo pipefail
if [ $# -lt 5 ]; then
  sed -n '2,12s/^# \{0,1\}//p' "$0" >&2
  exit 2
fi
out=$1 groups=$2 sizes=$3 seeds=$4
shift 4
tests=() options=()
while [ $# -gt 0 ] && [ "$1" != -- ]; do tests+=("$1"); shift; done
[ $# -gt 0 ] && shift && options=("$@")

JOBS=${JOBS:-$(nproc)}
export OMP_NUM_THREADS=$(( ($(nproc) + JOBS - 1) / JOBS ))
mkdir -p "$out/runs" "$out/results" "$out/logs"

name_of() { basename "${1%/}"; } # SIZE
if twice=$(for size in $sizes; do name_of "$size"; done | sort | uniq -d) && [ -n "$twice" ]; then
  echo "two sizes are called" $twice "and would share the folder of their runs. Rename a folder." >&2
  exit 2
fi

rung() { # SIZE SEED
  local name
  name="$(name_of "$1")-s$2"
  { ${LAUNCH:-worldpm} train "$groups" --model "$1" --seed "$2" --snapshots "${SNAPSHOTS:-12}" --out "$out/runs/$name" "${options[@]}" &&
    worldpm evaluate "$out/runs/$name/snapshots"/* --on "${tests[@]}" --out "$out/results/$name"; } > "$out/logs/$name" 2>&1 ||
    { echo "$name failed:" >&2; tail -n 3 "$out/logs/$name" >&2; return 1; }
  echo "$name: done, $(find "$out/results" -mindepth 2 -maxdepth 2 -name manifest.json | wc -l) of $rungs"
}

rungs=$(( $(wc -w <<< "$sizes") * $(wc -w <<< "$seeds") ))
echo "$rungs trainings, $JOBS at a time; their logs are in $out/logs"

# Start the largest first, so that no core is idle while the last one runs
pids=() failed=0
for size in $(printf '%s\n' $sizes | tac); do
  for seed in $seeds; do
    while [ "$(jobs -rp | wc -l)" -ge "$JOBS" ]; do wait -n || failed=1; done
    rung "$size" "$seed" &
  done
done
while [ -n "$(jobs -rp)" ]; do wait -n || failed=1; done
[ "$failed" = 0 ] || { echo "some runs failed. Read their logs in $out/logs; the same command resumes." >&2; exit 1; }

# New results change the laws, so remove the old laws; nothing else is computed again
if [ ! -f "$out/laws/manifest.json" ] || [ -n "$(find "$out/results" -name manifest.json -newer "$out/laws/manifest.json")" ]; then
  rm -rf "$out/laws" "$out/report.html"
fi
worldpm laws "$out"/results/* --resamples "${RESAMPLES:-1000}" --out "$out/laws"
worldpm report "$out/laws" --out "$out/report.html"
