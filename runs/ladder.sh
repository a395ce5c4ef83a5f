#!/usr/bin/env bash
# A ladder: every size with every seed on one stream of groups, snapshots at log-spaced amounts of data, each judged on
# every test, and the laws of all of it. Stopped at any moment, the same command goes on; what is finished is not run again.
#
#   runs/ladder.sh OUT GROUPS "SIZES" "SEEDS" TEST... [-- TRAINING OPTIONS]
#
#   runs/ladder.sh ladder groups "w16 w32 w64 w128" "0 1 2" threads/tests/*.parquet
#
# SIZES are built-in ones, or folders or hub ids of models; TESTS are what `worldpm evaluate --on` takes. JOBS runs at a time,
# one a core unless set; LAUNCH is what starts a training, `worldpm` unless set; SNAPSHOTS of a run are judged, 12 unless set;
# RESAMPLES are drawn for intervals, 1000 unless set.
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
  echo "two sizes are called" $twice "and would take each other's runs: rename a folder" >&2
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

# the largest first, so that no core waits for the last one
pids=() failed=0
for size in $(printf '%s\n' $sizes | tac); do
  for seed in $seeds; do
    while [ "$(jobs -rp | wc -l)" -ge "$JOBS" ]; do wait -n || failed=1; done
    rung "$size" "$seed" &
  done
done
while [ -n "$(jobs -rp)" ]; do wait -n || failed=1; done
[ "$failed" = 0 ] || { echo "some rungs failed; their logs are in $out/logs, the same command goes on" >&2; exit 1; }

# a ladder that grew has other laws; they are the only part that is made again
if [ ! -f "$out/laws/manifest.json" ] || [ -n "$(find "$out/results" -name manifest.json -newer "$out/laws/manifest.json")" ]; then
  rm -rf "$out/laws" "$out/report.html"
fi
worldpm laws "$out"/results/* --resamples "${RESAMPLES:-1000}" --out "$out/laws"
worldpm report "$out/laws" --out "$out/report.html"
