"""The graphs that only the engine has, built around `decoder.onnx` when a model is loaded.

Built at load, so that any encoder and decoder in the store get them, and published files stay plain.
"""

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto, TensorProto, ValueInfoProto, helper

from model_store import Description
from service.engine.builder import PREFIX, GraphBuilder
from service.engine.likelihood import Likelihood

Shape = Sequence[str | int]
"""A tensor's dimensions, dynamic ones by name."""

X, LATENTS, MEAN, LOG_VAR, NOISE, SHAPE = (PREFIX + n for n in ("x", "latents", "mean", "log_var", "noise", "shape"))
MODE, FACTOR, INVERSE, LOG_DET, MASK = (PREFIX + n for n in ("mode", "factor", "inverse", "log_det", "mask"))
LOG_WEIGHT, ENCODER_LOG_WEIGHT = PREFIX + "log_weight", PREFIX + "encoder_log_weight"
LOG_LIKELIHOOD, GRADIENT, INFORMATION = (PREFIX + n for n in ("log_likelihood", "gradient", "information"))

ENCODER_SHARE = 0.1
"""Share of the encoder in the Laplace proposal's defensive mixture."""

DIFFERENCE_STEP = 0.005
"""Step h of forward differences, in latent units: small beside a posterior's width, large beside float32's rounding."""


