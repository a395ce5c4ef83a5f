#!/usr/bin/env bash
# Fine-tune a WorldPM checkpoint on nvidia/HelpSteer2 with the paper's settings (arXiv 2505.10527, section 4): 128 pairs a step, two epochs,
# the checkpoint with the lowest validation loss. The paper does not give the learning rate of this stage; 3e-6 is the rate of its training.
#   runs/finetune_helpsteer2.sh CHECKPOINT OUT [DATA] [more options of worldpm train]
# DATA is a folder with the files of the set, or its hub id. On several GPUs: accelerate launch -m worldpm.cli train ...
set -euo pipefail
model=${1:?a checkpoint: a folder, or a hub id such as Qwen/WorldPM-72B}
out=${2:?a folder to write}
data=${3:-nvidia/HelpSteer2}
worldpm train "$data" --model "$model" --out "$out" --batch-pairs 128 --epochs 2 --lr 3e-6 --max-length 2048 "${@:4}"
