"""The GPU's figures at `/metrics`: whose they are, how often they are read, and a scrape where there are none."""

import asyncio
import os
import sys
import threading
import time
from collections.abc import Callable
from ctypes import Array, c_int, c_ubyte
from types import SimpleNamespace
from typing import Any
from uuid import UUID

import pytest
import structlog
from fastapi.testclient import TestClient

from service.engine.runtime import CUDA
from service.web.operations import gpu
from service.web.operations.gpu import GpuFigures
from service.web.operations.metrics import Metrics
from tests.web.conftest import Serve

FIRST, SECOND = (UUID(int=number << 64 | 0xABCD) for number in (1, 2))
"""Two cards, in the order of their places in the machine, which is NVML's and not CUDA's."""
FASTEST_FIRST = (SECOND, FIRST)
NAMES = ("memory_used_bytes", "memory_total_bytes", "utilisation_ratio", "temperature_celsius", "power_watts")


class NVMLError(Exception):
    """Of the library."""


class NotSupportedError(NVMLError):
    """What is not measured."""


class Machine:
    """NVIDIA's two libraries on a machine of two cards, as far as they are asked.

    Attributes:
        prefix: `GPU`, or `MIG` where each device that CUDA shows is a slice.
        failing: functions of NVML that fail, with what they raise.
        asked: the functions of NVML that were called, in order.
    """

    NVML_TEMPERATURE_GPU = 0
    NVMLError, NVMLError_NotSupported = NVMLError, NotSupportedError

    def __init__(self) -> None:
        self.prefix = "GPU"
        self.failing: dict[str, Exception] = {}
        self.asked: list[str] = []
        self.before_answering: Callable[[], object] = lambda: None

    def __getattr__(self, name: str) -> Callable[..., Any]:
        answers: dict[str, Callable[..., Any]] = {
            "nvmlInit": lambda: None,
            "nvmlShutdown": lambda: None,
            "nvmlDeviceGetHandleByUUID": self._handle,
            "nvmlDeviceGetMemoryInfo": lambda card: SimpleNamespace(used=card * 2**30, total=80 * 2**30),
            "nvmlDeviceGetUtilizationRates": lambda card: SimpleNamespace(gpu=40 + card, memory=3),
            "nvmlDeviceGetTemperatureV": lambda card, sensor: 50 + card + sensor,
            "nvmlDeviceGetPowerUsage": lambda card: 250_500 + card,
        }
        if name not in answers:
            raise AttributeError(name)

        def call(*arguments: Any) -> Any:
            self.asked.append(name)
            self.before_answering()
            if name in self.failing:
                raise self.failing[name]
            return answers[name](*arguments)

        return call

    def _handle(self, uuid: str) -> int:
        cards = {f"{self.prefix}-{FIRST}": 1, f"{self.prefix}-{SECOND}": 2}
        if uuid not in cards:
            raise NVMLError("Not Found")
        return cards[uuid]

    def cuda(self, name: str) -> Any:
        """CUDA's driver; it shows the devices that CUDA_VISIBLE_DEVICES names, in that order."""
        assert name == "libcuda.so.1"
        visible = [FASTEST_FIRST[int(place)] for place in os.environ.get("CUDA_VISIBLE_DEVICES", "0,1").split(",")]

        def get(device: Any, index: int) -> int:
            target: c_int = device._obj
            target.value = index
            return 0 if index < len(visible) else 101

        def get_uuid(octets: Any, device: c_int) -> int:
            target: Array[c_ubyte] = octets._obj
            target[:] = list(visible[device.value].bytes)
            return 0

        return SimpleNamespace(cuInit=lambda flags: flags, cuDeviceGet=get, cuDeviceGetUuid_v2=get_uuid)


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Machine:
    made = Machine()
    monkeypatch.setitem(sys.modules, "pynvml", made)
    monkeypatch.setattr(gpu, "CDLL", made.cuda)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    return made


