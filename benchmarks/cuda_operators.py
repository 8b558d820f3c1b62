"""The kernels of ONNX Runtime's CUDA provider, as JSON: what tests/data/cuda_operators.json was written by.

python benchmarks/cuda_operators.py > tests/data/cuda_operators.json

Run it with onnxruntime-gpu. ONNX Runtime asks every provider's library for its kernels, so both the CUDA libraries and
TensorRT's must be found by the loader; none is called, so libraries that only define the symbols do, and no GPU is
needed.
"""

import json
import sys
from collections import defaultdict

import onnxruntime as ort
from onnxruntime.capi import onnxruntime_pybind11_state as state

PROVIDER = "CUDAExecutionProvider"
NO_END = 2**31 - 1

Key = tuple[str, str, int, int | None]
"""Operator, domain, and the first and last version of it that a kernel computes; None: it names no last one."""


def kernels() -> dict[Key, list[dict[str, list[str]]]]:
    """For each version range of each operator: the types that each kernel takes, by type parameter."""
    found: dict[Key, list[dict[str, list[str]]]] = defaultdict(list)
    for kernel in state.get_all_opkernel_def():
        if kernel.provider != PROVIDER:
            continue
        first, last = kernel.version_range
        types = {name: sorted(map(_short, allowed)) for name, allowed in sorted(kernel.type_constraints.items())}
        known = found[kernel.op_name, kernel.domain, first, None if last == NO_END else last]
        if types not in known:  # kernels may differ in where inputs lie
            known.append(types)
    return {key: _merged(known) for key, known in sorted(found.items(), key=lambda item: _order(item[0]))}


def _merged(known: list[dict[str, list[str]]]) -> list[dict[str, list[str]]]:
    """Kernels of a single type parameter, together: one for each of several types is one for all of them."""
    by_name: dict[str, set[str]] = defaultdict(set)
    others = []
    for types in known:
        if len(types) == 1:
            (name,) = types
            by_name[name] |= set(types[name])
        else:
            others.append(types)
    return [{name: sorted(allowed)} for name, allowed in sorted(by_name.items())] + others


def _short(name: str) -> str:
    """`tensor(float)` as `float`; whatever is no tensor keeps its name."""
    return name.removeprefix("tensor(").removesuffix(")") if name.startswith("tensor(") else name


def _order(key: Key) -> tuple[str, str, int]:
    operator, domain, first, _ = key
    return domain, operator, first


def main() -> None:
    """Write the table, a line for each version range of each operator."""
    lines = [
        json.dumps({"operator": operator, "domain": domain, "first": first, "last": last, "types": types})
        for (operator, domain, first, last), types in kernels().items()
    ]
    head = {"package": "onnxruntime-gpu", "version": ort.__version__, "provider": PROVIDER}
    source = "onnxruntime.capi.onnxruntime_pybind11_state.get_all_opkernel_def(), by benchmarks/cuda_operators.py"
    sys.stdout.write("{\n")
    sys.stdout.writelines(f"{json.dumps(name)}: {json.dumps(value)},\n" for name, value in head.items())
    sys.stdout.write(f'"source": {json.dumps(source)},\n"kernels": [\n' + ",\n".join(lines) + "\n]\n}\n")


if __name__ == "__main__":
    main()
