"""Errors of files that hold many images: archives and Parquet.

ContainerError        a file that holds images is broken, or is not read because it may be an attack
└── EntryError        one image of it cannot be read
"""

from pathlib import Path


class ContainerError(Exception):
    """A file that holds images is broken, or is not read because it may be an attack."""

    def __init__(self, file: str | Path, problem: str) -> None:
        super().__init__(f"{file}: {problem}")
        self.file = file
        self.problem = problem


class EntryError(ContainerError):
    """One image of it cannot be read; `file` names the image."""
