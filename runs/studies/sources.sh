#!/usr/bin/env bash
# Does a model of one site judge the others? The paper's figure 2: train on each, test on all.
#   runs/studies/sources.sh OUT ARCHIVE...
set -euo pipefail
out=${1:?a folder to write}
shift
. "$(dirname "$0")/conditions.sh"
tests=()
for archive in "$@"; do
  site=$(basename "$archive" .7z)
  worldpm ingest "$archive" --out "$out/threads/$site"
  condition "$site" "$out/threads/$site" "" "--epochs 3"
  tests+=("$out/groups/$site")
done
compare "${tests[@]}"
