"""Errors of reading images, in the service and elsewhere. service/web/problems.py has the HTTP status of each.

ImageError
├── UnreadableImageError      a file is not a PNG, JPEG or WebP, or is broken or cut off
├── InvalidArrayError         an array as a whole, or the container of the images, is not accepted
│   └── InvalidImageError     one image of several is wrong; `index` says which
└── PixelLimitError           there are more pixels than may be decoded
"""


class ImageError(Exception):
    """Images cannot be read; the message is written for the sender."""


class UnreadableImageError(ImageError):
    """A file is not a PNG, JPEG or WebP, or is broken or cut off."""


class InvalidArrayError(ImageError):
    """An array as a whole, or the container of the images, is not accepted."""


class InvalidImageError(InvalidArrayError):
    """One image of several is wrong: the one at `index`, counted from 0."""

    def __init__(self, detail: str, index: int) -> None:
        super().__init__(detail)
        self.index = index


class PixelLimitError(ImageError):
    """There are more pixels than may be decoded."""
