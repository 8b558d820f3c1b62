"""Which clients of the Open Inference Protocol that others wrote can ask the service, unmodified, and what comes.

Each lives in an environment of its own, because what they need contradicts what we do (VENVS is any folder):

    python3.11 -m venv VENVS/triton && VENVS/triton/bin/pip install 'tritonclient[http]==2.73.0'
    python3.11 -m venv VENVS/kserve && VENVS/kserve/bin/pip install kserve==0.21.0
    python3.11 -m venv VENVS/mlserver && VENVS/mlserver/bin/pip install mlserver==1.7.1
    python benchmarks/protocol_clients.py --triton-python VENVS/triton/bin/python \
        --kserve-python VENVS/kserve/bin/python --mlserver-python VENVS/mlserver/bin/python

The service runs with its bundled models. tritonclient (with threads and for asyncio; binary and JSON; compressed) and
the KServe SDK run the scripts in benchmarks/peers, which compare answers with those of `/v1`, bit for bit, and the
examples of docs/open-inference-protocol.md. MLServer's command, `mlserver infer`, sends files of requests. A client
without its option is not tried. Each trial is a line: client and version, trial, `ok` or the error. The exit status is
1 if one failed, or none was tried.
"""

import argparse
import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from load import ROOT, digits, png, served

PEERS = Path(__file__).parent / "peers"
ADMIN_KEY = "admin-key-of-the-trial"
IMAGES = 64
REQUESTS = 20
TIMEOUT_SECONDS = 300
Trial = tuple[str, str, str | None]
"""Client, trial, and the error if there was one."""


def by_page(python: str, client: str, port: int) -> Iterator[Trial]:
    """The page's examples for a client, as they are there but for the port."""
    text = (ROOT / "docs" / "open-inference-protocol.md").read_text().replace("127.0.0.1:8000", f"127.0.0.1:{port}")
    found = [block for block in re.findall(r"```python\n(.*?)```", text, re.DOTALL) if client in block]
    for number, block in enumerate(found, 1):
        command = [python, "-W", "error::SyntaxWarning", "-c", block]
        done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_SECONDS, check=False, cwd=ROOT)
        last = (done.stderr.strip().splitlines() or ["no word"])[-1]
        yield client, f"example {number} of the page", last if done.returncode or not done.stdout else None


def by_script(python: str, script: str, port: int, folder: Path) -> Iterator[Trial]:
    """The trials of a script, each a line of JSON."""
    command = [python, str(PEERS / script), f"127.0.0.1:{port}", str(folder / "digits.npy"), str(folder / "digit.png")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_SECONDS, check=False, cwd=folder)
    for line in done.stdout.splitlines():
        if line.startswith("{"):
            told = json.loads(line)
            yield told["client"], told["trial"], told["error"]
    if done.returncode:
        yield script, "the script itself", (done.stderr.strip().splitlines() or ["no word"])[-1]


def by_mlserver(python: str, port: int, folder: Path) -> Iterator[Trial]:
    """`mlserver infer` with a file of requests, one by one and in micro-batches."""
    asked = [
        {
            "id": str(index),
            "inputs": [
                {"name": "images", "shape": [1, 1, 28, 28], "datatype": "UINT8", "data": image.ravel().tolist()}
            ],
        }
        for index, image in enumerate(digits()[:REQUESTS])
    ]
    (folder / "requests.jsonl").write_text("".join(f"{json.dumps(request)}\n" for request in asked))
    said = "import importlib.metadata as m; print(m.version('mlserver'))"
    version = subprocess.run([python, "-c", said], capture_output=True, text=True, check=True).stdout.strip()
    page, many = ROOT / "docs" / "seven.json", folder / "requests.jsonl"
    for file, options in ((page, []), (many, []), (many, ["--binary-data"]), (many, ["--batch-size", "5"])):
        for model in ("mnist.encode", "mnist.log-likelihood"):
            out = folder / "answers.jsonl"
            out.unlink(missing_ok=True)
            program = str(Path(python).parent / "mlserver")
            command = [program, "infer", "-u", f"127.0.0.1:{port}", "-m", model, "-i", str(file)]
            done = subprocess.run(
                [*command, "-o", str(out), *options],
                capture_output=True,
                text=True,
                timeout=TIMEOUT_SECONDS,
                check=False,
            )
            error = None if done.returncode == 0 else (done.stderr.strip().splitlines() or ["no word"])[-1]
            expected = 1 if file is page else REQUESTS
            yield (
                f"mlserver {version} infer",
                " ".join([model, file.name, *options]),
                error or wrong_answers(out, expected),
            )


def wrong_answers(out: Path, expected: int) -> str | None:
    """What is wrong with the answers that `mlserver infer` wrote."""
    answers = [json.loads(line) for line in out.read_text().splitlines()]
    if len(answers) != expected:
        return f"{len(answers)} answers to {expected} requests"
    if lacking := [answer for answer in answers if "outputs" not in answer]:
        return f"{len(lacking)} of {len(answers)} have no outputs: {json.dumps(lacking[0])[:300]}"
    return None


def main() -> None:
    """Print a line for each trial."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for client in ("triton", "kserve", "mlserver"):
        parser.add_argument(f"--{client}-python", help=f"python of the environment that has {client}'s client")
    given = parser.parse_args()
    failed = tried = 0
    with tempfile.TemporaryDirectory() as name, served(admin_keys=ADMIN_KEY) as port:
        folder = Path(name)
        np.save(folder / "digits.npy", digits()[:IMAGES])
        (folder / "digit.png").write_bytes(png(digits()[0]))
        ways: list[tuple[str | None, Callable[[str], Iterator[Trial]]]] = [
            (given.triton_python, lambda python: by_script(python, "tritonclient_calls.py", port, folder)),
            (given.triton_python, lambda python: by_page(python, "tritonclient", port)),
            (given.kserve_python, lambda python: by_script(python, "kserve_calls.py", port, folder)),
            (given.kserve_python, lambda python: by_page(python, "kserve", port)),
            (given.mlserver_python, lambda python: by_mlserver(python, port, folder)),
        ]
        for python, trials in ways:
            for client, trial, error in trials(python) if python else ():
                tried, failed = tried + 1, failed + (error is not None)
                print(f"{client:28} {trial:40} {error or 'ok'}", flush=True)
    print(f"{tried - failed} of {tried} ok")
    sys.exit(failed > 0 or tried == 0)


if __name__ == "__main__":
    main()
