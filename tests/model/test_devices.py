"""The device of a model: CUDA, or else Apple's GPU, or else the CPU."""

import pytest
import torch

from worldpm.errors import ConfigError
from worldpm.model import devices
from worldpm.stats import bradley_terry
from worldpm.stats.precision import widest_float


@pytest.mark.parametrize(
    ("cuda", "mps", "device"),
    [(True, True, "cuda"), (True, False, "cuda"), (False, True, "mps"), (False, False, "cpu")],
)
def test_cuda_goes_before_mps_and_mps_before_the_cpu(
    monkeypatch: pytest.MonkeyPatch, cuda: bool, mps: bool, device: str
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: mps)
    assert devices.default_device() == torch.device(device)


def test_apple_gpus_train_in_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"amx_bf16": True})
    assert devices.training_dtype() == torch.float32


def test_sums_on_apple_gpus_are_float32_because_they_have_no_float64() -> None:
    assert widest_float("mps") == widest_float(torch.device("mps:0")) == torch.float32
    assert widest_float("cpu") == widest_float("cuda:1") == torch.float64
    assert bradley_terry.pair_credits(torch.tensor([2.0, 0.0, -1.0])).tolist() == [1, 0.5, 0]


@pytest.mark.skipif(torch.backends.mps.is_available(), reason="this machine has an Apple GPU")
def test_a_missing_apple_gpu_gives_one_message() -> None:
    with pytest.raises(ConfigError, match=r"--device mps: not available here .*such as cpu"):
        devices.device_of("mps")
