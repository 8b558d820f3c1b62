"""docs/surprise.png: some images, and under each the map that `?explain=true` answers, as the service draws it.

python benchmarks/surprise.py docs/surprise.png
"""

import argparse
import base64
import io
import time
from pathlib import Path

import numpy as np
from fastapi.testclient import TestClient
from numpy.typing import NDArray
from PIL import Image

from service.web.app import create_app
from service.web.operations.settings import Settings

ROOT = Path(__file__).parents[1]
SCALE, GAP = 5, 6


def pictures() -> list[NDArray[np.uint8]]:
    """A seven, as it is; with a spot; with a part missing; upside down; and a boot. Each [28, 28]."""
    seven, boot = (np.asarray(Image.open(ROOT / "docs" / name).convert("L")) for name in ("seven.png", "boot.png"))
    spot, cut = seven.copy(), seven.copy()
    spot[20:23, 3:6] = 255
    cut[14:18] = 0
    return [seven, spot, cut, np.ascontiguousarray(seven[::-1]), boot]


def main() -> None:
    """Ask the service, and paste."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path)
    out: Path = parser.parse_args().out
    shown = pictures()
    stream = io.BytesIO()
    np.save(stream, np.stack(shown))
    with TestClient(create_app(Settings(model="mnist"))) as client:
        while client.get("/readyz").status_code != 200:
            time.sleep(0.1)
        headers = {"content-type": "application/x-npy"}
        answer = client.post("/v1/anomaly-scores?explain=true", content=stream.getvalue(), headers=headers).json()
    step = 28 * SCALE + GAP
    sheet = Image.new("L", (step * len(shown) - GAP, 2 * step - GAP), 128)
    for column, (image, result) in enumerate(zip(shown, answer["results"], strict=True)):
        mapped = Image.open(io.BytesIO(base64.b64decode(result["explanation"])))
        for row, picture in enumerate((Image.fromarray(image), mapped)):
            large = picture.resize((28 * SCALE, 28 * SCALE), Image.Resampling.NEAREST)
            sheet.paste(large, (column * step, row * step))
        print(f"{column}: p-value {result['p_value']:.4f}, log P(x) {result['log_likelihood']:.1f} nats")
    sheet.save(out, optimize=True)


if __name__ == "__main__":
    main()
