"""What tritonclient's clients make of a service, asked as their documentation shows; a line of JSON for each trial.

python tritonclient_calls.py HOST:PORT digits.npy file.png
"""

import asyncio
import json
import sys
import urllib.request
from collections.abc import Callable, Iterator
from importlib.metadata import version
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import tritonclient.http as sync_client
import tritonclient.http.aio as async_client

ADDRESS, DIGITS, FILE = sys.argv[1:]
LEVELS = np.load(DIGITS)[:, None]  # [B, 1, 28, 28] uint8
UNIT = LEVELS.astype(np.float32) / np.float32(255)
CONTENT = Path(FILE).read_bytes()
FLOATS = ("log_likelihood", "bits_per_dim", "std_error", "elbo", "posterior_gap")


def v1(path: str, array: Any) -> Any:
    """The same of `/v1`, as npy; of an array, or of a PNG."""
    body = BytesIO()
    if not isinstance(array, bytes):
        np.save(body, array, allow_pickle=False)
    content, media_type = (array, "image/png") if isinstance(array, bytes) else (body.getvalue(), "application/x-npy")
    headers = {"Content-Type": media_type, "Accept": "application/x-npy"}
    request = urllib.request.Request(f"http://{ADDRESS}/v1/{path}", content, headers)
    with urllib.request.urlopen(request) as answer:
        return np.load(BytesIO(answer.read()))


def given(module: Any, name: str, datatype: str, array: Any, *, binary: bool = True) -> list[Any]:
    """One input."""
    tensor = module.InferInput(name, list(array.shape), datatype)
    tensor.set_data_from_numpy(array, binary_data=binary)
    return [tensor]


def same(expected: Any, found: Any) -> None:
    """Every bit."""
    np.testing.assert_array_equal(found, expected)


def trials(module: Any) -> Iterator[tuple[str, str, dict[str, Any], Callable[[Any], None]]]:
    """A name, the model, the arguments of `infer`, and what the result must be."""
    code = v1("encode", LEVELS)
    ones = v1("encode", UNIT)

    def coded(result: Any, expected: Any = code) -> None:
        same(expected[:, 0], result.as_numpy("mean"))
        same(expected[:, 1], result.as_numpy("log_var"))

    as_levels = given(module, "images", "UINT8", LEVELS)
    yield "UINT8, binary", "mnist.encode", {"inputs": as_levels}, coded
    yield "FP32, binary", "mnist.encode", {"inputs": given(module, "images", "FP32", UNIT)}, lambda it: coded(it, ones)
    in_json = given(module, "images", "UINT8", LEVELS[:4], binary=False)
    outputs = [module.InferRequestedOutput(name, binary_data=False) for name in ("log_var", "mean")]
    named = {"inputs": in_json, "outputs": outputs, "request_id": "seven"}
    first = v1("encode", LEVELS[:4])
    yield "UINT8, JSON both ways", "mnist.encode", named, lambda it: coded(it, first)
    yield "version", "mnist.encode", {"inputs": as_levels, "model_version": "5"}, coded
    for coding in ("gzip", "deflate"):
        packed = {"request_compression_algorithm": coding, "response_compression_algorithm": coding}
        yield coding, "mnist.encode", {"inputs": as_levels, **packed}, coded
    files = given(module, "images", "BYTES", np.array([CONTENT], np.object_))
    coded_file, estimated_file = v1("encode", CONTENT), v1("log-likelihood", CONTENT)
    options = {"num_samples": 50, "seed": 3}
    estimates = v1("log-likelihood?num_samples=50&seed=3", LEVELS)

    def estimated(result: Any, expected: Any = estimates) -> None:
        for name in FLOATS:
            same(expected[name], result.as_numpy(name))

    asked = {"inputs": as_levels, "parameters": options, "timeout": 60_000_000, "priority": 1}
    yield "log-likelihood, parameters", "mnist.log-likelihood", asked, estimated
    one = {"inputs": files}
    yield "log-likelihood, BYTES", "mnist.log-likelihood", one, lambda it: estimated(it, estimated_file)
    yield "BYTES", "mnist.encode", one, lambda it: coded(it, coded_file)
    scores = v1("anomaly-scores", LEVELS)
    judged = {"inputs": as_levels}
    yield "anomaly-scores", "mnist.anomaly-scores", judged, lambda it: same(scores["p_value"], it.as_numpy("p_value"))
    latents = np.zeros((3, 50), np.float32)
    images = v1("decode", latents)
    one = {"inputs": given(module, "latents", "FP32", latents)}
    yield "decode", "mnist.decode", one, lambda it: same(images, it.as_numpy("images"))
    drawn = {"inputs": given(module, "n", "INT32", np.array([2], np.int32)), "parameters": {"seed": 1}}
    yield "samples", "mnist.samples", drawn, lambda it: same((2, 1, 28, 28), it.as_numpy("images").shape)


