"""The device and the compute type that a model runs with, unless the user names others."""

from typing import cast

import torch

from worldpm.errors import ConfigError, first_line


def default_device() -> torch.device:
    """The first CUDA GPU, or else Apple's GPU (`mps`), or else the CPU."""
    if torch.cuda.is_available():
        return torch.device("cuda")
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")


def device_of(name: str | torch.device | None) -> torch.device:
    """The device of a `--device`, or the default one.

    Raises:
        ConfigError: If this machine has no such device.
    """
    if name is None:
        return default_device()

    try:
        return torch.empty(0, device=name).device
    # RuntimeError: an unknown name, or a missing GPU; AssertionError: a torch without the backend
    except (RuntimeError, AssertionError) as error:
        raise ConfigError(
            f"--device {name}: not available here ({first_line(error)}). Name another, such as cpu."
        ) from error


def torch_dtype(name: str | None) -> torch.dtype | None:
    """The type of a `--dtype`; None where the user named none."""
    return None if name is None else cast(torch.dtype, getattr(torch, name))


def training_dtype() -> torch.dtype:
    """bfloat16 if the device multiplies it in hardware, else float32.

    Apple's GPUs train in float32: only the newer ones, with a new system, multiply bfloat16.
    """
    if torch.cuda.is_available():
        in_hardware = torch.cuda.is_bf16_supported(including_emulation=False)
        return torch.bfloat16 if in_hardware else torch.float32

    if default_device().type == "mps":
        return torch.float32
    # without matrix units for it, for instance with AVX-512 only, the casts cost a small model more
    # time than faster products save
    return torch.bfloat16 if torch.cpu.get_capabilities().get("amx_bf16") else torch.float32
