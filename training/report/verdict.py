"""Whether a model is good for its purpose, and why: said when training ends, and at the head of a run's report."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from service.engine.anomaly.conformal import guarantee
from service.engine.anomaly.detector import DEFAULT_ALPHA, compared_with
from service.engine.calibration import guarantees
from training.configuration import Configuration
from training.data.splits import DataSplits, evenly_spaced
from training.data.things import Division
from training.fit.loop import prepare
from training.fit.plan import enough_epochs
from training.fit.run import Run
from training.fit.trainer import image_bounds
from training.likelihoods import GREY, PHOTOGRAPHS
from training.networks.vae import Vae
from training.publish.units import ACTIVE_VARIANCE
from training.report.lossless import comparable_bits_per_dim

_LOOKED_AT = 500
"""Images of each part whose bounds are measured, evenly spaced."""
_OVERFITTING = 0.05
"""More bits for validation images than for training images, as a share; and by more than two standard errors."""
_DETECTED = 0.8
"""AUROC of the combined score, mean over the kinds of defects."""
_NEIGHBOURS = f"--likelihood {PHOTOGRAPHS}, which predicts pixels from their neighbours as these formats do"
_MORE_IMAGES = "more images"
_HELPS_ANY = f"{_MORE_IMAGES}, which help any model"
_RELIABLE = 0.9
"""Share of estimates of log P(x)."""
_MOST_ADVICE = 3
CALIBRATION_THAT_FIRES = 30
"""Images, of which 20 are compared with: enough for alpha = 0.05."""


@dataclass(frozen=True)
class Figures:
    """What a verdict is made of; bits are per dimension, a dimension being a pixel's channel.

    Attributes:
        configuration: of the run.
        num_channels: of its images.
        bits_per_dim: of validation images, by the importance weighted bound of 16 samples.
        train_bits_per_dim: of as many training images, by the same bound.
        difference_error: standard error of the difference of the two.
        lossless: of the same validation images, by format; None if the likelihood is a density.
        num_validation: images that were looked at.
        num_active: latent units that vary over the validation images.
        num_calibration: images.
        unused_epochs: more epochs than the run had that it would have with enough time; 0 if it ended by itself.
        minutes: that training took.
        reliable: share of reliable estimates of log P(x), test images; None before they are scored.
        detected: by method, the mean AUROC of the kinds of defects, the default one first; None where there are none.
        of_features: whether the model is of features, which training cannot vary as it can images.
        division: by things, where it is known which images show the same.
    """

    configuration: Configuration
    num_channels: int
    bits_per_dim: float
    train_bits_per_dim: float
    difference_error: float
    lossless: Mapping[str, float] | None
    num_validation: int
    num_active: int
    num_calibration: int
    unused_epochs: int
    minutes: float
    reliable: float | None = None
    detected: Mapping[str, float] | None = None
    of_features: bool = False
    division: Division | None = None

    @property
    def overfits(self) -> bool:
        """Whether training images take clearly fewer bits than others."""
        more = self.bits_per_dim - self.train_bits_per_dim
        return more > max(_OVERFITTING * abs(self.train_bits_per_dim), 2 * self.difference_error)

    @property
    def unreliable(self) -> bool:
        """Whether too few estimates of log P(x) are reliable, as far as they were scored."""
        return self.reliable is not None and self.reliable < _RELIABLE


@dataclass(frozen=True)
class Verdict:
    """Sentences, without a full stop.

    Attributes:
        problems: why the model is not good for its purpose; none if it is.
        evidence: what was measured.
        advice: the next things to try, the most important first: one at least, three at most.
    """

    problems: Sequence[str]
    evidence: Sequence[str]
    advice: Sequence[str]

    @property
    def summary(self) -> str:
        """One line.

        >>> Verdict(["the code carries nothing", "it overfits"], [], []).summary
        'not good yet: the code carries nothing; it overfits'
        """
        return f"not good yet: {'; '.join(self.problems)}" if self.problems else "good: nothing speaks against its use"

    def lines(self) -> list[str]:
        """As it is printed.

        >>> Verdict([], ["active latent units: 9 of 50"], ["a smaller code", "more images"]).lines()[1:]
        ['  active latent units: 9 of 50', '  next: a smaller code', '  then: more images']
        """
        advice = [f"  {'then' if number else 'next'}: {line}" for number, line in enumerate(self.advice)]
        return [f"verdict: {self.summary}", *(f"  {line}" for line in self.evidence), *advice]


@torch.no_grad()
def measure(run: Run, vae: Vae, splits: DataSplits) -> Figures:
    """The figures of a run's model, on the CPU, through PyTorch; that takes as long as two validations."""
    configuration = run.description.configuration
    validation = torch.from_numpy(evenly_spaced(splits.validation, _LOOKED_AT))
    train = torch.from_numpy(evenly_spaced(splits.train, len(validation)))
    unit = -1 / (math.prod(vae.image_shape) * math.log(2))
    bits, train_bits = (unit * image_bounds(vae, images, configuration) for images in (validation, train))
    generator = torch.Generator().manual_seed(configuration.seed)
    inputs = (prepare(batch, configuration, vae, generator=generator) for batch in torch.split(validation, 100))
    means = torch.cat([vae.encode(x)[0] for x in inputs])  # [N, D]
    lines = [line for line in run.read_metrics() if not line.get("encoder_epoch")]
    ended_early = len(lines) < configuration.epochs
    steps_per_epoch = math.ceil(len(splits.train) / configuration.batch_size)
    return Figures(
        configuration=configuration,
        num_channels=vae.image_shape[0],
        bits_per_dim=bits.mean().item(),
        train_bits_per_dim=train_bits.mean().item(),
        difference_error=math.sqrt(sum(_variance_of_mean(values.numpy()) for values in (bits, train_bits))),
        lossless=comparable_bits_per_dim(vae, validation, configuration),
        num_validation=len(validation),
        num_active=int((means.var(dim=0, correction=0) > ACTIVE_VARIANCE).sum()),
        num_calibration=len(splits.calibration),
        unused_epochs=0
        if ended_early or configuration.preset == "linear"
        else max(0, enough_epochs(steps_per_epoch) - configuration.epochs),
        minutes=sum(line["seconds"] for line in run.read_metrics()) / 60,
        of_features=run.description.features is not None,
        division=splits.division,
    )


