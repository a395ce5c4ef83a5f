"""A model that reads the states of its frozen layers gives the rewards and gradients of one that
runs them."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import GPT2Config

from tests.model.test_families import (
    FAMILIES,
    GROUPS,
    VOCABULARY,
    WINDOW,
    gradients,
    group,
    model_of,
)
from worldpm.errors import ConfigError
from worldpm.model import frozen_states
from worldpm.model.frozen_states import FrozenStates
from worldpm.model.reward_model import RewardModel, from_config

PROMPT, ONE, TWO = np.array([5, 6, 7]), np.array([8, 9]), np.array([10, 11, 12])

READING_BELOW: dict[str, dict[str, Any]] = {
    "gemma3n_text": {
        **WINDOW,
        "head_dim": 8,
        "num_kv_shared_layers": 2,
        "vocab_size_per_layer_input": VOCABULARY,
        "hidden_size_per_layer_input": 8,
        "altup_num_inputs": 2,
        "laurel_rank": 4,
        "layer_types": ["sliding_attention", "full_attention"] * 2,
        "activation_sparsity_pattern": [0.0] * 4,
    },
    "gemma4_text": {
        **WINDOW,
        "head_dim": 8,
        "num_kv_shared_layers": 2,
        "vocab_size_per_layer_input": VOCABULARY,
        "hidden_size_per_layer_input": 8,
        "layer_types": ["sliding_attention", "full_attention"] * 2,
    },
}


def frozen(folder: Path, family: str = "llama", *, count: int = 2) -> RewardModel:
    """A model of four layers that keeps the states of the first ones in a folder."""
    model = model_of(family, FAMILIES[family])
    frozen_states.freeze(model.backbone, count)
    model.keep_states(count, folder)
    return model


def states_of(model: RewardModel) -> FrozenStates:
    assert model.frozen_states is not None
    return model.frozen_states


def written(folder: Path) -> torch.Tensor:
    """Write the states of GROUPS to a folder, and return the rewards."""
    model = frozen(folder)
    rewards: torch.Tensor = model(GROUPS)
    states_of(model).write()
    return rewards


def runs(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The number of groups of each later run of the frozen layers."""
    computed: list[int] = []
    run = FrozenStates._run

    def counted(states: FrozenStates, groups: list[object]) -> object:
        computed.append(len(groups))
        return run(states, groups)  # type: ignore[arg-type]

    monkeypatch.setattr(FrozenStates, "_run", counted)
    return computed


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("count", [1, 3, 4])
def test_rewards_and_gradients_are_those_of_a_model_that_runs_all_layers(
    family: str, count: int, tmp_path: Path
) -> None:
    model = frozen(tmp_path, family, count=count)
    first, again = model(GROUPS), model(GROUPS)
    of_states = gradients(model, again)
    model.frozen_states = None
    whole = model(GROUPS)
    of_whole = gradients(model, whole)
    assert (first - whole).abs().max() < 1e-5
    assert (again - whole).abs().max() < 1e-5
    assert (of_states - of_whole).norm() <= 1e-5 * of_whole.norm()


def test_layers_that_return_tuples_are_replaced_too(tmp_path: Path) -> None:
    config = GPT2Config(vocab_size=60, n_embd=32, n_layer=4, n_head=4, n_positions=128)
    model = from_config(config, seed=1).eval()
    whole = model(GROUPS)
    model.keep_states(3, tmp_path)
    assert (model(GROUPS) - whole).abs().max() < 1e-5
    model.keep_states(3, tmp_path)
    assert (model(GROUPS) - whole).abs().max() < 1e-5


def test_gradient_checkpointing_gives_the_same_gradients(tmp_path: Path) -> None:
    model = frozen(tmp_path)
    plain = gradients(model, model(GROUPS))
    model.train()
    model.backbone.activation_checkpointing_enable()
    again = gradients(model, model(GROUPS))
    assert (again - plain).norm() <= 1e-5 * plain.norm()


def test_only_weights_up_to_the_last_frozen_layer_are_frozen() -> None:
    model = model_of("gemma3_text", FAMILIES["gemma3_text"])
    frozen_states.freeze(model.backbone, 2)
    trained = {name for name, weight in model.named_parameters() if weight.requires_grad}
    assert {name.split(".")[2] for name in trained if ".layers." in name} == {"2", "3"}
    assert {name for name in trained if ".layers." not in name} == {
        "backbone.norm.weight",
        "score.weight",
    }


