"""Triton itself, from nvidia-pytriton's wheel, with its Python backend: no layer of pytriton's in between.

python triton_server.py PORT encoder.onnx

Wants Debian's own Python 3.11: the backend's stub links libpython3.11 and imports what this environment holds.
"""

import os
import shutil
import sys
import tempfile
from pathlib import Path

import pytriton
from pytriton.utils.distribution import get_libs_path, get_stub_path

INSTANCES = 2
BATCH = 32
FORMS = {"encode_png": ("TYPE_STRING", "[1]"), "encode_pixels": ("TYPE_UINT8", "[1, 28, 28]")}
CONFIGURATION = """
backend: "python"
max_batch_size: {batch}
dynamic_batching {{}}
instance_group [{{ kind: KIND_CPU, count: {instances} }}]
input [{{ name: "image", data_type: {data_type}, dims: {dims} }}]
output [
  {{ name: "mean", data_type: TYPE_FP32, dims: [-1] }},
  {{ name: "log_var", data_type: TYPE_FP32, dims: [-1] }}
]
parameters {{ key: "encoder" value {{ string_value: "{encoder}" }} }}
"""


def main() -> None:
    """Lay out the model repository and become tritonserver."""
    here = Path(__file__).resolve().parent
    work = Path(tempfile.mkdtemp(prefix="triton-"))  # the caller's temporary folder, which it removes
    distribution = Path(pytriton.__file__).parent / "tritonserver"
    shutil.copytree(distribution / "backends", work / "backends")
    shutil.copy(get_stub_path(f"{sys.version_info.major}.{sys.version_info.minor}"), work / "backends" / "python")
    for name, (data_type, dims) in FORMS.items():
        version = work / "models" / name / "1"
        version.mkdir(parents=True)
        shutil.copy(here / "triton_model.py", version / "model.py")
        shutil.copy(here / "encoder.py", version)
        values = {"batch": BATCH, "instances": INSTANCES, "encoder": Path(sys.argv[2]).resolve()}
        configuration = CONFIGURATION.format(data_type=data_type, dims=dims, **values)
        (version.parent / "config.pbtxt").write_text(configuration)
    server = distribution / "bin" / "tritonserver"
    environment = {
        **os.environ,
        "LD_LIBRARY_PATH": str(get_libs_path()),
        "PATH": os.pathsep.join(
            [str(Path(sys.executable).parent), os.environ["PATH"]]
        ),  # names the models' environment
    }
    arguments = [
        f"--model-repository={work / 'models'}",
        f"--backend-directory={work / 'backends'}",
        f"--http-port={sys.argv[1]}",
        "--http-address=127.0.0.1",
        "--allow-grpc=false",
        "--allow-metrics=false",
        f"--backend-config=python,shm-region-prefix-name={work.name}",
    ]
    os.execve(server, [str(server), *arguments], environment)


if __name__ == "__main__":
    main()
