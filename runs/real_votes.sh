#!/usr/bin/env bash
# Real models, real votes: does training on a forum's votes help a pre-trained language model? Compares four starts (SmolLM2-135M as
# it is; trained on votes; trained as a language model on the same text; trained by the paper's rule) after fine-tuning on two human
# sets with 300 and 1,000 pairs. If it is interrupted, the same command resumes.
#
#   runs/real_votes.sh OUT DUMPS DATA [--small]
#
# DUMPS holds archives of Stack Exchange sites (`SITE.stackexchange.com.7z`), DATA the folders `preferences` and `benchmarks` with the
# files of hh-rlhf, UltraFeedback, LLMBar, EvalBiasBench, JudgeBench, PandaLM and Fine-Grained RLHF. `pip install gguf` first. About 20
# hours of one core, a quarter of it with DTYPE=bfloat16 on a processor that multiplies bfloat16 itself. --small has one site and few
# pairs, only to see that all parts work. STARTS="plain language votes" leaves out a start, LANGUAGE_RATES=1e-4 a rate of the control.
set -euo pipefail
if [ $# -lt 3 ]; then
  sed -n '2,12s/^# \{0,1\}//p' "$0" >&2
  exit 2
fi
out=$1 dumps=$2 data=$3
study="$(dirname "$0")/studies/real_votes.py"

export STARTS="${STARTS:-plain language paper votes}" DTYPE=${DTYPE:-float32} MAX_LENGTH=512 FROZEN=${FROZEN:-27} AMOUNTS="300 1000" SEEDS="0 1 2" TESTED=300 PLANTED=100 VALIDATION=60
sites="beer matheducators quantumcomputing ai bioinformatics italian augur" rates="1e-4 3e-4" snapshots=6 pairs_of_step=64
if [ "${4:-}" = --small ]; then
  export AMOUNTS="32 64" SEEDS="0" TESTED=16 PLANTED=8 VALIDATION=8
  sites="augur" rates="3e-4" snapshots=2 pairs_of_step=16
fi
export OMP_NUM_THREADS=1
mkdir -p "$out/starts" "$out/tuned" "$out/results" "$out/logs"

python "$study" model "$out"
# shellcheck disable=SC2086  # a list of words
worldpm ingest $(printf "$dumps/%s.stackexchange.com.7z " $sites) --out "$out/threads"
worldpm ingest "$dumps/music.meta.stackexchange.com.7z" "$dumps/boardgames.meta.stackexchange.com.7z" --out "$out/unseen-threads"
worldpm group "$out/threads" --out "$out/groups"
worldpm group "$out/threads" --rule worldpm --out "$out/paper-groups"
worldpm group "$out/unseen-threads" --validation-share 0 --test-share 0.99 --out "$out/unseen-groups"
[ -f "$out/tests/cut.jsonl" ] || python "$study" prepare "$out" "$data"

common=(--max-length "$MAX_LENGTH" --freeze-layers "$FROZEN" --states "$out/states" --dtype "$DTYPE")
benchmarks=("evalbiasbench=$data/benchmarks/evalbiasbench" "$out/tests/off-topic.jsonl" "$out/tests/cut.jsonl"
  "judgebench=$out/tests/judgebench" "$out/tests/hh.jsonl" "pandalm=$out/tests/pandalm"
  "finegrained-rlhf=$out/tests/finegrained-rlhf" "$out/tests/threads.parquet" "$out/tests/unseen.parquet")
[ "${4:-}" = --small ] || benchmarks+=("llmbar=$data/benchmarks/llmbar")

logged() { # NAME COMMAND...
  local name=$1
  shift
  "$@" > "$out/logs/$name" 2>&1 || { echo "$name failed:" >&2; tail -n 3 "$out/logs/$name" >&2; return 1; }
  echo "$(date +%H:%M) $name: done"
}

on_forum() { # NAME GROUPS OPTIONS...
  local name=$1 groups=$2
  shift 2
  logged "$name" worldpm train "$groups" --model "$out/model" "${common[@]}" --batch-pairs "$pairs_of_step" \
    --validation-groups "$VALIDATION" --validations 4 "$@" --out "$out/starts/$name"
}

best() { # TARGET PREFIX RATES: write the best of PREFIX-RATE
  # shellcheck disable=SC2086  # a list of words
  [ -f "$1" ] || { python "$study" best $(printf "$2-%s " $3) > "$1.part" && mv "$1.part" "$1"; }
}

model_of() { # START
  if [ "$1" = plain ]; then echo "$out/model"; else echo "$out/starts/$(cat "$out/starts/$1.best")"; fi
}

start_votes() {
  local rate
  for rate in $rates; do on_forum "votes-$rate" "$out/groups" --lr "$rate" --snapshots "$snapshots"; done
  best "$out/starts/votes.best" "$out/starts/votes" "$rates"
}

start_language() {
  local rate
  for rate in ${LANGUAGE_RATES:-$rates}; do logged "language-$rate" python "$study" language "$out" "$rate"; done
  best "$out/starts/language.best" "$out/starts/language" "${LANGUAGE_RATES:-$rates}"
}

start_paper() { # one random pair of each thread, for as many tokens as the votes
  local rate passes
  passes=$(python "$study" passes "$out" "$(model_of votes)")
  for rate in $rates; do on_forum "paper-$rate" "$out/paper-groups" --lr "$rate" --epochs "$passes"; done
  best "$out/starts/paper.best" "$out/starts/paper" "$rates"
}

tuned() { # NAME START SET AMOUNT SEED RATE OPTIONS...
  local name=$1 start=$2 pairs="$out/sets/$3-$4-$5.jsonl" validation="$out/sets/$3-validation.jsonl" seed=$5 rate=$6
  shift 6
  logged "$name" worldpm train "$pairs" --validation "$validation" --model "$(model_of "$start")" "${common[@]}" --lr "$rate" \
    --batch-pairs 16 --seed "$seed" "$@" --out "$out/tuned/$name"
}

pilot() { # START: choose its rate on a draw of its own
  local rate
  for rate in $rates; do tuned "pilot-$1-$rate" "$1" ultrafeedback "${AMOUNTS%% *}" 9 "$rate" --validations 2; done
  best "$out/tuned/$1.best" "$out/tuned/pilot-$1" "$rates"
}

tune() { # START SET AMOUNT SEED: fine-tune, and judge the result
  local name="$1-$2-$3-$4" rate epochs=1
  [ -f "$out/results/$name/manifest.json" ] && return
  rate=$(sed "s/pilot-$1-//" "$out/tuned/$1.best")
  [ "$3" = "${AMOUNTS%% *}" ] && epochs=2
  tuned "$name" "$@" "$rate" --epochs "$epochs" --validations 3
  judged "$name" "$out/tuned/$name"
  # half a gigabyte, which the results replace
  rm "$out/tuned/$name/model.safetensors"
}

judged() { # NAME CHECKPOINT...
  local name=$1
  shift
  logged "results-$name" worldpm evaluate "$@" --on "${benchmarks[@]}" --states "$out/states" --dtype "$DTYPE" --out "$out/results/$name"
}

all_tuned() { # START AMOUNT
  local set seed
  for seed in $SEEDS; do for set in hh ultrafeedback; do tune "$1" "$set" "$2" "$seed"; done; done
}

has() { case " $STARTS " in *" $1 "*) ;; *) return 1 ;; esac }

