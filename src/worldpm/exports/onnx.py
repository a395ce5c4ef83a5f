"""A checkpoint as an ONNX graph. Its inputs are token ids and the positions of end tokens, and its
outputs are rewards.

Rows are padded at the right with any token: attention is causal, so tokens after an end token
cannot change its reward.
"""

import logging
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import torch
from numpy.typing import NDArray
from onnxruntime.quantization import QuantType, quantize_dynamic
from torch import Tensor, nn

from worldpm.errors import ConfigError, WorldPMError
from worldpm.model.encoder import EncodedGroup
from worldpm.model.reward_model import RewardModel

GRAPH, GRAPH_INT8 = "model.onnx", "model_int8.onnx"
LARGEST_BYTES = 1_500_000_000
PARITY = 1e-4
"""Largest allowed difference of a float32 graph's reward, in logits or relative to the reward."""


class _Graph(nn.Module):
    """The traced module, with explicit positions, no mask, and a reward at each row's end."""

    def __init__(self, model: RewardModel) -> None:
        super().__init__()
        self.backbone, self.score = model.backbone, model.score

    def forward(self, input_ids: Tensor, ends: Tensor) -> Tensor:
        positions = torch.arange(input_ids.shape[1]).unsqueeze(0).expand(input_ids.shape[0], -1)
        hidden = self.backbone(
            input_ids=input_ids, position_ids=positions, use_cache=False
        ).last_hidden_state
        rewards: Tensor = self.score(hidden[torch.arange(input_ids.shape[0]), ends]).sum(dim=-1)
        return rewards


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence the exporter, which warns about its own graph."""
    disabled = logging.root.manager.disable
    logging.disable(logging.WARNING)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            yield
        finally:
            logging.disable(disabled)


def write(
    model: RewardModel,
    path: Path,
    groups: Sequence[EncodedGroup],
    expected: Sequence[Sequence[float]],
) -> float:
    """Trace the model in float32 on a CPU, for any number of rows of any length. Write the graph,
    compare it on groups, and return the largest difference.

    Raises:
        ConfigError: If the model is too large for one file.
        WorldPMError: If the graph gives other rewards. The graph is then dropped.
    """
    if (size := sum(p.numel() * p.element_size() for p in model.parameters())) > LARGEST_BYTES:
        raise ConfigError(
            f"--to onnx: the weights have {size:,} bytes in float32, but an ONNX file holds at most"
            f" {LARGEST_BYTES:,}. Use --to model."
        )

    rows = torch.export.Dim("rows", min=1, max=4096)
    length = torch.export.Dim("length", min=2, max=32_768)
    example = (torch.ones(3, 7, dtype=torch.int64), torch.tensor([6, 2, 4]))
    # the exporter cannot trace our attention, which builds a plan for each row
    with model.separate_rows(), _quiet(), torch.no_grad():
        torch.onnx.export(
            _Graph(model).eval(),
            example,
            path,
            dynamo=True,
            verbose=False,
            input_names=["input_ids", "ends"],
            output_names=["rewards"],
            dynamic_shapes={"input_ids": {0: rows, 1: length}, "ends": {0: rows}},
            external_data=False,
        )

    return check(expected, Runtime(path).rewards(groups))


def quantise(path: Path, target: Path) -> int:
    """Write the graph with weight matrices as 8-bit integers. Activations are quantised at run
    time."""
    graph = onnx.load(path)
    # the quantiser infers shapes itself, and rejects the exporter's shapes
    del graph.graph.value_info[:]
    with _quiet():
        quantize_dynamic(graph, target, weight_type=QuantType.QInt8)
    return target.stat().st_size


class Runtime:
    """A graph in onnxruntime, on the CPU."""

    def __init__(self, path: Path) -> None:
        self._session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])

    def rewards(self, groups: Sequence[EncodedGroup]) -> list[list[float]]:
        """Rewards of each group's responses, computed in one padded batch per group."""
        return [self._of(group) for group in groups]

    def _of(self, group: EncodedGroup) -> list[float]:
        rows = [
            np.concatenate([group.prefix, suffix]).astype(np.int64) for suffix in group.suffixes
        ]
        if not rows:
            return []
        ids: NDArray[np.int64] = np.zeros((len(rows), max(map(len, rows))), dtype=np.int64)
        for number, row in enumerate(rows):
            ids[number, : len(row)] = row
        ends = np.array([len(row) - 1 for row in rows], dtype=np.int64)

        inputs = {"input_ids": ids, "ends": ends}
        rewards: list[float] = self._session.run(["rewards"], inputs)[0].tolist()
        return rewards


def largest_difference(
    expected: Sequence[Sequence[float]], computed: Sequence[Sequence[float]]
) -> float:
    """The largest difference of a reward. Differences of rewards above 1 are relative."""
    largest = 0.0
    for expected_group, computed_group in zip(expected, computed, strict=True):
        for reward, again in zip(expected_group, computed_group, strict=True):
            difference = abs(reward - again) / max(1.0, abs(reward))
            # not `max`, which would drop a NaN
            largest = difference if not difference <= largest else largest
    return largest


def check(expected: Sequence[Sequence[float]], computed: Sequence[Sequence[float]]) -> float:
    """The largest difference of a graph that should be exact.

    Raises:
        WorldPMError: If the difference is above PARITY, or a reward is NaN.
    """
    worst = largest_difference(expected, computed)
    if not worst <= PARITY:
        raise WorldPMError(
            f"--to onnx: the graph's rewards differ by {worst:.2g}, but at most {PARITY:g} is"
            " allowed. The graph was dropped; use --to model."
        )
    return worst