class DecoderGraphs:
    """Writes graphs around one decoder.

    Every graph takes `x` [B, 1, P] float32, and `shape`, the three int64 numbers (B, K, P) of what it decodes. They
    are an input because a graph that asked its tensors for their shape would run those nodes on the CPU, whatever the
    execution provider.
    """

    def __init__(self, decoder: ModelProto, likelihood: Likelihood, description: Description) -> None:
        self._decoder = decoder
        self._likelihood = likelihood
        self._num_pixels = description.image.size
        self._latent_dim = description.latent_dim

    def log_weight(self) -> bytes:
        """The log weight of importance samples from a diagonal Gaussian.

        `log_weight = log p(x|z) + log p(z) − log r(z|x)`, with z = mean + exp(log_var / 2)·noise and
        log p(z) − log r(z|x) = Σ ½·(noise² + log_var − z²): the normalisers of the two Gaussians cancel. With mean and
        log_var zero it is the prior's, and, since then z is the noise itself, log p(x|z) at any z one likes.

        Inputs beside x and shape: `mean` and `log_var` [B, 1, D], `noise` [1 or B, K, D]. Output: [B, K].
        """
        builder = GraphBuilder()
        half = builder.constant(np.float32(0.5))
        scale = builder.add("Exp", builder.add("Mul", LOG_VAR, half))  # [B, 1, D]
        latents = builder.add("Add", MEAN, builder.add("Mul", scale, NOISE))  # [B, K, D]
        parameters = self._decode(builder, latents)
        log_likelihood = self._likelihood.fragment(builder, X, parameters, self._num_pixels)  # [B, K]
        squares = builder.add("Add", builder.add("Mul", NOISE, NOISE), LOG_VAR)  # [B, K, D]
        squares = builder.add("Sub", squares, builder.add("Mul", latents, latents))
        log_ratio = builder.add("Mul", builder.sum_last(squares), half)  # [B, K]
        builder.add("Add", log_likelihood, log_ratio, output=LOG_WEIGHT)
        inputs: dict[str, Shape] = {MEAN: self._row, LOG_VAR: self._row, NOISE: ["N", "K", self._latent_dim]}
        return self._assemble(builder, inputs, {LOG_WEIGHT: ["B", "K"]})

    def mixture_log_weight(self) -> bytes:
        """The log weight of samples from the defensive mixture r = (1 − α)·N(mode, FᵀF) + α·q, α = ENCODER_SHARE.

        Where `mask` [1, K, 1] is 1 the sample is the encoder's, z = mean + exp(log_var / 2)·noise, elsewhere
        z = mode + noise·F. Either way `log_weight` divides by the mixture's density, and `encoder_log_weight` by q's.

        Inputs beside x and shape: `mean`, `log_var`, `mode` [B, 1, D]; `factor` F and its `inverse` [B, D, D];
        `log_det` [B, 1] = log |F|; `noise` [1, K, D]; `mask`. Outputs: [B, K] each.
        """
        builder = GraphBuilder()
        half, one = builder.constant(np.float32(0.5)), builder.constant(np.float32(1))
        half_log_var = builder.add("Mul", LOG_VAR, half)  # [B, 1, D]
        scale = builder.add("Exp", half_log_var)
        from_encoder = builder.add("Add", MEAN, builder.add("Mul", scale, NOISE))  # [B, K, D]
        from_laplace = builder.add("Add", MODE, builder.add("MatMul", NOISE, FACTOR))  # [B, K, D]
        others = builder.add("Sub", one, MASK)
        latents = builder.add(
            "Add", builder.add("Mul", MASK, from_encoder), builder.add("Mul", others, from_laplace)
        )  # [B, K, D]
        parameters = self._decode(builder, latents)
        log_likelihood = self._likelihood.fragment(builder, X, parameters, self._num_pixels)  # [B, K]

        # Of each Gaussian's log density, what is left without −D/2·log(2π), which all three share.
        standard = builder.add("Div", builder.add("Sub", latents, MEAN), scale)
        log_scales = builder.sum_last(half_log_var)  # [B, 1]
        log_encoder = builder.add("Sub", self._minus_half_square(builder, standard), log_scales)  # [B, K]
        standard = builder.add("MatMul", builder.add("Sub", latents, MODE), INVERSE)
        log_laplace = builder.add("Sub", self._minus_half_square(builder, standard), LOG_DET)
        log_joint = builder.add("Add", log_likelihood, self._minus_half_square(builder, latents))

        # log((1 − α)·e^a + α·e^b) = a' + log(1 + e^(b' − a'))
        first = builder.add("Add", log_laplace, builder.constant(np.float32(np.log1p(-ENCODER_SHARE))))
        second = builder.add("Add", log_encoder, builder.constant(np.float32(np.log(ENCODER_SHARE))))
        highest = builder.add("Max", first, second)
        distance = builder.add("Neg", builder.add("Abs", builder.add("Sub", first, second)))
        tail = builder.add("Log", builder.add("Add", builder.add("Exp", distance), one))
        log_mixture = builder.add("Add", highest, tail)
        builder.add("Sub", log_joint, log_mixture, output=LOG_WEIGHT)
        builder.add("Sub", log_joint, log_encoder, output=ENCODER_LOG_WEIGHT)
        square: Shape = ["B", self._latent_dim, self._latent_dim]
        inputs: dict[str, Shape] = dict.fromkeys((MEAN, LOG_VAR, MODE), self._row) | dict.fromkeys(
            (FACTOR, INVERSE), square
        )
        inputs |= {LOG_DET: ["B", 1], NOISE: [1, "K", self._latent_dim], MASK: [1, "K", 1]}
        return self._assemble(builder, inputs, {LOG_WEIGHT: ["B", "K"], ENCODER_LOG_WEIGHT: ["B", "K"]})

    def curvature(self, dimensions: NDArray[np.intp]) -> bytes:
        """log p(x|z) at z, with its gradient and Fisher information in the given A of the D latent dimensions.

        The decoder's Jacobian J comes from forward differences, A + 1 rows an image: any decoder can do that. With
        score s and Fisher information W of the likelihood in the decoder's outputs, gradient = Σ J·s and
        information = Σ J·W·Jᵀ, summed over the outputs.

        Inputs beside x and shape: `latents` [B, 1, D]. Outputs: [B, 1], [B, A], [B, A, A]. The prior is not in them.
        """
        offsets = np.zeros((1, len(dimensions) + 1, self._latent_dim), np.float32)
        offsets[0, 1 + np.arange(len(dimensions)), dimensions] = DIFFERENCE_STEP
        builder = GraphBuilder()
        latents = builder.add("Add", LATENTS, builder.constant(offsets))  # [B, A + 1, D]
        parameters = self._decode(builder, latents)
        base = {name: self._rows(builder, tensor, 0, 1) for name, tensor in parameters.items()}  # [B, 1, P]
        log_likelihood = self._likelihood.fragment(builder, X, base, self._num_pixels)
        builder.add("Identity", log_likelihood, output=LOG_LIKELIHOOD)

        inverse_step = builder.constant(np.float32(1 / DIFFERENCE_STEP))
        gradients, informations = [], []
        for name, curvature in self._likelihood.curvature(builder, X, base).items():
            moved = self._rows(builder, parameters[name], 1, len(dimensions) + 1)
            jacobian = builder.add("Mul", builder.add("Sub", moved, base[name]), inverse_step)  # [B, A, P]
            gradients.append(builder.sum_last(builder.add("Mul", jacobian, curvature.score)))  # [B, A]
            weighted = builder.add("Mul", jacobian, curvature.information)
            informations.append(
                builder.add("MatMul", weighted, builder.add("Transpose", jacobian, perm=[0, 2, 1]))
            )  # [B, A, A]
        builder.add("Sum", *gradients, output=GRADIENT)
        builder.add("Sum", *informations, output=INFORMATION)
        outputs: dict[str, Shape] = {
            LOG_LIKELIHOOD: ["B", 1],
            GRADIENT: ["B", len(dimensions)],
            INFORMATION: ["B", len(dimensions), len(dimensions)],
        }
        return self._assemble(builder, {LATENTS: self._row}, outputs)

    @property
    def _row(self) -> Shape:
        return ["B", 1, self._latent_dim]

    def _decode(self, builder: GraphBuilder, latents: str) -> dict[str, str]:
        """Run the decoder on latents [B, K, D]: its outputs, each [B, K, P]."""
        flat = builder.constant(np.array([-1, self._latent_dim], np.int64))
        builder.add("Reshape", latents, flat, output="z")  # [B·K, D]
        builder.nodes.extend(self._decoder.graph.node)
        return {name: builder.add("Reshape", name, SHAPE) for name in self._likelihood.outputs}

    def _rows(self, builder: GraphBuilder, tensor: str, start: int, stop: int) -> str:
        """Rows start to stop along the second axis."""
        bounds = [builder.constant(np.array([value], np.int64)) for value in (start, stop, 1)]
        return builder.add("Slice", tensor, *bounds)

    def _minus_half_square(self, builder: GraphBuilder, tensor: str) -> str:
        """−½·Σ t² over the last axis: [B, K, D] → [B, K]."""
        return builder.add(
            "Mul", builder.sum_last(builder.add("Mul", tensor, tensor)), builder.constant(np.float32(-0.5))
        )

    def _assemble(
        self,
        builder: GraphBuilder,
        inputs: Mapping[str, Shape],
        outputs: Mapping[str, Shape],
    ) -> bytes:
        def tensors(shapes: Mapping[str, Shape]) -> list[ValueInfoProto]:
            return [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in shapes.items()]

        decoder = self._decoder
        graph = helper.make_graph(
            builder.nodes,
            "logpx",
            inputs=[
                *tensors({X: ["B", 1, self._num_pixels], **inputs}),
                helper.make_tensor_value_info(SHAPE, TensorProto.INT64, [3]),
            ],
            outputs=tensors(outputs),
            initializer=[*decoder.graph.initializer, *builder.constants],
            sparse_initializer=decoder.graph.sparse_initializer,
        )
        model = helper.make_model(
            graph,
            opset_imports=decoder.opset_import,
            functions=decoder.functions,
            ir_version=decoder.ir_version,
        )
        return bytes(model.SerializeToString())
