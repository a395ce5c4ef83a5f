#!/usr/bin/env bash
# Does a model that was trained on one site judge the others well? The paper's figure 2: train on each site, test on all.
#   runs/studies/sources.sh OUT SOURCE...          archives, or folders of threads
set -euo pipefail
out=${1:?a folder to write}
shift
. "$(dirname "$0")/conditions.sh"
tests=()
for source in "$@"; do
  site=$(basename "$source" .7z) threads=$source
  if [ ! -f "$source/manifest.json" ]; then
    threads=$out/threads/$site
    worldpm ingest "$source" --out "$threads"
  fi
  condition "$site" "$threads" "" "--epochs 3"
  tests+=("$out/groups/$site")
done
compare "${tests[@]}"
