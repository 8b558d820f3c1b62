"""Read the request of an inference: one tensor, and the parameters that a query of `/v1` would have."""

from functools import partial
from typing import Any, ClassVar, NamedTuple

from fastapi.concurrency import run_in_threadpool

from service.web.bodies import JSON_EXPANSION, check_json_length, check_json_size, checked_latents
from service.web.memory_budget import FREE_BYTES, MEMORY, Share
from service.web.parameters import TIMEOUT_HEADER
from service.web.problems import InvalidBodyError
from service.web.requests import ComputedRequest, Images, ImagesRequest, LatentsRequest, read_body
from service.web.schemas import ImagesQuery, ModelQuery, SamplesQuery, new_seed
from service.web.v2.compression import unpack
from service.web.v2.inference import LENGTH_HEADER, Inference, json_length, parse_inference
from service.web.v2.tensors import BYTES, Tensor

_LENGTH_HEADER = LENGTH_HEADER.lower().encode()
_QUICK_JSON_BYTES = 2**14
"""A request with so much JSON is parsed in less time than starting in another thread takes, or little more."""
_BINARY_EXPANSION = 2  # of the bytes after the JSON: copies of encoded files, or of numbers that are not aligned


class Headers(NamedTuple):
    """What a request's headers say of its body and its deadline; None where they do not."""

    json_length: str | None
    coding: str | None
    timeout: bytes | None


class InferRequest(ComputedRequest):
    """The request of an operation of `/v2`.

    Attributes:
        id: what the answer repeats.
        outputs: the names of the wanted outputs, and whether each is wanted as bytes.
    """

    given: ClassVar[str]
    """The name of the operation's input."""
    accepted: ClassVar[tuple[str, ...]]
    """The types that it may have; the first is the one that metadata tell."""
    shorter_answer = shorter_images = "binary outputs"
    id: str | None
    outputs: Any
    _kept = 0
    _is_quick = True

    def read_headers(self) -> Headers:
        """The headers of this protocol, and the deadline. No other header changes how a request is read."""
        length, coding, timeout = None, None, None
        for name, value in self.scope["headers"]:
            if name == _LENGTH_HEADER:
                length = value.decode("latin-1").strip()
            elif name == b"content-encoding":
                coding = value.decode("latin-1").strip().lower()
            elif name == TIMEOUT_HEADER:
                timeout = value
        return Headers(length, None if coding == "identity" else coding, timeout)

    async def read_inference(self, headers: Headers, offered: tuple[str, ...]) -> Inference:
        """Read and parse the body.

        Raises:
            InvalidBodyError, LimitError, MemoryFullError, SlowBodyError, RequestValidationError, ClientDisconnect.
        """
        share: Share = self.scope[MEMORY]
        body = await read_body(self)
        if headers.coding is not None:
            packed, most = len(body), self.settings.max_body_bytes
            body = await run_in_threadpool(unpack, body, headers.coding, most, lambda size: share.hold(packed + size))
        length = json_length(body, headers.json_length)
        check_json_length(length, self.settings, "binary tensors")
        document, binary = body[:length], memoryview(body)[length:]
        check_json_size(document, self.settings, "binary tensors")
        self._kept = len(document) * JSON_EXPANSION + len(binary) * _BINARY_EXPANSION
        if self._kept > FREE_BYTES or share.held:
            share.hold(self._kept)
        self._is_quick = len(document) <= _QUICK_JSON_BYTES
        parse = partial(parse_inference, document, binary, given=self.given, accepted=self.accepted, offered=offered)
        inference = parse() if self._is_quick else await run_in_threadpool(parse)
        self.id, self.outputs = inference.id, inference.outputs
        return inference

    def options(self, inference: Inference) -> dict[str, str]:
        """The parameters of the operation."""
        return inference.options

    async def take(self, tensor: Tensor, query: Any, timeout_seconds: float) -> Any:
        """Read the input. Returns the query, in which nothing is left open."""
        return query

    async def _numbers(self, tensor: Tensor) -> Any:
        quick = self._is_quick and tensor.is_quick
        return tensor.numbers() if quick else await run_in_threadpool(tensor.numbers)


class InferImages(InferRequest, ImagesRequest):
    """Images as pixels in [0, 1], as 8-bit levels, or as encoded files; read as `/v1` reads the same."""

    given = "images"
    accepted = ("FP32", "UINT8", BYTES)

    async def take(self, tensor: Tensor, query: ImagesQuery, timeout_seconds: float) -> ImagesQuery:
        """Read the images; raises what `ImagesRequest.read_images` does, and InvalidBodyError."""
        images: Images
        if tensor.datatype != BYTES:
            images = await self._numbers(tensor)
        elif self._is_quick and tensor.is_quick:
            images = tensor.files(self.max_images)
        else:
            images = partial(tensor.files, self.max_images)
        del tensor  # what it was read from is counted only until the images are
        await self.read_images(images, resize=query.resize, kept=self._kept, timeout_seconds=timeout_seconds)
        return query


class InferLatents(InferRequest, LatentsRequest):
    """Latents [N, D]."""

    given = "latents"
    accepted = ("FP32",)

    async def take(self, tensor: Tensor, query: ModelQuery, timeout_seconds: float) -> ModelQuery:
        """Read the latents; raises InvalidBodyError, InvalidLatentError."""
        latents = await self._numbers(tensor)
        self.latents = checked_latents(latents, self.model.description.latent_dim)
        return query


class InferCount(InferRequest):
    """How many images to draw."""

    given = "n"
    accepted = ("INT32",)

    def options(self, inference: Inference) -> dict[str, str]:
        """The parameters, and the input, which is one of `/v1`'s."""
        if inference.tensor.shape != (1,):
            raise InvalidBodyError(f"input n has shape {[*inference.tensor.shape]}; accepted: [1]")
        return {**inference.options, "n": str(inference.tensor.numbers()[0])}

    async def take(self, tensor: Tensor, query: SamplesQuery, timeout_seconds: float) -> SamplesQuery:
        """Choose a seed if the request names none, because the answer tells it."""
        return query if query.seed is not None else query.model_copy(update={"seed": new_seed()})