def _variance_of_mean(values: NDArray[np.float64]) -> float:
    return float(values.var(ddof=1) / len(values)) if len(values) > 1 else math.inf


def judge(figures: Figures) -> Verdict:
    """The verdict on a model with these figures: every problem, what was measured, and the remedies of the gravest."""
    found = list(_problems(figures))
    advice = list(dict.fromkeys(remedy for _, remedy in found)) or [_improvement(figures)]
    if sum(remedy.startswith(_MORE_IMAGES) for remedy in advice) > 1:  # others say more than just that
        advice = [remedy for remedy in advice if remedy != _HELPS_ANY]
    return Verdict([problem for problem, _ in found], list(_evidence(figures)), advice[:_MOST_ADVICE])


def _problems(figures: Figures) -> Iterable[tuple[str, str]]:
    """Each problem, the gravest first, with what to try."""
    configuration = figures.configuration
    if figures.num_active == 0:
        yield (
            f"the latent code carries nothing: none of {configuration.latent_dim} units is active",
            "--objective elbo --kl-warm-up-epochs 20: the code is then used before its cost is counted in full"
            if configuration.objective != "elbo" or not configuration.kl_warm_up_epochs
            else "--free-bits 0.5, or images that differ more from one another",
        )
    if figures.overfits:
        more = figures.bits_per_dim - figures.train_bits_per_dim
        yield (
            f"it overfits: images that it was not trained on take {more:.2f} bits a dimension more than those it was",
            _against_overfitting(configuration, of_features=figures.of_features),
        )
    formats = figures.lossless or {}
    better, name = min(((bits, name) for name, bits in formats.items()), default=(math.inf, ""))
    if better <= figures.bits_per_dim:
        yield (
            f"lossless {name} needs fewer bits ({better:.2f} against {figures.bits_per_dim:.2f}), so log P(x) says "
            "less of these images than it could",
            _NEIGHBOURS if configuration.likelihood == GREY else _improvement(figures),
        )
    if figures.detected and (auroc := next(iter(figures.detected.values()))) < _DETECTED:
        best = max(figures.detected, key=figures.detected.__getitem__)
        other = "more detail, by a larger --size"
        if configuration.likelihood == PHOTOGRAPHS:
            other = f"--likelihood {GREY}, which knows such images less well and often finds more of their defects"
        yield (
            f"its anomaly scores miss defects (AUROC {auroc:.2f})",
            f"?method={best}, whose AUROC is {figures.detected[best]:.2f}; or {other}",
        )
    division = figures.division
    compared = compared_with(figures.num_calibration) if division is None else division.num_compared
    if 1 / (compared + 1) > DEFAULT_ALPHA:
        yield (
            guarantee(compared, DEFAULT_ALPHA).partition(";")[0],
            f"{_MORE_IMAGES}, or --num-calibration {CALIBRATION_THAT_FIRES}",
        )
    if figures.reliable is not None and figures.unreliable:
        yield (
            f"only {100 * figures.reliable:.0f} % of the estimates of log P(x) are reliable",
            f"fewer latent units (--latent-dim {max(1, configuration.latent_dim // 2)}): their posterior is searched "
            "more surely; until then look at `reliable` of every answer",
        )


