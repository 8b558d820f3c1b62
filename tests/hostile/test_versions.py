"""Versions that hang, take all memory, or are no files: the service refuses them by name, and goes on."""

import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import numpy_helper

from model_store import ImageShape
from tests.hostile.harness import ChildService, watched
from tests.hostile.wire import Answer
from tests.toys import Toy, bernoulli_toy
from tests.web.forms import npy

SHAPE = ImageShape(channels=1, height=28, width=28)
GIBIBYTE = 2**30
IMAGE = npy(np.zeros((1, 28, 28), np.uint8))
ADMIN = "a-key-for-the-admin"
Edit = Callable[[onnx.ModelProto], None]


def add(store: Path, name: str, edit: Edit = lambda _: None, seed: int = 5) -> Path:
    """Publish a version whose decoder was edited; the folder."""
    toy = bernoulli_toy(SHAPE, name=name, seed=seed)
    model = onnx.load_from_string(toy.decoder)
    edit(model)
    return put(store, Toy(toy.description, toy.encoder, bytes(model.SerializeToString()), toy.calibration))


def put(store: Path, toy: Toy) -> Path:
    stored = toy.publish(store)
    return stored.path


def before_all(model: onnx.ModelProto, nodes: list[onnx.NodeProto], **constants: Any) -> None:
    """Let nodes make `changed` of `z`, and the decoder go on with that."""
    for node in model.graph.node:
        node.input[:] = ["changed" if name == "z" else name for name in node.input]
    for position, node in enumerate(nodes):
        model.graph.node.insert(position, node)
    model.graph.initializer.extend(numpy_helper.from_array(np.asarray(v), name) for name, v in constants.items())


def slow(model: onnx.ModelProto) -> None:
    """Products of matrices so large that one takes a second, and there are thousands: nothing of it is forbidden."""
    make, count = onnx.helper.make_node, 5000
    nodes = [make("ReduceMean", ["z"], ["mean"]), make("Expand", ["mean", "large"], ["m0"])]
    nodes += [make("MatMul", [f"m{index}", f"m{index}"], [f"m{index + 1}"]) for index in range(count)]
    nodes += [make("ReduceMean", [f"m{count}"], ["end"], keepdims=0), make("Add", ["z", "end"], ["changed"])]
    before_all(model, nodes, large=np.array([3000, 3000]))


def bomb(model: onnx.ModelProto) -> None:
    """0.6 GB in each of several sessions, which is there, and which the trial may not take."""
    make = onnx.helper.make_node
    nodes = [make("ReduceMean", ["z"], ["mean"]), make("Expand", ["mean", "large"], ["much"])]
    nodes += [make("ReduceMean", ["much"], ["end"], keepdims=0), make("Add", ["z", "end"], ["changed"])]
    before_all(model, nodes, large=np.array([150, 10**6]))


def no_numbers(model: onnx.ModelProto) -> None:
    (weight,) = [tensor for tensor in model.graph.initializer if tensor.name == "w2"]
    weight.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(weight) * np.float32(np.nan), "w2"))


def far_away(model: onnx.ModelProto, nodes: list[onnx.NodeProto], **constants: Any) -> None:
    """Let nodes make `more` of `far` [rows, 1], a number that is 0 but for codes that no trial draws."""
    make = onnx.helper.make_node
    before = [make("ReduceMax", ["z", "axis"], ["most"]), make("Sub", ["most", "bound"], ["beyond"])]
    before += [make("Relu", ["beyond"], ["far"])]
    constants |= {"axis": np.array([1]), "bound": np.float32(20)}
    before_all(model, [*before, *nodes, make("Add", ["z", "more"], ["changed"])], **constants)


def division(model: onnx.ModelProto) -> None:
    """The least whole number divided by 1, and far away by −1, at which the processor ends the process."""
    make, whole = onnx.helper.make_node, onnx.TensorProto.INT64
    nodes = [make("Sign", ["far"], ["sign"]), make("Cast", ["sign"], ["one_or_none"], to=whole)]
    nodes += [make("Mul", ["one_or_none", "two"], ["two_or_none"]), make("Sub", ["one", "two_or_none"], ["by"])]
    nodes += [make("Div", ["least", "by"], ["divided"]), make("Cast", ["divided"], ["number"], to=1)]
    nodes += [make("Mul", ["number", "small"], ["more"])]
    least = np.array([[np.iinfo(np.int64).min]])
    far_away(model, nodes, one=np.array(1), two=np.array(2), least=least, small=np.float32(1e-30))


def regions(model: onnx.ModelProto) -> None:
    """Mean values of regions of an image, which far away have as many points as the number says."""
    make = onnx.helper.make_node
    nodes = [make("Mul", ["far", "corner"], ["moved"]), make("Add", ["moved", "region"], ["regions"])]
    nodes += [make("ReduceMin", ["regions", "axis"], ["least"], keepdims=0), make("Cast", ["least"], ["of"], to=7)]
    nodes += [make("RoiAlign", ["picture", "regions", "of"], ["found"], output_height=1, output_width=1)]
    nodes += [make("Flatten", ["found"], ["more"])]
    box, picture = np.array([[0, 0, 7, 7]], np.float32), np.zeros((1, 1, 8, 8), np.float32)
    far_away(model, nodes, corner=box, region=box, picture=picture)


