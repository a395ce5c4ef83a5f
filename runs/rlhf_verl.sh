#!/usr/bin/env bash
# verl's GRPO with a reward function of ours. Needs verl and its GPUs; not run here.
#
#   worldpm serve checkpoint --port 8000 &
#   runs/rlhf_verl.sh POLICY TRAIN.parquet http://127.0.0.1:8000 [OPTIONS OF main_ppo ...]
#
# The last may also be a checkpoint's folder; each worker then loads it. `extra_info` of the data must hold `prompt` or `question`.
set -euo pipefail
if [ $# -lt 3 ]; then
  sed -n '2,7s/^# \{0,1\}//p' "$0" >&2
  exit 2
fi
policy=$1 data=$2 place=$3
shift 3
exec python -m verl.trainer.main_ppo algorithm.adv_estimator=grpo \
  actor_rollout_ref.model.path="$policy" data.train_files="$data" \
  reward.custom_reward_function.path="$(python -c 'import worldpm.rlhf.verl as file; print(file.__file__)')" \
  reward.custom_reward_function.name=compute_score \
  "+reward.custom_reward_function.reward_kwargs.place=$place" "$@"
