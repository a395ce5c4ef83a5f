# Functions that the studies share: train conditions that differ in one setting, evaluate them on the same tests, and compare them
# pair by pair. Set `out` before you source this file. MODEL is the size or model to train, w128 by default.
mkdir -p "$out/groups" "$out/checkpoints"

condition() { # NAME "THREADS" "GROUPING OPTIONS" "TRAINING OPTIONS"
  # shellcheck disable=SC2086  # these variables are lists of words
  worldpm group $2 $3 --out "$out/groups/$1"
  # shellcheck disable=SC2086
  worldpm train "$out/groups/$1" --model "${MODEL:-w128}" --max-length 512 $4 --out "$out/checkpoints/$1"
}

compare() { # TEST...
  worldpm evaluate "$out"/checkpoints/* --on "$@" --out "$out/results"
  worldpm report "$out/results" --out "$out/report.html"
}
