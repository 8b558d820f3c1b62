"""The figures of the GPU at `/metrics`, by NVIDIA's management library (NVML), where the models run on CUDA.

`LOGPX_DEVICE_ID` counts the devices that CUDA shows to this process, in CUDA's order; NVML counts all devices of the
machine, in another. So CUDA's driver is asked for the UUID of the device, which it tells with CUDA_VISIBLE_DEVICES,
CUDA_DEVICE_ORDER and MIG heeded, and NVML for the device with this UUID. Where either fails there are no figures.

A driver can hang. It is asked in a thread of its own, one at a time, which nobody waits for at the process's end.
"""

import asyncio
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from contextlib import suppress
from ctypes import CDLL, byref, c_int, c_ubyte
from typing import Any
from uuid import UUID

import structlog

from service.web.operations.metrics import Metrics

_EVERY_SECONDS = 1.0
_PATIENCE_SECONDS = 0.5
_log = structlog.get_logger()

Answer = Future[tuple[str, dict[str, float]] | str]
"""The UUID and the figures, or why there are none."""


class NoFiguresError(Exception):
    """CUDA's driver does not tell which device it is."""


class Card:
    """One device, or one MIG slice of it, as NVML knows it. Every method can take as long as the driver does.

    Args:
        index: of the device, as CUDA counts in this process.

    Attributes:
        uuid: as `nvidia-smi -L` shows it.

    Raises:
        ImportError: nvidia-ml-py is not installed.
        NoFiguresError, OSError, AttributeError: CUDA's driver does not tell its UUID, is not there, or is too old.
        pynvml.NVMLError: NVML cannot be used, or knows no such device.
    """

    def __init__(self, index: int) -> None:
        import pynvml  # of the extra `gpu` alone

        self._nvml: Any = pynvml
        uuid = uuid_of(index)
        self._nvml.nvmlInit()
        try:
            self.uuid, self._handle = self._find(f"GPU-{uuid}", f"MIG-{uuid}")
        except Exception:
            self.close()
            raise

    def _find(self, whole: str, part: str) -> tuple[str, Any]:
        try:
            return whole, self._nvml.nvmlDeviceGetHandleByUUID(whole)
        except self._nvml.NVMLError:
            return part, self._nvml.nvmlDeviceGetHandleByUUID(part)

    def read(self) -> dict[str, float]:
        """The figures that there are, by metric of `Metrics`: in bytes, as a share, in °C and in watts.

        Of a MIG slice there is only its memory: the rest belongs to the whole device, or is not measured.

        Raises:
            pynvml.NVMLError: NVML fails, other than by not measuring something.
        """
        nvml, handle, found = self._nvml, self._handle, dict[str, float]()
        with suppress(nvml.NVMLError_NotSupported):
            memory = nvml.nvmlDeviceGetMemoryInfo(handle)
            found |= {"gpu_memory_used": memory.used, "gpu_memory_total": memory.total}
        if self.uuid.startswith("GPU-"):
            with suppress(nvml.NVMLError_NotSupported):
                found["gpu_utilisation"] = nvml.nvmlDeviceGetUtilizationRates(handle).gpu / 100
            with suppress(nvml.NVMLError_NotSupported):
                found["gpu_temperature"] = nvml.nvmlDeviceGetTemperatureV(handle, nvml.NVML_TEMPERATURE_GPU)
            with suppress(nvml.NVMLError_NotSupported):
                found["gpu_power"] = nvml.nvmlDeviceGetPowerUsage(handle) / 1000
        return found

    def close(self) -> None:
        """Leave NVML, whether it still answers or not."""
        with suppress(Exception):
            self._nvml.nvmlShutdown()


def uuid_of(index: int) -> UUID:
    """The UUID of a device that CUDA shows to this process, or of its MIG slice, by CUDA's driver.

    Raises:
        NoFiguresError, OSError, AttributeError: as `Card`.
    """
    driver = CDLL("libcuda.so.1")  # that of ONNX Runtime, which is loaded
    device, octets = c_int(), (c_ubyte * 16)()
    steps: Mapping[str, tuple[Any, ...]] = {
        "cuInit": (0,),
        "cuDeviceGet": (byref(device), index),
        "cuDeviceGetUuid_v2": (byref(octets), device),
    }
    for name, arguments in steps.items():
        if status := getattr(driver, name)(*arguments):
            raise NoFiguresError(f"{name} of CUDA's driver fails with {status}")
    return UUID(bytes=bytes(octets))


class GpuFigures:
    """Reads the GPU's figures into the metrics, at most once a second.

    Where a reading fails, or takes too long, the metrics have none until one succeeds; the log tells each reason once.

    Args:
        metrics: has the gauges.
        device: the index of the device that the models run on, as CUDA counts; None on the CPU, or while not known.
        patience_seconds: how long a reading is waited for.
    """

    def __init__(
        self, metrics: Metrics, device: Callable[[], int | None], *, patience_seconds: float = _PATIENCE_SECONDS
    ) -> None:
        self._gauges = {name: gauge for name, gauge in vars(metrics).items() if name.startswith("gpu_")}
        self._device = device
        self._patience_seconds = patience_seconds
        self._card: Card | None = None
        self._answer: Answer | None = None
        self._next = 0.0
        self._told: set[str] = set()

    async def refresh(self) -> None:
        """Read, if a second has passed since the last reading began, and that one has ended. Raises nothing."""
        index, now = self._device(), time.monotonic()
        if index is None or now < self._next or (self._answer is not None and not self._answer.done()):
            return
        self._next, self._answer = now + _EVERY_SECONDS, Future()
        try:
            threading.Thread(target=self._read, args=(index, self._answer), name="nvml", daemon=True).start()
        except RuntimeError as error:  # the process may have no more threads
            self._answer.set_result(f"{type(error).__name__}: {error}")
        await asyncio.wait([asyncio.wrap_future(self._answer)], timeout=self._patience_seconds)
        for gauge in self._gauges.values():
            gauge.clear()
        late = f"the driver has not answered within {self._patience_seconds:g} s"
        answer = self._answer.result() if self._answer.done() else late
        if isinstance(answer, str):
            if answer not in self._told:
                self._told.add(answer)
                _log.warning("no figures of the GPU", reason=answer)
            return
        uuid, figures = answer
        for name, value in figures.items():
            self._gauges[name].labels(uuid).set(value)

    def _read(self, index: int, answer: Answer) -> None:
        """Read, in a thread. After a failure the next reading begins anew with NVML."""
        try:
            card = self._card = self._card or Card(index)
            answer.set_result((card.uuid, card.read()))
        except Exception as error:  # noqa: BLE001 - whatever a driver or a library brings about, the service goes on
            card_that_failed, self._card = self._card, None
            if card_that_failed is not None:
                card_that_failed.close()
            answer.set_result(f"{type(error).__name__}: {error}")
