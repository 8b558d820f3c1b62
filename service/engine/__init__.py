"""Numbers only: arrays in, arrays out. No web, no torch; `Model` in model.py is the whole interface."""

import os

# ONNX Runtime reports its use to Microsoft unless told not to before it is imported, as modules of this package do.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
