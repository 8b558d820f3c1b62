"""How short one PNG's way is from its first byte to its answer's last, counted as benchmarks/request_way.py does."""

import os
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
MOST_CALLS = 195
"""Half of the 390 that there once were."""
MOST_FILES = 30


def test_one_png_is_answered_in_few_calls_on_the_event_loop() -> None:
    command = [sys.executable, str(ROOT / "benchmarks" / "request_way.py"), "--calls"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(  # noqa: S603
        command, env=environment, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr
    found = re.match(r"(\d+) calls, (\d+) of them of ours\n(\d+) files of ours", done.stdout)
    assert found is not None, done.stdout
    calls, files = int(found[1]), int(found[3])
    assert 50 < calls <= MOST_CALLS, done.stdout
    assert files <= MOST_FILES, done.stdout