def encode(service: ChildService, query: str, milliseconds: int = 60_000) -> Answer:
    headers = {"Content-Type": "application/x-npy", "X-Request-Timeout-Ms": str(milliseconds)}
    return service.ask("POST", f"/v1/encode?{query}", IMAGE, headers)


def told(service: ChildService) -> dict[str, dict[str, Any]]:
    """What `/v1/models` says, by model."""
    models = json.loads(service.ask("GET", "/v1/models").body)["models"]
    return {model["name"]: model for model in models}


def wait_until(holds: Callable[[], bool]) -> None:
    end = time.monotonic() + 120
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.05)


def test_a_version_that_hangs_is_refused_and_holds_up_nothing_else(tmp_path: Path) -> None:
    for name in ("digits", "others", "others"):
        add(tmp_path, name)
    settings: dict[str, Any] = {"model": "digits", "reload_seconds": 0.1, "trial_seconds": 15, "timeout_seconds": 100}
    unchanged = ("POST", "/v1/encode?model=others", IMAGE, {"Content-Type": "application/x-npy"})
    with ChildService(tmp_path, decoders=0, **settings) as service, watched(service, reference=unchanged):
        add(tmp_path, "digits", slow)
        wait_until(lambda: bool(service.children()))  # the poll has come to it
        late = encode(service, "version=2", 300)
        assert (late.status, json.loads(late.body)["type"]) == (504, "urn:logpx:problem:deadline-exceeded")
        assert encode(service, "model=others&version=1").status == 200  # tried out and loaded meanwhile
        assert told(service)["digits"]["refused"] == []
        add(tmp_path, "digits", seed=6)
        wait_until(lambda: told(service)["digits"]["default_version"] == 3)
        (refused,) = told(service)["digits"]["refused"]
        assert refused == {
            "version": 2,
            "reason": "decoder.onnx: was not tried out within 15 s (LOGPX_TRIAL_SECONDS)",
        }
        broken = encode(service, "version=2")
        assert (broken.status, json.loads(broken.body)["type"]) == (503, "urn:logpx:problem:broken-model")
        assert encode(service, "version=1").status == encode(service, "version=3").status == 200
        wait_until(lambda: service.metric("logpx_reloads_total", outcome="refused") == 1)
        assert service.metric("logpx_reloads_total", outcome="failed") == 0
        assert service.metric("logpx_refused_versions") == 1
        wait_until(lambda: not service.children())  # none is kept for what may never come


def test_sigterm_ends_a_service_that_tries_versions_out(tmp_path: Path) -> None:
    add(tmp_path, "digits", slow)
    add(tmp_path, "digits")
    with ChildService(tmp_path, decoders=0, trial_seconds=3600, reload_seconds=0.1) as service:
        assert encode(service, "version=1", 300).status == 504  # the one that hangs is the older one
        add(tmp_path, "digits", slow)
        wait_until(lambda: len(service.children()) == 2)  # one for the request, and one for the poll
        assert encode(service, "").status == 200
        children = service.children()
        assert service.stop() == 0
        assert not [pid for pid in children if Path(f"/proc/{pid}").exists()]


def test_sigterm_ends_a_service_that_is_not_ready_for_a_version_that_hangs(tmp_path: Path) -> None:
    add(tmp_path, "digits")
    add(tmp_path, "digits", slow)

    class Starting(ChildService):
        def _wait_until_ready(self) -> None:
            """It will not be."""
            wait_until(lambda: bool(self.children()))

    with Starting(tmp_path, decoders=0, trial_seconds=3600) as service:
        assert service.ask("GET", "/readyz").status == 503
        children = service.children()
        assert service.stop() == 0
        assert not [pid for pid in children if Path(f"/proc/{pid}").exists()]


def test_what_is_wrong_is_named_and_the_version_before_serves(tmp_path: Path) -> None:
    """At start already, which does not fail for it; nor does anything take the memory that a version asks for."""
    edits: dict[str, tuple[Edit, str]] = {
        "bomb": (bomb, "decoder.onnx: cannot be run ("),
        "nan": (no_numbers, "decoder.onnx: output 'logits' is not finite for 256 of 256 latent codes"),
        "division": (division, "decoder.onnx: operator 'Div' is refused: it divides whole numbers"),
        "regions": (regions, "decoder.onnx: operator 'RoiAlign' takes a size that is computed"),
    }
    for name, (edit, _) in edits.items():
        add(tmp_path, name)
        add(tmp_path, name, edit)
    add(tmp_path, "pipe")
    pipe = add(tmp_path, "pipe") / "manifest.json"
    pipe.unlink()
    os.mkfifo(pipe)
    settings: dict[str, Any] = {"model": "nan", "admin_keys": ADMIN, "trial_memory_bytes": GIBIBYTE // 2}
    with ChildService(tmp_path, memory_limit=8 * GIBIBYTE, **settings) as service:
        with watched(service, memory=2 * GIBIBYTE):
            assert service.ask("POST", "/v1/admin/reload", headers={"X-API-Key": ADMIN}).status == 200  # tries again
        found = told(service)
        reasons = {name: reason for name, (_, reason) in edits.items()} | {
            "pipe": "manifest.json: cannot be read (not a"
        }
        for name, reason in reasons.items():
            assert (found[name]["default_version"], found[name]["loaded_versions"]) == (1, [1])
            (refused,) = found[name]["refused"]
            assert refused["version"] == 2
            assert refused["reason"].startswith(reason), refused
            assert encode(service, f"model={name}").status == 200
        assert service.metric("logpx_refused_versions") == len(reasons)