# Two lanes with a core each; a start that shares states with another follows it. Few pairs come first, so that all starts can be
# compared early.
few=${AMOUNTS%% *} many=${AMOUNTS##* }
lane_of_votes() {
  start_votes; pilot votes; all_tuned votes "$few"
  if has paper; then start_paper; pilot paper; all_tuned paper "$few"; fi
  judge_starts
  all_tuned votes "$many"
  if has paper; then all_tuned paper "$many"; fi
}
lane_of_text() {
  pilot plain; all_tuned plain "$few"
  if has language; then start_language; pilot language; all_tuned language "$few"; fi
  all_tuned plain "$many"
  if has language; then all_tuned language "$many"; fi
}

judge_starts() { # the starts with a head of their own, beside the snapshots of the votes and a model trained from nothing
  local models=("$(model_of votes)" "$out/starts/tiny")
  if has paper; then models+=("$(model_of paper)"); fi
  logged tiny worldpm train "$out/groups" --model tiny --max-length "$MAX_LENGTH" --dtype float32 --out "$out/starts/tiny"
  judged starts "${models[@]}"
  judged snapshots "$(model_of votes)"/snapshots/*
}

lane_of_votes & votes=$!
lane_of_text & text=$!
wait "$votes" && wait "$text" || { echo "some parts failed. Read their logs in $out/logs; the same command resumes." >&2; exit 1; }

[ -f "$out/laws/manifest.json" ] || worldpm laws "$out/results/snapshots" --out "$out/laws"
python "${study%.py}_tables.py" "$out"
