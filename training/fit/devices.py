"""Where and how a process computes: the device, the precision of the networks, and their compilation."""

import os
from dataclasses import dataclass
from typing import Literal

import torch
from torch import nn

from training.errors import ConfigurationError

Precision = Literal["auto", "float32", "bfloat16"]

Compilation = Literal["auto", "on", "off"]

COMPILER = "inductor"


@dataclass(frozen=True)
class Acceleration:
    """How the networks run. Densities, bounds, weights and validation are float32 whatever is chosen.

    Attributes:
        precision: of the networks' matrix products and convolutions, by autocast.
        compiled: whether `torch.compile` translates encoder and decoder.
    """

    precision: Literal["float32", "bfloat16"] = "float32"
    compiled: bool = False


PLAIN = Acceleration()


def choose_device(name: str) -> torch.device:
    """The device to train on; `auto` is CUDA where it works, else the CPU. Under `torchrun`, each process has its GPU.

    Raises:
        ConfigurationError: CUDA is asked for and cannot be used.
    """
    if name == "cuda" and not torch.cuda.is_available():
        raise ConfigurationError("device cuda: PyTorch finds no usable CUDA device here")
    if name == "cpu" or not torch.cuda.is_available():
        return torch.device("cpu")
    device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
    torch.cuda.set_device(device)
    return device


def device_name(device: torch.device) -> str:
    """A device without its number: `cuda (NVIDIA H100 80GB HBM3)`, or `cpu (AVX2)`, the instructions PyTorch uses."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else torch.backends.cpu.get_cpu_capability()
    return f"{device.type} ({name})"


def choose_acceleration(
    device: torch.device,
    precision: Precision,
    compilation: Compilation,
    *,
    before: Acceleration | None = None,
    device_before: str | None = None,
) -> Acceleration:
    """What `auto` means on this device: bfloat16 and compilation on a GPU, neither on a CPU.

    In a run that goes on it means what it meant `before`: the precision wherever the run goes, compilation as long as
    the kind of device is that of before.

    >>> choose_acceleration(torch.device("cpu"), "auto", "on")
    Acceleration(precision='float32', compiled=True)
    >>> on_a_gpu = Acceleration("bfloat16", compiled=True)
    >>> choose_acceleration(torch.device("cpu"), "auto", "auto", before=on_a_gpu, device_before="cuda")
    Acceleration(precision='bfloat16', compiled=False)
    """
    on_gpu = device.type == "cuda"
    automatic = Acceleration("bfloat16" if on_gpu else "float32", compiled=on_gpu)
    if before:
        moved = device.type != device_before
        automatic = Acceleration(before.precision, automatic.compiled if moved else before.compiled)
    return Acceleration(
        precision=automatic.precision if precision == "auto" else precision,
        compiled=automatic.compiled if compilation == "auto" else compilation == "on",
    )


def compile_networks(encoder: nn.Module, decoder: nn.Module) -> None:
    """Translate both when they first run; their weights keep their names.

    Each batch size is translated by itself: there are two, the last batch of an epoch being smaller.
    """
    for network in (encoder, decoder):
        network.compile(backend=COMPILER, dynamic=False)