def _against_overfitting(configuration: Configuration, *, of_features: bool) -> str:
    if not of_features and not configuration.flip and not configuration.shift:
        return f"{_MORE_IMAGES}; or --flip and --shift 2, if mirrored and moved images are as ordinary as these"
    if configuration.preset == "mlp":
        return f"{_MORE_IMAGES}; or a smaller network (--width {max(1, configuration.width // 2)})"
    return f"{_MORE_IMAGES}; or a smaller code (--latent-dim {max(1, configuration.latent_dim // 2)})"


def _improvement(figures: Figures) -> str:
    """What may give a better model: no longer training or larger code where that is what is wrong with it."""
    configuration = figures.configuration
    if figures.unused_epochs and not figures.overfits:
        epochs = configuration.epochs
        minutes = math.ceil(max(1.0, figures.minutes * (epochs + figures.unused_epochs) / epochs))
        return f"more time: --minutes {minutes}, for {epochs + figures.unused_epochs} epochs instead of {epochs}"
    if figures.num_active >= 0.9 * configuration.latent_dim and not (figures.overfits or figures.unreliable):
        return f"a larger code, since nearly every unit is used: --latent-dim {2 * configuration.latent_dim}"
    if configuration.size and configuration.fit == "crop":
        return "another part of the image, or more detail: --fit pad, or a larger --size"
    return _HELPS_ANY


def _evidence(figures: Figures) -> Iterable[str]:
    formats = figures.lossless or {}
    beside = "".join(f", lossless {name} {bits:.3f}" for name, bits in formats.items())
    if figures.lossless is None:
        beside = " (a density of real numbers, which no image format compares with)"
    yield f"bits per dimension of {figures.num_validation} validation images: model {figures.bits_per_dim:.3f}{beside}"
    yield f"bits per dimension of as many training images: {figures.train_bits_per_dim:.3f}"
    yield f"active latent units: {figures.num_active} of {figures.configuration.latent_dim}"
    if figures.reliable is not None:
        yield f"reliable estimates of log P(x): {100 * figures.reliable:.0f} % of the test images"
    if figures.detected:
        named = ", ".join(f"{method} {value:.3f}" for method, value in figures.detected.items())
        yield f"AUROC, mean over the kinds of defects: {named}"
    yield from guarantees(figures.num_calibration) if figures.division is None else figures.division.promises()
