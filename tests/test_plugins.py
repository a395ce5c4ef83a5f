"""Doors for other tools: the pipeline of transformers, TRL, inspect_ai, lm-evaluation-harness."""

import asyncio
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from transformers import pipeline

from tests import foreign_model
from worldpm import Scorer
from worldpm.errors import ConfigError
from worldpm.reward_trainer import Arguments, RewardTrainer
from worldpm.training.step_metrics import StepMetrics, ValidationMetrics

PAIRS = [
    {"prompt": f"How many grams for {n} loaves?", "chosen": f"About {n}.", "rejected": "No."}
    for n in range(40)
]


def test_the_pipeline_of_transformers_gives_the_rewards_of_the_scorer(road: Path) -> None:
    scorer = Scorer.load(road / "checkpoint")
    ask = pipeline("text-classification", model=str(road / "checkpoint"), function_to_apply="none")
    turns = [{"role": "user", "content": "Bread?"}, {"role": "assistant", "content": "Yes."}]
    text = scorer.encoder.tokenizer.apply_chat_template(turns, tokenize=False)
    reply = ask(str(text), add_special_tokens=False)
    assert reply[0]["score"] == pytest.approx(scorer.rewards("Bread?", ["Yes."])[0], abs=1e-5)


def test_a_script_of_trl_trains_with_its_arguments(tmp_path: Path) -> None:
    rows: list[StepMetrics | ValidationMetrics] = []
    args = {
        "output_dir": str(tmp_path / "out"),
        "learning_rate": 1e-3,
        "max_steps": 4,
        "num_train_epochs": 3.0,
        "per_device_train_batch_size": 4,
        "gradient_accumulation_steps": 2,
        "lr_scheduler_type": SimpleNamespace(value="linear"),
        "warmup_ratio": 0.25,
        "max_length": 64,
        "bf16": False,
    }
    trainer = RewardTrainer("w16", args, PAIRS, PAIRS[:8], callbacks=[rows.append])
    result = trainer.train()
    assert [row.step for row in rows if isinstance(row, StepMetrics)] == [1, 2, 3, 4]
    assert any(isinstance(row, ValidationMetrics) for row in rows)
    assert result.metrics is not None
    assert trainer.evaluate()["eval_loss"] == result.metrics.loss_nats
    assert len(trainer.scorer.rewards("a", ["b", "c"])) == 2

    options = Arguments.of(args).options()
    assert options.pop("batch_pairs") == 8
    assert (options["schedule"], options["warmup"], options["decay"]) == ("constant", 0.25, 0.75)
    assert "epochs" not in options
    assert Arguments(warmup_steps=0.1).options()["warmup"] == 0.1
    assert Arguments(warmup_steps=10, max_steps=40).options()["warmup"] == 0.25
    with pytest.raises(ConfigError, match="train_dataset"):
        RewardTrainer("w16", args)
    with pytest.raises(ConfigError, match="give functions"):
        RewardTrainer("w16", args, PAIRS, callbacks=[object()])  # type: ignore[list-item]


def test_a_model_in_memory_is_trained_further(tmp_path: Path) -> None:
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    folder = foreign_model.make(tmp_path / "model")
    trainer = RewardTrainer(
        AutoModelForSequenceClassification.from_pretrained(folder),
        {"output_dir": str(tmp_path / "out"), "max_steps": 1, "max_length": 64},
        PAIRS,
        processing_class=AutoTokenizer.from_pretrained(folder),
    )
    assert trainer.train().folder == tmp_path / "out"
    (start,) = tmp_path.glob("out.start-*")
    assert (start / "config.json").exists()
    with pytest.raises(ConfigError, match="neither a name nor a model of transformers"):
        RewardTrainer(3, {"output_dir": str(tmp_path / "b")}, PAIRS).train()


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ({"max_grad_norm": 0.3}, "Only 1.0 is possible"),
        ({"optim": "adafactor"}, "Use one of adamw_torch_fused"),
        ({"fp16": True}, "Use bf16"),
        ({"warmup_steps": 100}, "needs max_steps"),
        ({"lr_scheduler_type": "polynomial"}, "Use linear, constant or cosine"),
    ],
)
def test_arguments_that_cannot_be_used_are_refused(args: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Arguments.of(args).options()


def test_the_arguments_of_trl_itself_are_read() -> None:
    trl = pytest.importorskip("trl", reason="the extra rlhf is not installed")
    args = trl.RewardConfig(output_dir="x", learning_rate=3e-6, max_length=512, bf16=False)
    options = Arguments.of(args).options()
    assert (options["lr"], options["max_length"]) == (3e-6, 512)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("against", ["nothing", "target"])
def test_inspect_scores_answers_by_their_reward(road: Path, against: Any) -> None:
    pytest.importorskip("inspect_ai", reason="inspect_ai is not installed")
    from inspect_ai.model import ChatMessageAssistant, ChatMessageUser, ModelName, ModelOutput
    from inspect_ai.scorer import Target
    from inspect_ai.solver import TaskState

    from worldpm.plugins.inspect_scorer import preference

    model = str(road / "checkpoint")
    output = ModelOutput.from_content("mockllm/model", "Yes.")
    turns = [ChatMessageUser(content="Bread?"), ChatMessageAssistant(content="Yes.")]
    state = TaskState(ModelName("mockllm/model"), 1, 0, "Bread?", turns, output=output)
    score = asyncio.run(preference(model, against=against)(state, Target("Maybe.")))

    first, second = Scorer.load(model).rewards("Bread?", ["Yes.", "Maybe."])
    expected = 1 / (1 + math.exp(second - first)) if against == "target" else first
    assert score is not None
    assert score.value == pytest.approx(expected, abs=1e-4)


@pytest.mark.filterwarnings("ignore")
def test_the_harness_takes_the_choice_with_the_highest_reward(road: Path) -> None:
    pytest.importorskip("lm_eval", reason="lm_eval is not installed")
    from lm_eval.api.instance import Instance

    from worldpm.plugins.lm_harness import RewardLM

    model = RewardLM(str(road / "checkpoint"))
    asked = [("Bread?", " Yes."), ("Cake?", " So."), ("Bread?", " No.")]
    requests = [Instance("loglikelihood", {}, words, index) for index, words in enumerate(asked)]
    replies = model.loglikelihood(requests)
    scorer = Scorer.load(road / "checkpoint")
    expected = [scorer.rewards(context, [text.strip()])[0] for context, text in asked]
    assert [reward for reward, _ in replies] == pytest.approx(expected, abs=1e-4)
    with pytest.raises(NotImplementedError):
        model.generate_until(requests)