def told(client: str, trial: str, error: BaseException | None) -> None:
    """Print a trial's end."""
    print(json.dumps({"client": client, "trial": trial, "error": error and f"{type(error).__name__}: {error}"[:500]}))


def expect_refusal(error: BaseException, words: str) -> None:
    """The client shows what the service says."""
    if words not in str(error):
        raise AssertionError(f"it shows {error}")


def checked(client: str, trial: str, check: Callable[[], Any]) -> None:
    """Try, and print; no result may be False."""
    try:
        holds(check())
    except Exception as error:  # noqa: BLE001 - whatever it is, it is told
        told(client, trial, error)
    else:
        told(client, trial, None)


def holds(found: Any) -> None:
    """Refuse False, also in a list."""
    if any(one is False for one in (found if isinstance(found, list) else [found])):
        raise AssertionError("the answer is False")


def control(client: Any) -> dict[str, Callable[[], Any]]:
    """What besides `infer` there is to call."""
    queried = {"query_params": {"test_1": 1, "test_2": 2}}
    return {
        "health, with query parameters": lambda: [client.is_server_live(**queried), client.is_server_ready(**queried)],
        "ready": lambda: [client.is_model_ready("mnist.encode"), client.is_model_ready("mnist.decode", "5")],
        "server metadata": lambda: client.get_server_metadata(),
        "model metadata": lambda: client.get_model_metadata("mnist.encode"),
        "repository index": lambda: client.get_model_repository_index(),
        "load": lambda: client.load_model("mnist.encode", headers={"X-API-Key": "admin-key-of-the-trial"}),
    }


def wrong(module: Any) -> tuple[str, dict[str, Any]]:
    """A request that is refused."""
    return "mnist.encode", {"inputs": given(module, "pixels", "UINT8", LEVELS)}


def main_sync() -> None:
    """The client with threads."""
    name = f"tritonclient {version('tritonclient')} http"
    with sync_client.InferenceServerClient(ADDRESS) as client:
        for trial, call in control(client).items():
            checked(name, trial, call)
        for trial, model, arguments, check in trials(sync_client):
            checked(name, trial, lambda m=model, a=arguments, c=check: c(client.infer(m, **a)))  # type: ignore[misc]
        model, arguments = wrong(sync_client)

        def refused() -> None:
            try:
                client.infer(model, **arguments)
            except sync_client.InferenceServerException as error:
                expect_refusal(error, "one input, images")
            else:
                raise AssertionError("it is not refused")

        checked(name, "a refusal is shown", refused)
        waiting = [client.async_infer("mnist.encode", given(sync_client, "images", "UINT8", LEVELS)) for _ in range(8)]
        checked(name, "async_infer", lambda: [one.get_result().as_numpy("mean") for one in waiting])


async def main_async() -> None:
    """The client for asyncio."""
    name = f"tritonclient {version('tritonclient')} http.aio"
    async with async_client.InferenceServerClient(ADDRESS) as client:
        for trial, call in control(client).items():
            try:
                found = call()
                for waited in found if isinstance(found, list) else [found]:
                    holds(await waited)
            except Exception as error:  # noqa: BLE001
                told(name, trial, error)
            else:
                told(name, trial, None)
        for trial, model, arguments, check in trials(async_client):
            try:
                check(await client.infer(model, **arguments))
            except Exception as error:  # noqa: BLE001
                told(name, trial, error)
            else:
                told(name, trial, None)


if __name__ == "__main__":
    main_sync()
    asyncio.run(main_async())