def of_gpu(text: str) -> dict[str, tuple[str, float]]:
    """Each series of the GPU: its UUID and its value."""
    lines = [line.removeprefix("logpx_gpu_") for line in text.splitlines() if line.startswith("logpx_gpu_")]
    found = {}
    for line in lines:
        series, _, value = line.partition(" ")
        name, _, uuid = series.removesuffix('"}').partition('{uuid="')
        found[name] = uuid, float(value)
    return found


class Reader:
    """The figures of a process, without an app.

    Attributes:
        warnings: reasons that were logged.
    """

    def __init__(self, device: int = 0) -> None:
        self._metrics = Metrics()
        self.figures = GpuFigures(self._metrics, lambda: device, patience_seconds=30)
        self.warnings: list[str] = []

    async def scrape(self, *, later: bool = True) -> dict[str, tuple[str, float]]:
        """What `/metrics` shows; `later`: more than a second after the last time."""
        if later:
            self.figures._next = 0.0
        with structlog.testing.capture_logs() as lines:
            await self.figures.refresh()
        self.warnings += [line["reason"] for line in lines if line["event"] == "no figures of the GPU"]
        return of_gpu(b"".join(self._metrics.texts()).decode())


def test_the_figures_of_the_device_that_models_run_on_are_told(machine: Machine, serve: Serve) -> None:
    client: TestClient = serve(execution_provider="cpu", device_id=1)
    assert of_gpu(client.get("/metrics").text) == {}  # the models run on the CPU
    assert machine.asked == []
    backend: Any = client.app.state.backend  # type: ignore[attr-defined]
    backend.registry._runtime.provider = CUDA
    response = client.get("/metrics")
    assert response.status_code == 200
    uuid = f"GPU-{FIRST}"  # the second for CUDA, the first for NVML
    assert of_gpu(response.text) == dict(
        zip(NAMES, [(uuid, value) for value in (2.0**30, 80 * 2.0**30, 0.41, 51.0, 250.501)], strict=True)
    )
    asked = len(machine.asked)
    assert client.get("/metrics").text.count(uuid) == len(NAMES)
    assert len(machine.asked) == asked  # within the same second it is not read again
    machine.failing["nvmlDeviceGetPowerUsage"] = NVMLError("GPU is lost")
    deadline = time.monotonic() + 30
    while of_gpu(client.get("/metrics").text):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert client.get("/metrics").status_code == 200


@pytest.mark.parametrize(
    ("visible", "index", "card"),
    [(None, 0, SECOND), (None, 1, FIRST), ("1", 0, FIRST), ("1,0", 0, FIRST), ("1,0", 1, SECOND), ("0", 0, SECOND)],
)
def test_devices_are_counted_as_cuda_counts_them(
    machine: Machine, visible: str | None, index: int, card: UUID, monkeypatch: pytest.MonkeyPatch
) -> None:
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    found = asyncio.run(Reader(index).scrape())
    assert {uuid for uuid, _ in found.values()} == {f"GPU-{card}"}
    assert found["memory_used_bytes"][1] == (1 if card == FIRST else 2) * 2**30


def test_of_a_slice_only_its_memory_is_told(machine: Machine) -> None:
    machine.prefix = "MIG"
    found = asyncio.run(Reader().scrape())
    assert found == {
        "memory_used_bytes": (f"MIG-{SECOND}", 2.0 * 2**30),
        "memory_total_bytes": (f"MIG-{SECOND}", 80.0 * 2**30),
    }


def test_what_a_card_does_not_measure_is_left_out(machine: Machine) -> None:
    machine.failing["nvmlDeviceGetPowerUsage"] = NotSupportedError("Not Supported")
    reader = Reader()
    assert list(asyncio.run(reader.scrape())) == list(NAMES[:-1])
    machine.failing["nvmlDeviceGetMemoryInfo"] = NotSupportedError("Not Supported")
    assert list(asyncio.run(reader.scrape())) == ["utilisation_ratio", "temperature_celsius"]
    assert reader.warnings == []


