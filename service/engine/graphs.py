"""The graphs that only the engine has, built around `decoder.onnx` when a model is loaded.

Built at load, so that any encoder and decoder in the store get them, and published files stay plain.
"""

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray
from onnx import GraphProto, ModelProto, TensorProto, helper

from model_store import Description
from service.engine import likelihood_graph as of_likelihood
from service.engine.adjoint import Adjoint, NotDifferentiableError
from service.engine.adjoint_rules import RULES
from service.engine.builder import PREFIX, GraphBuilder, Shape, typed
from service.engine.likelihood_graph import LikelihoodGraph
from service.engine.plain_graph import plain

X, LATENTS, MEAN, LOG_VAR, NOISE, SHAPE = (PREFIX + n for n in ("x", "latents", "mean", "log_var", "noise", "shape"))
MODE, BASIS, SCALES, CHOSEN = (PREFIX + n for n in ("mode", "basis", "scales", "chosen"))
HALF_PRECISIONS, LOG_DETS = PREFIX + "half_precisions", PREFIX + "log_dets"
LOG_WEIGHT, ENCODER_LOG_WEIGHT = PREFIX + "log_weight", PREFIX + "encoder_log_weight"
LOG_LIKELIHOOD, GRADIENT, INFORMATION = (PREFIX + n for n in ("log_likelihood", "gradient", "information"))

UNIFORM, IMAGES, SURPRISE, PIXEL_LOG_PROB = (PREFIX + n for n in ("uniform", "images", "surprise", "pixel_log_prob"))

_WIDE = (LOG_WEIGHT, ENCODER_LOG_WEIGHT, LOG_LIKELIHOOD, GRADIENT, SURPRISE, PIXEL_LOG_PROB)

DIFFERENCE_STEP = 0.005
"""Step h of forward differences, in latent units: small beside a posterior's width, large beside float32's rounding."""


