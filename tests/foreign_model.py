"""A tiny reward model as others publish them: a folder of transformers with a chat template, and no
file of ours."""

from pathlib import Path
from typing import Any

import torch
from tokenizers.processors import TemplateProcessing
from transformers import LlamaConfig, LlamaForSequenceClassification

from worldpm.model.tokenizer import train_tokenizer

TEXTS = ["The quick brown fox jumps over the lazy dog.", "How many grams of rye? About 14."] * 20
CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
STRICT = (
    "{{ bos_token }}{% for m in messages %}{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('roles must alternate') }}{% endif %}"
    "<|im_start|>{{ m.role }}\n{{ m.content | trim }}<|im_end|>\n{% endfor %}"
)
"""A template that requires alternating turns, as those of Gemma and Mistral do."""


def make(folder: Path, template: str = CHATML, *, width: int = 32) -> Path:
    """Write the model. Its tokenizer puts a begin token before each text, with any template."""
    tokenizer = train_tokenizer(TEXTS, vocabulary=400, max_length=256)
    tokenizer.add_special_tokens({"bos_token": "<|begin|>"})
    begin = tokenizer.convert_tokens_to_ids("<|begin|>")
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<|begin|> $A", special_tokens=[("<|begin|>", begin)]
    )
    tokenizer.chat_template = template
    tokenizer.save_pretrained(folder)

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        max_position_embeddings=256,
        hidden_size=width,
        intermediate_size=3 * width // 2,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        pad_token_id=None,
    )
    config.num_labels = 1
    LlamaForSequenceClassification(config).save_pretrained(folder)  # type: ignore[no-untyped-call]
    return folder


def plain_reward(folder: Path, turns: list[dict[str, Any]]) -> float:
    """Reward of plain transformers for the template's text, without a second begin token."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = LlamaForSequenceClassification.from_pretrained(folder).eval()  # type: ignore[no-untyped-call]
    text = str(tokenizer.apply_chat_template(turns, tokenize=False))
    ids = tokenizer(text, add_special_tokens=False, return_tensors="pt")["input_ids"]
    with torch.no_grad():
        return float(model(input_ids=ids).logits[0, 0])