def test_a_text_runs_through_the_frozen_layers_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = frozen(tmp_path)
    computed = runs(monkeypatch)
    rewards = model([group(PROMPT, [ONE, TWO])])
    # each response alone, and in another order beside another group
    alone = [model([group(PROMPT, [response])]) for response in (ONE, TWO)]
    mixed = model([group(PROMPT, [TWO, ONE]), group(PROMPT[:2], [ONE])])
    assert computed == [1, 1]
    assert (torch.cat(alone) - rewards).abs().max() < 1e-5
    assert (mixed[:2].flip(0) - rewards).abs().max() < 1e-5


def test_a_longer_prompt_is_not_taken_for_a_prompt_and_its_response(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = frozen(tmp_path)
    computed = runs(monkeypatch)
    model([group(PROMPT, [ONE])])
    model([group(np.concatenate([PROMPT, ONE]), [TWO])])
    model([group(PROMPT[:2], [np.concatenate([PROMPT[2:], ONE])])])
    assert computed == [1, 1, 1]


def test_another_process_reads_the_states_from_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rewards = written(tmp_path)
    second = frozen(tmp_path)
    computed = runs(monkeypatch)
    assert torch.equal(second(GROUPS), rewards)
    assert computed == []


def test_states_go_to_disk_when_they_fill_a_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(frozen_states, "FILE_BYTES", 1)
    model = frozen(tmp_path)
    rewards = model(GROUPS)
    assert list(tmp_path.rglob("*.safetensors"))
    assert torch.equal(model(GROUPS), rewards)


def test_states_of_other_weights_or_layers_are_not_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written(tmp_path)
    other = model_of("llama", FAMILIES["llama"])
    with torch.no_grad():
        other.get_parameter("backbone.layers.1.mlp.up_proj.weight")[0, 0] += 1e-3
    other.keep_states(2, tmp_path)
    # a layer that is trained has no part in the name
    trained = model_of("llama", FAMILIES["llama"])
    with torch.no_grad():
        trained.get_parameter("backbone.layers.2.mlp.up_proj.weight")[0, 0] += 1e-3
    trained.keep_states(2, tmp_path)
    fewer = frozen(tmp_path, count=1)

    computed = runs(monkeypatch)
    for model in (other, fewer, trained):
        model(GROUPS)
    assert computed == [3, 3]


def test_labels_and_names_of_a_config_have_no_part_in_the_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rewards = written(tmp_path)
    other = model_of("llama", FAMILIES["llama"])
    other.backbone.config.problem_type = "regression"
    other.backbone.config.architectures = ["LlamaForSequenceClassification"]
    other.backbone.config.pad_token_id = 3
    other.backbone.config._name_or_path = "elsewhere"
    other.keep_states(2, tmp_path)
    computed = runs(monkeypatch)
    assert torch.equal(other(GROUPS), rewards)
    assert computed == []


def test_a_damaged_file_of_states_is_computed_again(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    rewards = written(tmp_path)
    (path,) = tmp_path.rglob("*.safetensors")
    path.write_bytes(path.read_bytes()[:100])
    assert torch.equal(frozen(tmp_path)(GROUPS), rewards)
    assert f"{path}: not readable" in caplog.text


def test_a_model_that_shares_no_prompts_runs_its_frozen_layers_each_time(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model = model_of("llama", FAMILIES["llama"])
    model.share_prefix(False)
    plain = model(GROUPS)
    model.keep_states(2, tmp_path)
    assert model.frozen_states is None
    assert "llama: shares no prompts, so its frozen layers run each time" in caplog.text
    assert torch.equal(model(GROUPS), plain)


def test_later_layers_that_need_more_than_the_states_run_with_all_layers(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model = model_of("llama", FAMILIES["llama"])
    first, last = (model.get_submodule(f"backbone.layers.{number}.mlp") for number in (0, 3))
    seen: list[torch.Tensor] = []
    # the last layer adds the output of the first one, which does not run if states are read
    model.backbone.register_forward_pre_hook(lambda *_: seen.clear())
    first.register_forward_hook(lambda _, __, output: seen.append(output))
    last.register_forward_hook(lambda _, __, output: output + (seen[0] if seen else 0.0))
    model.keep_states(2, tmp_path)
    assert model.frozen_states is None
    assert "so its frozen layers run each time" in caplog.text


@pytest.mark.parametrize("family", READING_BELOW)
def test_families_whose_layers_read_more_of_lower_layers_run_all_of_them(
    family: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model = model_of(family, READING_BELOW[family]).eval()
    whole = model(GROUPS)
    model.keep_states(2, tmp_path)
    assert model.frozen_states is None
    assert "its layers need more than the states of those below" in caplog.text
    assert torch.equal(model(GROUPS), whole)


def test_more_frozen_layers_than_the_model_has_are_an_error() -> None:
    model = model_of("llama", FAMILIES["llama"])
    with pytest.raises(ConfigError, match="--freeze-layers 5: the model has only 4 layers"):
        frozen_states.freeze(model.backbone, 5)
