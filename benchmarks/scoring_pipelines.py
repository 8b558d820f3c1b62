"""The snippets of docs/scoring.md for Ray, Spark, Daft and Dask, run as they stand there.

    pip install '.[service,cpu,score,ray]' pandas pyspark daft 'dask[dataframe]'    # Spark needs Java
    python benchmarks/scoring_pipelines.py [ray spark daft dask]

Each runs in a process of its own, in a folder with `photos`. It ends with status 1 if one fails, or if its p-values are
not those of `Scorer` for the same files.
"""

import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from service.scoring.scorer import Scorer

ROOT = Path(__file__).parents[1]
NAMES = ("ray", "spark", "daft", "dask")
TELL = """
import os
for path, p_value in zip(found["path"], found["p_value"]):
    print("FOUND", os.path.basename(path), p_value)
"""


def main() -> int:
    """Run those that are named, or all; returns the exit status."""
    page = (ROOT / "docs" / "scoring.md").read_text()
    snippets = dict(zip(NAMES, re.findall(r"```python\n(.*?)```", page, re.DOTALL), strict=True))
    failed = False
    with tempfile.TemporaryDirectory() as folder:
        photos = Path(folder) / "photos"
        photos.mkdir()
        for name in ("seven.png", "boot.png"):
            shutil.copy(ROOT / "docs" / name, photos)
        (photos / "bad.png").write_bytes(b"no image")
        files = sorted(photos.iterdir())
        expected = Scorer("mnist")({"image": [file.read_bytes() for file in files]})["p_value"]
        wanted = {file.name: repr(float(value)) for file, value in zip(files, expected, strict=True)}
        for name in sys.argv[1:] or NAMES:
            (script := Path(folder) / f"{name}_snippet.py").write_text(snippets[name] + TELL)
            environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYSPARK_PYTHON": sys.executable}
            done = subprocess.run(
                [sys.executable, str(script)], cwd=folder, env=environment, capture_output=True, text=True, check=False
            )
            found = dict(line.split()[1:] for line in done.stdout.splitlines() if line.startswith("FOUND "))
            same = {file: repr(float(value)) for file, value in found.items()} == wanted
            print(f"{'ok  ' if same else 'FAIL'} {name}: {found}", flush=True)
            if not same:
                print(done.stderr[-2000:])
                failed = True
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
