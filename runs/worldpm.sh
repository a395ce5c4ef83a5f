#!/usr/bin/env bash
# The paper's ladder: train Qwen2.5 from 0.5B to 72B on one pass over the groups of all sites, with the paper's settings (arXiv
# 2505.10527, appendix A.3): 10,240 pairs a step, lr 3e-6 constant after 10 % warm-up, 2,048 tokens. Evaluate on its test sets.
#   runs/worldpm.sh OUT GROUPS BENCHMARKS ["SIZES"] [more options of worldpm train]
# BENCHMARKS contains one folder per benchmark. On several machines, set LAUNCH to the accelerate command with its options.
set -euo pipefail
out=${1:?a folder to write}
groups=${2:?a folder of groups}
benchmarks=${3:?a folder of benchmarks}
sizes=${4:-Qwen/Qwen2.5-0.5B Qwen/Qwen2.5-1.5B Qwen/Qwen2.5-7B Qwen/Qwen2.5-72B}
export JOBS=1
export LAUNCH=${LAUNCH:-accelerate launch --use_fsdp --fsdp_version 2 --fsdp_auto_wrap_policy TRANSFORMER_BASED_WRAP -m worldpm.cli}
tests=()
for name in rm-bench offsetbias llmbar ppe helpsteer2 rmb rewardbench1; do tests+=("$name=$benchmarks/$name"); done
"$(dirname "$0")/ladder.sh" "$out" "$groups" "$sizes" 0 "${tests[@]}" -- --gradient-checkpointing "${@:5}"
