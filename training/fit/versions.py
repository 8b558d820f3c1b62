"""Which libraries made a model: the versions that its weights and its graphs depend on."""

import importlib.metadata
import platform
from collections.abc import Sequence

OF_TRAINING = ("numpy", "pillow", "pyarrow", "torch")
"""Pixels are decoded by pillow, out of Parquet by pyarrow, split by numpy and trained on by torch."""
OF_PUBLICATION = ("numpy", "onnx", "onnxruntime", "onnxruntime-gpu", "onnxscript", "pillow", "pyarrow", "torch")


def library_versions(libraries: Sequence[str]) -> dict[str, str]:
    """Python's version, and those of the libraries that are installed: of the two ONNX Runtimes, one is.

    >>> sorted(library_versions(["torch", "no-such-library"]))
    ['python', 'torch']
    """
    versions = {"python": platform.python_version()}
    for library in libraries:
        try:
            versions[library] = importlib.metadata.version(library)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions
