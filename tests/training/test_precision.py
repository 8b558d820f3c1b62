"""Float32 is float32, also on processors and GPUs that could round it; such processors are emulated."""

import math
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.distributions import Normal
from torch.utils._python_dispatch import TorchDispatchMode

from service.engine.runtime import Runtime
from tests.rounding import gamma, sum_error
from training.configuration import Configuration
from training.data.splits import DataSplits
from training.fit.devices import Acceleration
from training.fit.loaded_model import load_model
from training.fit.objective import log_weight, negative_iwae_bound
from training.fit.run import create_run, describe_run
from training.fit.trainer import EpochFigures, fit, validate
from training.networks.precision import full_float32
from training.networks.vae import Vae, build_vae
from training.publish.export import ExportedGraphs, check_parity, export
from training.report.figures import draw_figures

CPU = torch.device("cpu")
RECIPES: dict[str, dict[str, Any]] = {
    "mlp": {},
    "resnet": {
        "preset": "resnet",
        "width": 1,
        "depth": 1,
        "likelihood": "discretised_logistic",
        "binarisation": "none",
    },
}
RECIPE = Configuration(width=4, latent_dim=3, num_samples=2, epochs=2, batch_size=8)
aten = torch.ops.aten
PRODUCTS = {aten.mm, aten.addmm, aten.bmm, aten.baddbmm}
CONVOLUTIONS = {aten.convolution, aten.convolution_backward}
# What PyTorch lets each backend do, by the same settings that its kernels ask.
BACKENDS: Any = torch.backends
SETTINGS = {
    "oneDNN": (BACKENDS.mkldnn.matmul, BACKENDS.mkldnn.conv),
    "CUDA": (BACKENDS.cuda.matmul, BACKENDS.cudnn.conv),
}
DROPPED_BITS = {"bf16": 16, "tf32": 13}


def rounded(tensor: Tensor, setting: Any) -> Tensor:
    """A float32 tensor with the bits after the point that the setting leaves, rounded to nearest."""
    bits = DROPPED_BITS.get(setting.fp32_precision)
    if bits is None or tensor.dtype != torch.float32:
        return tensor
    whole = tensor.contiguous().view(torch.int32) + (1 << (bits - 1))
    return (whole & -(1 << bits)).view(torch.float32).reshape(tensor.shape)


class LowPrecisionUnits(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """A processor that rounds the operands of products and convolutions wherever PyTorch's settings allow it to."""

    def __init__(self, backend: str) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.matmul, self.convolution = SETTINGS[backend]
        self.num_rounded = self.num_seen = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        setting = next(
            (
                setting
                for operations, setting in ((PRODUCTS, self.matmul), (CONVOLUTIONS, self.convolution))
                if func.overloadpacket in operations
            ),
            None,
        )
        if setting is not None:
            self.num_seen += 1
            self.num_rounded += setting.fp32_precision in DROPPED_BITS
            args = tuple(rounded(each, setting) if isinstance(each, Tensor) else each for each in args)
        return func(*args, **(kwargs or {}))


@pytest.fixture(params=SETTINGS)
def units(request: pytest.FixtureRequest) -> Iterator[LowPrecisionUnits]:
    """Such a processor, in a process that allows it everything."""
    precision, cudnn = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    torch.set_float32_matmul_precision("medium")
    torch.backends.cudnn.allow_tf32 = True
    for setting in SETTINGS["oneDNN"]:
        setting.fp32_precision = "bf16"
    yield LowPrecisionUnits(request.param)
    torch.set_float32_matmul_precision(precision)
    torch.backends.cudnn.allow_tf32 = cudnn
    for setting in SETTINGS["oneDNN"]:
        setting.fp32_precision = "none"


def settings() -> list[object]:
    """Of every backend, in PyTorch's older words and in its newer ones."""
    newer = (*SETTINGS["oneDNN"], *SETTINGS["CUDA"], BACKENDS.mkldnn.rnn, BACKENDS.cudnn.rnn)
    older = [torch.get_float32_matmul_precision(), BACKENDS.cuda.matmul.allow_tf32, BACKENDS.cudnn.allow_tf32]
    return [*older, *(setting.fp32_precision for setting in newer)]


FULL: list[object] = ["highest", False, False, *["ieee"] * 6]


def fewer(splits: DataSplits) -> DataSplits:
    """16 images to train on, and 5 to validate with."""
    assert isinstance(splits.train, np.ndarray)
    return replace(splits, train=splits.train[:16], validation=splits.validation[:5])


def train(
    folder: Path, splits: DataSplits, options: dict[str, Any], within: AbstractContextManager[object]
) -> tuple[list[Tensor], list[list[float]]]:
    """All weights after two epochs of two steps, and the bounds of each."""
    splits = fewer(splits)
    recipe = replace(RECIPE, **options)
    run = create_run(folder, describe_run(recipe, splits, source="here"))
    bounds: list[list[float]] = []
    with within:
        model = fit(
            run,
            splits,
            device=CPU,
            on_epoch=lambda figures, _: bounds.append(
                [figures.train_bound, figures.validation_bound, figures.validation_elbo]
            ),
        )
        bounds.append(list(validate(model, torch.from_numpy(splits.validation), recipe)))
    return [value.clone() for value in model.state_dict().values()], bounds


@pytest.mark.parametrize("options", RECIPES.values(), ids=RECIPES)
def test_a_processor_that_can_round_trains_the_same_bits(
    tmp_path: Path,
    splits: DataSplits,
    options: dict[str, Any],
    units: LowPrecisionUnits,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    weights, bounds = train(tmp_path / "without", splits, options, nullcontext())
    found, found_bounds = train(tmp_path / "with", splits, options, units)
    assert units.num_seen > 20
    assert units.num_rounded == 0
    assert found_bounds == bounds
    assert all(torch.equal(*pair) for pair in zip(found, weights, strict=True))

    # The same where nothing forbids it: the emulation does round, so the comparison can fail.
    monkeypatch.setattr("training.fit.trainer.full_float32", nullcontext)
    rounded_weights, rounded_bounds = train(tmp_path / "allowed", splits, options, units)
    assert units.num_rounded > 20
    assert rounded_bounds[0] != bounds[0]
    assert not any(torch.equal(*pair) for pair in zip(rounded_weights, weights, strict=True) if pair[0].ndim > 1)


@pytest.fixture(scope="module")
def exported() -> tuple[Vae, ExportedGraphs]:
    vae = build_vae(replace(RECIPE, **RECIPES["resnet"]), torch.full((1, 8, 6), 0.3))
    return vae, export(vae)


def test_graphs_are_compared_with_float32(
    units: LowPrecisionUnits, exported: tuple[Vae, ExportedGraphs], runtime: Runtime
) -> None:
    x = torch.rand(5, 1, 8, 6, generator=torch.Generator().manual_seed(1))
    without = check_parity(*exported, x, runtime=runtime)
    with units:
        assert check_parity(*exported, x, runtime=runtime) == without
    assert (units.num_seen > 20, units.num_rounded) == (True, 0)


def test_the_settings_inside_and_afterwards(
    tmp_path: Path,
    splits: DataSplits,
    exported: tuple[Vae, ExportedGraphs],
    runtime: Runtime,
    units: LowPrecisionUnits,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Whatever computes calls a network, so a network is asked what the settings are."""
    allowed, seen = settings(), []
    assert not set(map(str, allowed[3:7])) & {"ieee", "none"}
    original = Vae.encode

    def encode(self: Vae, x: Tensor) -> tuple[Tensor, Tensor]:
        seen.append(settings())
        return original(self, x)

    monkeypatch.setattr(Vae, "encode", encode)
    few = fewer(splits)
    vae = build_vae(RECIPE, splits.pixel_mean())
    validation = torch.from_numpy(splits.validation)
    run = create_run(tmp_path / "run", describe_run(replace(RECIPE, epochs=1), splits, source="here"))
    calls: dict[str, Callable[[], object]] = {
        "fit": lambda: fit(run, few, device=CPU, on_epoch=lambda figures, _: None),
        "validate": lambda: validate(vae, validation, RECIPE),
        "publish": lambda: check_parity(*exported, torch.rand(2, 1, 8, 6), runtime=runtime),
        "figures": lambda: draw_figures(run, vae, splits.validation),
    }
    for name, call in calls.items():
        seen.clear()
        call()
        assert seen, name
        assert all(each == FULL for each in seen), name
        assert settings() == allowed, name


def test_settings_are_put_back_after_an_error() -> None:
    before = settings()
    seen = []

    @full_float32()
    def fail() -> None:
        with full_float32():
            seen.append(settings())
        seen.append(settings())
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert seen == [FULL, FULL]
    assert settings() == before


def test_no_other_file_sets_the_precision_of_float32() -> None:
    words = ("matmul_precision", "fp32_precision", "allow_tf32")
    root = Path(__file__).parents[2]
    files = [file for folder in ("training", "benchmarks", "service") for file in (root / folder).rglob("*.py")]
    found = {str(file.relative_to(root)) for file in files if any(word in file.read_text() for word in words)}
    measured = {"benchmarks/gpu_parts/environment.py", "benchmarks/gpu_parts/torch_speed.py"}  # TF32 beside float32
    peer = {"benchmarks/peers/pythae_trainer.py"}  # runs without ours
    assert found - measured - peer == {"training/networks/precision.py"}


def test_in_bfloat16_only_the_layers_are_rounded() -> None:
    """The heads of the encoder, codes, densities and the bound are float32 of what the bfloat16 layers give."""
    vae = build_vae(replace(RECIPE, **RECIPES["resnet"]), torch.full((1, 8, 6), 0.3))
    generator = torch.Generator().manual_seed(2)
    x = torch.randint(0, 256, (3, 1, 8, 6), generator=generator) / 255
    noise = torch.randn(3, 2, 3, generator=generator)
    with torch.autocast("cpu", torch.bfloat16):
        features = vae.encoder.body(x)
        raw = vae.decoder.body(torch.zeros(1, 3))
        mean, log_var = vae.encode(x)
        parameters = vae.decoder(torch.zeros(1, 3))
        found = log_weight(vae, x, noise)
        loss = negative_iwae_bound(vae, x, noise)
    assert features.dtype == torch.bfloat16
    assert {each.dtype for each in (mean, log_var, *parameters, found, loss)} == {torch.float32}
    assert torch.equal(mean, vae.encoder.mean(features.float()))
    assert torch.equal(log_var, vae.encoder.log_var(features.float()))
    assert all(map(torch.equal, parameters, vae.likelihood.parameters(raw.float())))
    z = mean[:, None] + torch.exp(0.5 * log_var)[:, None] * noise
    with torch.autocast("cpu", torch.bfloat16):
        decoded = vae.decoder(z.flatten(0, 1))
    flat = (each.flatten(1).unflatten(0, (3, 2)) for each in decoded)
    density = vae.likelihood.log_prob(x.flatten(1).unsqueeze(1), *flat)
    prior: Any = Normal(0.0, 1.0)
    proposal: Any = Normal(mean[:, None], torch.exp(0.5 * log_var)[:, None])
    expected = density + (prior.log_prob(z) - proposal.log_prob(z)).sum(-1)
    # Two sums of 3 terms, of less than 100 nats, added to a density that is the same to the bit.
    torch.testing.assert_close(found, expected, rtol=gamma(10), atol=sum_error(6, 100))
    torch.testing.assert_close(
        -loss, torch.logsumexp(expected, 1) - math.log(2), rtol=gamma(20), atol=sum_error(6, 100)
    )


def test_validation_is_float32_whatever_training_is(tmp_path: Path, splits: DataSplits) -> None:
    """What a run that trains in bfloat16 reports is, to the bit, what its weights give in float32."""
    few = fewer(splits)
    run = create_run(tmp_path / "run", describe_run(RECIPE, few, source="here"))
    told: list[EpochFigures] = []
    acceleration = Acceleration("bfloat16")
    model = fit(run, few, device=CPU, on_epoch=lambda figures, _: told.append(figures), acceleration=acceleration)
    finished = load_model(run).finished_encoder
    assert finished is not None
    kept = told[RECIPE.epochs + finished.kept_epoch - 1]
    assert validate(model, torch.from_numpy(few.validation), RECIPE) == (kept.validation_elbo, kept.validation_bound)
