"""Where and how a process computes, alone or as one of several that train the same model under `torchrun`."""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, distributed, nn

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


@dataclass(frozen=True)
class Team:
    """This process among those that train one model: each works on its share of every batch, all take the same step.

    Every process draws the random numbers of the whole batch, so that they do not depend on how many there are.
    """

    rank: int = 0
    size: int = 1

    @property
    def leads(self) -> bool:
        """Whether this process writes and prints."""
        return self.rank == 0

    def share(self, batch: Tensor) -> Tensor:
        """This process's rows of a batch [B, …]; none where there are more processes than rows.

        >>> [Team(rank, 3).share(torch.arange(7)).tolist() for rank in range(3)]
        [[0, 1, 2], [3, 4], [5, 6]]
        """
        return torch.tensor_split(batch, self.size)[self.rank]

    def add(self, tensors: Sequence[Tensor]) -> None:
        """Replace tensors of one type by their sums over all processes, in one message."""
        if self.size == 1:
            return
        message = torch.cat([tensor.reshape(-1) for tensor in tensors])
        distributed.all_reduce(message)
        for tensor, total in zip(tensors, torch.split(message, [tensor.numel() for tensor in tensors]), strict=True):
            tensor.copy_(total.view_as(tensor))

    def wait(self) -> None:
        """Return once every process has come here."""
        if self.size > 1:
            distributed.barrier()


ALONE = Team()


@contextmanager
def join_team(device: torch.device) -> Iterator[Team]:
    """The team that `torchrun` tells of in the environment, or a team of one; left again at the end.

    Messages go by NCCL between GPUs, by Gloo between CPUs.
    """
    if "TORCHELASTIC_RUN_ID" not in os.environ:
        yield ALONE
        return
    if device.type == "cuda":
        distributed.init_process_group("nccl", device_id=device)
    else:
        distributed.init_process_group("gloo")
    try:
        yield Team(distributed.get_rank(), distributed.get_world_size())
    finally:
        distributed.destroy_process_group()


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
