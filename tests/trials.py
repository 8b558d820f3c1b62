"""Trials without a child: as strict, but a version that hangs or crashes takes the test with it."""

import hashlib
from pathlib import Path
from typing import Any, ClassVar

from service.engine.trial import Request, try_out
from service.web.models.trials import Trials


class TrialsInProcess(Trials):
    """In place of `Trials` in tests that start many services. What has passed once passes at once, by its manifest."""

    known: ClassVar[dict[str, dict[str, Any]]] = {}

    def warm(self) -> None:
        """There is nothing to start."""

    def report(self, request: Request) -> dict[str, Any]:
        """As a child would say it."""
        manifest = Path(request.root, request.name, str(request.version), "manifest.json")
        digest = hashlib.sha256(manifest.read_bytes()).hexdigest() if manifest.is_file() else ""
        if digest in self.known:
            return self.known[digest]  # whether the other files fit it is looked at again when they are loaded
        report = try_out(request, lambda _: None)
        if "passed" in report:
            self.known[report["passed"]] = report
        return report