class DecoderGraphs:
    """Writes graphs around one decoder.

    Graphs of log weights and curvature take `x` [B, 1, P] float32, and `shape`, the three int64 numbers (B, K, -1) of
    what they decode. They are an input because a graph that asked its tensors for their shape would run those nodes on
    the CPU, whatever the execution provider. Their outputs are float64, but for the information, which is float32.

    The others take latent codes `z` [N, D] as the decoder does.
    """

    def __init__(self, decoder: ModelProto, likelihood: LikelihoodGraph, description: Description) -> None:
        opset = next(entry.version for entry in decoder.opset_import if entry.domain in ("", "ai.onnx"))
        likelihood.convert(opset)
        self._decoder = plain(decoder)
        self._opset = opset
        self._likelihood = likelihood
        self._num_pixels = description.x_shape.size
        self._chw = description.x_shape.chw
        self._latent_dim = description.latent_dim

    @property
    def outputs(self) -> Mapping[str, int]:
        """The decoder's outputs by name, each with its numbers of a row."""
        return self._likelihood.outputs

    @property
    def numbers_a_row(self) -> int:
        """What one decoder row is counted as, where memory is: its pixels, or what it says of them where that is more.

        A mixture says a hundred numbers of each pixel.
        """
        return max(self._num_pixels, sum(self._likelihood.outputs.values()) - self._num_pixels)

    @property
    def num_uniforms(self) -> int:
        """Uniform numbers that one image of `sample` takes."""
        return self._likelihood.num_uniforms

    def mean(self) -> bytes:
        """E[x|z] in x's unit: z → `images` [N, C, H, W]."""
        builder = GraphBuilder()
        (flat,) = self._likelihood.append(builder, [of_likelihood.MEAN], self._decode_rows(builder))
        builder.add("Reshape", flat, builder.constant(np.array([-1, *self._chw])), output=IMAGES)
        return self._assemble_rows(builder, {}, {IMAGES: ["N", *self._chw]})

    def sample(self) -> bytes:
        """x ~ p(x|z): z and `uniform` [N, 1, U] → `images` [N, 1, P]."""
        builder = GraphBuilder()
        inputs = {of_likelihood.UNIFORM: UNIFORM, **self._decode_rows(builder)}
        (flat,) = self._likelihood.append(builder, [of_likelihood.SAMPLE], inputs)
        builder.add("Identity", flat, output=IMAGES)
        rows: dict[str, Shape] = {UNIFORM: ["N", 1, self._likelihood.num_uniforms]}
        return self._assemble_rows(builder, rows, {IMAGES: ["N", 1, self._num_pixels]})

    def pixel_log_prob(self) -> bytes:
        """log p(x_i|z) of each pixel and channel, nats: z and x [1 or N, 1, P] → [N, 1, P]."""
        builder = GraphBuilder()
        inputs = {of_likelihood.X: X, **self._decode_rows(builder)}
        (found,) = self._likelihood.append(builder, [of_likelihood.PIXEL_LOG_PROB], inputs)
        builder.add("Identity", found, output=PIXEL_LOG_PROB)
        shape: Shape = ["N", 1, self._num_pixels]
        return self._assemble_rows(builder, {X: ["X", 1, self._num_pixels]}, {PIXEL_LOG_PROB: shape})

    def surprise(self) -> bytes:
        """-log p(x_i|z) - H[p(x_i|z)] of each pixel and channel, nats: z and x [1 or N, 1, P] → [N, 1, P]."""
        builder = GraphBuilder()
        parameters = self._decode_rows(builder)
        wanted = [of_likelihood.PIXEL_LOG_PROB, of_likelihood.ENTROPY]
        log_prob, entropy = self._likelihood.append(builder, wanted, {of_likelihood.X: X, **parameters})
        builder.add("Neg", builder.add("Add", log_prob, entropy), output=SURPRISE)
        shape: Shape = ["N", 1, self._num_pixels]
        return self._assemble_rows(builder, {X: ["X", 1, self._num_pixels]}, {SURPRISE: shape})

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
        log_likelihood = self._log_prob(builder, parameters)  # [B, K]
        squares = builder.add("Add", builder.add("Mul", NOISE, NOISE), LOG_VAR)  # [B, K, D]
        squares = builder.add("Sub", squares, builder.add("Mul", latents, latents))
        log_ratio = builder.add(
            "Mul", builder.sum_last(squares, self._latent_dim), builder.constant(np.float64(0.5))
        )  # [B, K]
        builder.add("Add", log_likelihood, log_ratio, output=LOG_WEIGHT)
        inputs: dict[str, Shape] = {MEAN: self._row, LOG_VAR: self._row, NOISE: ["N", "K", self._latent_dim]}
        return self._assemble(builder, inputs, {LOG_WEIGHT: ["B", "K"]})

    def mixture_log_weight(self, shares: Sequence[float]) -> bytes:
        """The log weight of samples from a mixture of J Gaussians around one mode, and the encoder's as the last.

        Gaussian j has the axes of `basis` U (its columns) and a scale s along each: z = mode + noise·U·diag(s)·Uᵀ. That
        root of the covariance is a smooth function of it; without the first U, axes of nearly equal scale could turn
        freely, and rounding would decide which samples are drawn. The encoder's is z = mean + exp(log_var / 2)·noise.
        `chosen` [1, K, J + 1] has a single 1 a sample, at the part that
        drew it; whichever it was, `log_weight` divides by the density of the whole mixture (the balance heuristic of
        Veach and Guibas 1995), and `encoder_log_weight` by the encoder's.

        Inputs beside x and shape: `mean`, `log_var`, `mode` [B, 1, D]; `basis` [B, D, D]; `scales` [B, J, D];
        `half_precisions` [B, D, J] = ½/scale²; `log_dets` [B, 1, J] = Σ log scale; `noise` [1, K, D]; `chosen`.
        Outputs: [B, K] each.

        Args:
            shares: of the parts, the encoder's last; they sum to 1.
        """
        count = len(shares) - 1
        builder = GraphBuilder()
        half_log_var = builder.add("Mul", LOG_VAR, builder.constant(np.float32(0.5)))  # [B, 1, D]
        scale = builder.add("Exp", half_log_var)
        from_encoder = builder.add("Add", MEAN, builder.add("Mul", scale, NOISE))  # [B, K, D]
        parts = builder.slice(CHOSEN, 0, count, axis=2)  # [1, K, J]
        by_encoder = builder.slice(CHOSEN, count, count + 1, axis=2)  # [1, K, 1]
        turned = builder.add("MatMul", NOISE, BASIS)  # [B, K, D]
        along_axes = builder.add("Mul", turned, builder.add("MatMul", parts, SCALES))  # [B, K, D]; 0 for the encoder's
        back = builder.add("Transpose", BASIS, perm=[0, 2, 1])
        from_mode = builder.add("Add", MODE, builder.add("MatMul", along_axes, back))  # [B, K, D]
        shift = builder.add("Mul", by_encoder, builder.add("Sub", from_encoder, MODE))
        latents = builder.add("Add", from_mode, shift)  # [B, K, D]
        parameters = self._decode(builder, latents)
        log_likelihood = self._log_prob(builder, parameters)  # [B, K]

        # Of each Gaussian's log density, what is left without −D/2·log(2π), which all of them and the prior share.
        standard = builder.add("Div", builder.add("Sub", latents, MEAN), scale)
        log_encoder = builder.add(
            "Sub", self._minus_half_square(builder, standard), builder.sum_last(half_log_var, self._latent_dim)
        )  # [B, K], float64
        axes = builder.add("MatMul", builder.add("Sub", latents, MODE), BASIS)  # [B, K, D]
        squares = builder.add("MatMul", builder.add("Mul", axes, axes), HALF_PRECISIONS)  # [B, K, J]
        log_parts = builder.add("Neg", builder.add("Add", squares, LOG_DETS))
        last = builder.constant(np.array([-1], np.int64))
        densities = builder.add(
            "Concat", log_parts, builder.add("Unsqueeze", builder.float(log_encoder), last), axis=-1
        )
        weighted = builder.add("Add", densities, builder.constant(np.log(np.array(shares, np.float32))))
        log_mixture = builder.add("ReduceLogSumExp", weighted, last, keepdims=0)  # [B, K]
        log_joint = builder.add("Add", log_likelihood, self._minus_half_square(builder, latents))
        builder.add("Sub", log_joint, builder.double(log_mixture), output=LOG_WEIGHT)
        builder.add("Sub", log_joint, log_encoder, output=ENCODER_LOG_WEIGHT)
        inputs: dict[str, Shape] = dict.fromkeys((MEAN, LOG_VAR, MODE), self._row)
        inputs |= {BASIS: ["B", self._latent_dim, self._latent_dim], SCALES: ["B", count, self._latent_dim]}
        inputs |= {HALF_PRECISIONS: ["B", self._latent_dim, count], LOG_DETS: ["B", 1, count]}
        inputs |= {NOISE: [1, "K", self._latent_dim], CHOSEN: [1, "K", count + 1]}
        return self._assemble(builder, inputs, {LOG_WEIGHT: ["B", "K"], ENCODER_LOG_WEIGHT: ["B", "K"]})

    def curvature(self, dimensions: NDArray[np.intp]) -> bytes:
        """log p(x|z) at z, with its gradient and information in the given A of the D latent dimensions.

        The decoder's Jacobian J comes from forward differences, A + 1 rows an image: any decoder can do that. With
        score s and observed information W of the likelihood in the decoder's outputs, it gives gradient = J·s and
        information = J·W·Jᵀ: minus the Hessian, but for the decoder's own
        curvature (generalised Gauss-Newton: Schraudolph 2002, Neural Computation 14:1723). W need not be positive.

        Inputs beside x and shape: `latents` [B, 1, D]. Outputs: [B, 1], [B, A], [B, A, A]. The prior is not in them.
        """
        offsets = np.zeros((1, len(dimensions) + 1, self._latent_dim), np.float32)
        offsets[0, 1 + np.arange(len(dimensions)), dimensions] = DIFFERENCE_STEP
        builder = GraphBuilder()
        latents = builder.add("Add", LATENTS, builder.constant(offsets))  # [B, A + 1, D]
        parameters = self._decode(builder, latents)
        base = {name: builder.slice(tensor, 0, 1, axis=1) for name, tensor in parameters.items()}  # [B, 1, P]
        builder.add("Identity", self._log_prob(builder, base), output=LOG_LIKELIHOOD)
        inverse_step = builder.constant(np.float32(1 / DIFFERENCE_STEP))
        inputs = {of_likelihood.X: X, **base}
        for name, tensor in parameters.items():
            moved = builder.slice(tensor, 1, len(dimensions) + 1, axis=1)
            jacobian = builder.add("Mul", builder.add("Sub", moved, base[name]), inverse_step)  # [B, A, Q]
            inputs[of_likelihood.TANGENT + name] = jacobian
        wanted = [of_likelihood.GRADIENT, of_likelihood.INFORMATION]
        gradient, information = self._likelihood.append(builder, wanted, inputs)
        builder.add("Identity", gradient, output=GRADIENT)
        builder.add("Identity", information, output=INFORMATION)
        outputs: dict[str, Shape] = {
            LOG_LIKELIHOOD: ["B", 1],
            GRADIENT: ["B", len(dimensions)],
            INFORMATION: ["B", len(dimensions), len(dimensions)],
        }
        return self._assemble(builder, {LATENTS: self._row}, outputs)

    def gradient(self) -> bytes | None:
        """log p(x|z) and its gradient, exact, by one pass back through the decoder: z and x [N, 1, P] → [N, 1], [N, D].

        The likelihood's `gradient` is linear in its tangents, so its derivative in them is the score. None where the
        decoder or the likelihood has an operator without a rule; see adjoint.py.
        """
        if self._decoder.functions:
            return None
        builder = GraphBuilder()
        parameters = self._decode_rows(builder)
        builder.add("Identity", self._log_prob(builder, parameters), output=LOG_LIKELIHOOD)
        tangents = {name: builder.add("Identity", tensor) for name, tensor in parameters.items()}
        inputs = {of_likelihood.X: X, **parameters, **{of_likelihood.TANGENT + name: t for name, t in tangents.items()}}
        (slope,) = self._likelihood.append(builder, [of_likelihood.GRADIENT], inputs)
        z: dict[str, Shape] = {"z": ["N", self._latent_dim]}
        rows: dict[str, Shape] = {X: ["N", 1, self._num_pixels]}
        outputs: dict[str, Shape] = {LOG_LIKELIHOOD: ["N", 1], GRADIENT: ["N", self._latent_dim]}
        one = {slope: builder.constant(np.ones((1, 1)))}
        try:
            adjoint = Adjoint(builder, self._graph(builder, {**z, **rows}, {}), self._opset, RULES)
            scores = {parameters[name]: adjoint.append(one, tangent) for name, tangent in tangents.items()}
            builder.add("Cast", adjoint.append(scores, "z"), to=TensorProto.DOUBLE, output=GRADIENT)
        except NotDifferentiableError:
            return None
        builder.nodes[:] = of_likelihood.needed(builder.nodes, [*outputs])
        return self._assemble_rows(builder, rows, outputs)

    @property
    def _row(self) -> Shape:
        return ["B", 1, self._latent_dim]

    def _log_prob(self, builder: GraphBuilder, parameters: Mapping[str, str]) -> str:
        """log p(x|z) in nats, [B, K] float64, of parameters [B, K, Q]."""
        inputs = {of_likelihood.X: X, **parameters}
        return self._likelihood.append(builder, [of_likelihood.LOG_PROB], inputs)[0]

    def _decode(self, builder: GraphBuilder, latents: str) -> dict[str, str]:
        """Run the decoder on latents [B, K, D]: its outputs, each [B, K, Q]."""
        flat = builder.constant(np.array([-1, self._latent_dim], np.int64))
        builder.add("Reshape", latents, flat, output="z")  # [B·K, D]
        builder.nodes.extend(self._decoder.graph.node)
        return {name: builder.add("Reshape", name, SHAPE) for name in self._likelihood.outputs}

    def _decode_rows(self, builder: GraphBuilder) -> dict[str, str]:
        """Run the decoder on its input z [N, D]: its outputs, each [N, 1, Q]."""
        builder.nodes.extend(self._decoder.graph.node)
        shape = builder.constant(np.array([0, 1, -1], np.int64))
        return {name: builder.add("Reshape", name, shape) for name in self._likelihood.outputs}

    def _minus_half_square(self, builder: GraphBuilder, tensor: str) -> str:
        """−½·Σ t² over the last axis: [B, K, D] → [B, K], float64."""
        squares = builder.sum_last(builder.add("Mul", tensor, tensor), self._latent_dim)
        return builder.add("Mul", squares, builder.constant(np.float64(-0.5)))

    def _assemble(self, builder: GraphBuilder, inputs: Mapping[str, Shape], outputs: Mapping[str, Shape]) -> bytes:
        """Of a graph that takes images, and a number of samples of each."""
        every: dict[str, Shape] = {X: ["B", 1, self._num_pixels], **inputs, SHAPE: [3]}
        return self._assemble_rows(builder, every, outputs, takes_z=False)

    def _assemble_rows(
        self,
        builder: GraphBuilder,
        inputs: Mapping[str, Shape],
        outputs: Mapping[str, Shape],
        *,
        takes_z: bool = True,
    ) -> bytes:
        decoder = self._decoder
        z: dict[str, Shape] = {"z": ["N", self._latent_dim]} if takes_z else {}
        model = helper.make_model(
            self._graph(builder, {**z, **inputs}, outputs),
            opset_imports=decoder.opset_import,
            functions=decoder.functions,
            ir_version=decoder.ir_version,
        )
        return bytes(model.SerializeToString())

    def _graph(self, builder: GraphBuilder, inputs: Mapping[str, Shape], outputs: Mapping[str, Shape]) -> GraphProto:
        types = {SHAPE: TensorProto.INT64, **dict.fromkeys(_WIDE, TensorProto.DOUBLE)}
        return builder.graph(self._decoder.graph, typed(inputs, types), typed(outputs, types))
