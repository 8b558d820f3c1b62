"""What the KServe SDK's client makes of a service; a line of JSON for each trial.

python kserve_calls.py HOST:PORT digits.npy file.png
"""

import asyncio
import json
import sys
import urllib.request
from collections.abc import Awaitable, Callable
from importlib.metadata import version
from io import BytesIO
from typing import Any

import numpy as np
from kserve import InferenceRESTClient, InferInput, InferRequest  # type: ignore[attr-defined]  # deploy/kserve is in its place
from kserve.inference_client import RESTConfig

ADDRESS, DIGITS, FILE = sys.argv[1:]
URL = f"http://{ADDRESS}"
LEVELS = np.load(DIGITS)[:, None]  # [B, 1, 28, 28] uint8
NAME = f"kserve {version('kserve')}"


def v1(path: str) -> Any:
    """The same of `/v1`, as npy."""
    body = BytesIO()
    np.save(body, LEVELS, allow_pickle=False)
    headers = {"Content-Type": "application/x-npy", "Accept": "application/x-npy"}
    request = urllib.request.Request(f"{URL}/v1/{path}", body.getvalue(), headers)
    with urllib.request.urlopen(request) as answer:
        return np.load(BytesIO(answer.read()))


def asked(model: str, *, binary: bool, name: str = "images", **members: Any) -> InferRequest:
    """A request with digits."""
    tensor = InferInput(name, list(LEVELS.shape), "UINT8")
    tensor.set_data_from_numpy(LEVELS, binary_data=binary)
    return InferRequest(model, [tensor], **members)


async def tried(trial: str, check: Callable[[], Awaitable[Any]]) -> None:
    """Try, and print."""
    error = None
    try:
        if await check() is False:
            raise AssertionError("the answer is not what it should be")
    except Exception as found:  # noqa: BLE001 - whatever it is, it is told
        error = f"{type(found).__name__}: {found}"[:500]
    print(json.dumps({"client": NAME, "trial": trial, "error": error}))


async def main() -> None:
    """All trials."""
    client = InferenceRESTClient(RESTConfig(protocol="v2", timeout=60))
    code = v1("encode")
    estimates = v1("log-likelihood?num_samples=50")

    async def encode(*, binary: bool, answer: bool) -> bool:
        parameters = {"binary_data_output": answer}
        found = await client.infer(URL, asked("mnist.encode", binary=binary, parameters=parameters), "mnist.encode")
        means = {output.name: output for output in found.outputs}["mean"].as_numpy()
        return bool(np.array_equal(means.reshape(len(LEVELS), -1).astype(np.float32), code[:, 0]))

    async def estimate() -> bool:
        request = asked("mnist.log-likelihood", binary=True, parameters={"num_samples": 50}, request_id="seven")
        found = await client.infer(URL, request, "mnist.log-likelihood")
        values = {output.name: output for output in found.outputs}["log_likelihood"].as_numpy()
        return found.id == "seven" and bool(np.array_equal(values, estimates["log_likelihood"]))

    async def as_dictionary() -> bool:
        one = {"name": "images", "shape": [1, 1, 28, 28], "datatype": "UINT8", "data": LEVELS[0].ravel().tolist()}
        found = await client.infer(URL, {"inputs": [one]}, "mnist.anomaly-scores")
        return len(found.outputs) == 5

    async def refused() -> bool:
        try:
            await client.infer(URL, asked("mnist.encode", binary=True, name="pixels"), "mnist.encode")
        except Exception as error:  # noqa: BLE001 - the SDK's, of several kinds
            return "one input, images" in str(error)
        return False

    await tried("live", lambda: client.is_server_live(URL))
    await tried("ready", lambda: client.is_server_ready(URL))
    await tried("model ready", lambda: client.is_model_ready(URL, "mnist.encode"))
    await tried("UINT8, binary both ways", lambda: encode(binary=True, answer=True))
    await tried("UINT8, binary, answer in JSON", lambda: encode(binary=True, answer=False))
    await tried("UINT8, JSON both ways", lambda: encode(binary=False, answer=False))
    await tried("log-likelihood, parameters", estimate)
    await tried("a dictionary", as_dictionary)
    await tried("a refusal is shown", refused)
    await client.close()


if __name__ == "__main__":
    asyncio.run(main())
