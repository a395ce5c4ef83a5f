"""Train a policy with rewards: TRL's GRPO with `worldpm.rlhf.trl`, for models from a few hundred
thousand parameters up.

    python runs/rlhf_trl.py REWARD_MODEL POLICY GROUPS OUT [STEPS]

REWARD_MODEL is a folder, or the URLs of `worldpm serve`, separated by commas. POLICY is a language
model, or `tiny`: random weights with the reward model's tokenizer, for URLs with that of
`worldpm/tiny-forum`. With `tiny` the reward rises visibly on a CPU.
Prompts come from the training split of GROUPS. Needs the extra `rlhf`.
"""

import sys
from collections import Counter
from itertools import islice
from pathlib import Path

from datasets import Dataset
from transformers import AutoTokenizer, Qwen2Config, Qwen2ForCausalLM
from trl import GRPOConfig, GRPOTrainer

from worldpm.datasets.training_data import TrainingData
from worldpm.model import sources
from worldpm.rlhf.trl import RewardFunction

PROMPTS, ROLLOUTS, TOKENS = 512, 8, 24


def main(reward_model: str, policy: str, groups: str, out: str, steps: int) -> None:
    words_of = policy
    if policy == "tiny":
        is_url = reward_model.startswith(("http://", "https://"))
        words_of = str(sources.find("worldpm/tiny-forum").folder) if is_url else reward_model
    tokenizer = AutoTokenizer.from_pretrained(words_of, padding_side="left")
    model = tiny_policy(tokenizer) if policy == "tiny" else policy
    examples = islice(TrainingData.find([groups]).groups("train", Counter()), PROMPTS)
    prompts = [
        [{"role": message.role, "content": message.content} for message in group.prompt]
        for group in examples
    ]
    rate = (
        {"learning_rate": 5e-3, "lr_scheduler_type": "constant"}
        if policy == "tiny"
        else {"learning_rate": 1e-6}
    )
    settings = GRPOConfig(
        output_dir=out,
        max_steps=steps,
        per_device_train_batch_size=32,
        num_generations=ROLLOUTS,
        max_completion_length=TOKENS,
        beta=0.0,
        logging_steps=1,
        report_to=[],
        save_strategy="no",
        bf16=False,
        use_cpu=policy == "tiny",
        gradient_checkpointing=False,
        disable_tqdm=True,
        **rate,
    )
    trainer = GRPOTrainer(
        model=model,
        reward_funcs=RewardFunction(reward_model),
        args=settings,
        train_dataset=Dataset.from_dict({"prompt": prompts}),
        processing_class=tokenizer,
    )
    trainer.train()
    rewards = [
        row["rewards/worldpm/mean"]
        for row in trainer.state.log_history
        if "rewards/worldpm/mean" in row
    ]
    tenth = max(1, len(rewards) // 10)
    first, last = sum(rewards[:tenth]) / tenth, sum(rewards[-tenth:]) / tenth
    Path(out).mkdir(parents=True, exist_ok=True)
    (Path(out) / "rewards.txt").write_text("".join(f"{reward:.4f}\n" for reward in rewards))
    print(
        f"{len(rewards)} steps: mean reward {first:.3f} in the first tenth, {last:.3f} in the last"
    )


def tiny_policy(tokenizer: AutoTokenizer) -> Qwen2ForCausalLM:
    """A model of two layers with random weights."""
    ends = {
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
        "bos_token_id": None,
    }
    shape = {
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 4,
    }
    return Qwen2ForCausalLM(
        Qwen2Config(vocab_size=len(tokenizer), initializer_range=0.1, **shape, **ends)
    )


if __name__ == "__main__":
    if len(sys.argv) not in (5, 6):
        sys.exit(__doc__)
    main(*sys.argv[1:5], int(sys.argv[5]) if len(sys.argv) == 6 else 60)
