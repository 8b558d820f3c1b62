"""What one stretch of training ran on."""

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Session:
    """One stretch of a run's epochs, trained by one call of `fit`: what the weights depend on besides the description.

    Attributes:
        first_epoch: counted from 1; the session's last is the one before the next session's first.
        device: see `training.fit.devices.device_name`.
        precision: of the networks.
        compiled: whether `torch.compile` translated them.
        num_threads: of each process, on a CPU.
        num_processes: how many trained together.
        library_versions: package to version, and Python's.
    """

    first_epoch: int
    device: str
    precision: str
    compiled: bool
    num_threads: int
    num_processes: int
    library_versions: Mapping[str, str]
