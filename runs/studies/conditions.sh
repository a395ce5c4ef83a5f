# What the studies share: conditions that differ in one thing, judged on the same tests and compared pair by pair.
# To be sourced with `out` set; MODEL is the size or model that is trained, w128 unless set.
mkdir -p "$out/groups" "$out/checkpoints"

condition() { # NAME "THREADS" "GROUPING OPTIONS" "TRAINING OPTIONS"
  # shellcheck disable=SC2086  # lists of words
  worldpm group $2 $3 --out "$out/groups/$1"
  # shellcheck disable=SC2086
  worldpm train "$out/groups/$1" --model "${MODEL:-w128}" --max-length 512 $4 --out "$out/checkpoints/$1"
}

compare() { # TEST...
  worldpm evaluate "$out"/checkpoints/* --on "$@" --out "$out/results"
  worldpm report "$out/results" --out "$out/report.html"
}