@pytest.mark.parametrize(
    ("break_it", "reason"),
    [
        (lambda machine, patch: patch.setitem(sys.modules, "pynvml", None), "ModuleNotFoundError: import of pynvml"),
        (lambda machine, _: machine.failing.update(nvmlInit=NVMLError("Driver Not Loaded")), "NVMLError: Driver Not"),
        (lambda machine, _: setattr(machine, "prefix", "vGPU"), "NVMLError: Not Found"),
        (lambda _, patch: patch.setenv("CUDA_VISIBLE_DEVICES", "1"), "NoFiguresError: cuDeviceGet of CUDA's driver"),
        (lambda _, patch: patch.setattr(gpu, "CDLL", lambda _: SimpleNamespace()), "AttributeError: "),
        (
            lambda _, patch: patch.setattr(gpu, "CDLL", lambda _: (_ for _ in ()).throw(OSError("gone"))),
            "OSError: gone",
        ),
        (lambda _, patch: patch.setattr(threading.Thread, "start", no_thread), "RuntimeError: can't start"),
    ],
)
def test_without_nvml_or_where_the_device_is_not_known_there_is_one_line_in_the_log(
    machine: Machine,
    break_it: Callable[[Machine, pytest.MonkeyPatch], None],
    reason: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    break_it(machine, monkeypatch)
    reader = Reader(1)

    async def scrape_often() -> None:
        for _ in range(3):
            assert await reader.scrape() == {}

    asyncio.run(scrape_often())
    (told,) = reader.warnings
    assert told.startswith(reason)
    assert machine.asked.count("nvmlShutdown") == (3 if "Not Found" in reason else 0)


def no_thread(_: threading.Thread) -> None:
    """Where the process may have no more."""
    raise RuntimeError("can't start new thread")


def test_a_later_failure_ends_the_figures_until_nvml_answers_again(machine: Machine) -> None:
    reader = Reader()

    async def fail_and_recover() -> None:
        assert len(await reader.scrape()) == len(NAMES)
        machine.failing["nvmlDeviceGetMemoryInfo"] = NVMLError("GPU is lost")
        machine.failing["nvmlShutdown"] = NVMLError("Uninitialized")
        for _ in range(3):
            assert await reader.scrape() == {}
        machine.failing.clear()
        assert len(await reader.scrape()) == len(NAMES)

    asyncio.run(fail_and_recover())
    assert reader.warnings == ["NVMLError: GPU is lost"]


def test_it_is_not_read_more_than_once_a_second(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    reader, now = Reader(), 1000.0
    monkeypatch.setattr(gpu, "time", SimpleNamespace(monotonic=lambda: now))

    async def scrape_at(second: float) -> int:
        nonlocal now
        now = second
        assert len(await reader.scrape(later=False)) == len(NAMES)
        return machine.asked.count("nvmlDeviceGetPowerUsage")

    seconds = (1000, 1000.5, 1000.99, 1001, 1001.5, 1002.2)
    assert [asyncio.run(scrape_at(second)) for second in seconds] == [1, 1, 1, 2, 2, 3]
    assert machine.asked.count("nvmlInit") == 1


def test_a_driver_that_hangs_delays_one_scrape_and_no_other_work(machine: Machine) -> None:
    released, reader = threading.Event(), Reader()

    async def hang() -> None:
        assert len(await reader.scrape()) == len(NAMES)
        machine.before_answering = lambda: released.wait(30)
        reader.figures._patience_seconds = 0.3
        turns = 0

        async def other_work() -> None:
            nonlocal turns
            while True:
                turns += 1
                await asyncio.sleep(0.001)

        working = asyncio.create_task(other_work())
        assert await reader.scrape() == {}
        assert turns > 10
        working.cancel()
        asked, began = len(machine.asked), time.monotonic()
        for _ in range(5):
            assert await reader.scrape() == {}
        assert time.monotonic() - began < 5 * 0.3  # nobody waits for it, and it is not asked once more
        assert len(machine.asked) == asked
        released.set()
        while not (await reader.scrape()):
            await asyncio.sleep(0.001)

    asyncio.run(hang())
    assert reader.warnings[0] == "the driver has not answered within 0.3 s"
    assert len(reader.warnings) == 1
