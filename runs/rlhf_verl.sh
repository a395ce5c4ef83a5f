#!/usr/bin/env bash
# verl's GRPO with our reward function. Needs verl and its GPUs; untested.
#
#   worldpm serve checkpoint --port 8000 &
#   runs/rlhf_verl.sh POLICY TRAIN.parquet http://127.0.0.1:8000 [OPTIONS OF main_ppo ...]
#
# Several URLs, separated by commas, are servers with the same model. Instead of URLs you can give a checkpoint folder, which each worker
# then loads. `extra_info` of the data needs `prompt` or `question`.
set -euo pipefail
if [ $# -lt 3 ]; then
  sed -n '2,8s/^# \{0,1\}//p' "$0" >&2
  exit 2
fi
policy=$1 data=$2 source=$3
shift 3
exec python -m verl.trainer.main_ppo algorithm.adv_estimator=grpo \
  actor_rollout_ref.model.path="$policy" data.train_files="$data" \
  reward.custom_reward_function.path="$(python -c 'import worldpm.rlhf.verl as file; print(file.__file__)')" \
  reward.custom_reward_function.name=compute_score_async \
  "+reward.custom_reward_function.reward_kwargs.source=$source" "$@"
