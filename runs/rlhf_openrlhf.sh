#!/usr/bin/env bash
# OpenRLHF's PPO or GRPO with rewards from a server, or from a file that it loads. Needs OpenRLHF and its GPUs; untested.
#
#   worldpm serve checkpoint --port 8000 &
#   runs/rlhf_openrlhf.sh POLICY PROMPTS http://127.0.0.1:8000/get_reward [OPTIONS OF train_ppo_ray ...]
#
# The route reads whole texts in the policy's template. If the reward model has another template, give plain questions without a
# template, and give the file instead of a URL: it removes the prompt from the text and applies the reward model's template.
#
#   WORLDPM_REWARD_MODEL=checkpoint runs/rlhf_openrlhf.sh POLICY PROMPTS \
#     "$(python -c 'import worldpm.rlhf.openrlhf as file; print(file.__file__)')"
set -euo pipefail
if [ $# -lt 3 ]; then
  sed -n '2,12s/^# \{0,1\}//p' "$0" >&2
  exit 2
fi
policy=$1 prompts=$2 rewards=$3
shift 3
exec python -m openrlhf.cli.train_ppo_ray --actor.model_name_or_path "$policy" --data.prompt_dataset "$prompts" --reward.remote_url "$rewards" "$@"
