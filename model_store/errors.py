"""What the store refuses.

StoreError
├── ModelNotFoundError      no such model, or no such version of it
└── InvalidArtifactError    a file is missing, altered, too large, of another format version, or no model
"""

from pathlib import Path

from model_store.text import printable

_MOST_CHARACTERS = 1000


class StoreError(Exception):
    """Any refusal of the store."""


class ModelNotFoundError(StoreError):
    """No such model, or no such version of it."""


class InvalidArtifactError(StoreError):
    """A file of a version is missing, altered, too large, of another format version, or contradicts the manifest.

    What is wrong may quote the file, and is shown in logs and to clients: it is made printable and cut short here.
    """

    def __init__(self, file: str | Path, problem: str) -> None:
        shown = printable(problem)
        if len(shown) > _MOST_CHARACTERS:
            shown = shown[:_MOST_CHARACTERS] + " …"
        super().__init__(f"{file}: {shown}")
        self.file = Path(file)
        self.problem = shown
