"""What can be wrong with images, whoever reads them. The service answers each with a status (service/web/problems.py).

ImageError
├── UnreadableImageError      one file is no PNG, JPEG or WebP, or is broken or cut off
├── InvalidArrayError         an array as a whole, or what should hold the images, is not what is accepted
│   └── InvalidImageError     one image of several; `index` says which
└── PixelLimitError           more pixels than may be decoded
"""


class ImageError(Exception):
    """Images that cannot be read; the message is for whoever sent them."""


class UnreadableImageError(ImageError):
    """One file is no PNG, JPEG or WebP, or is broken or cut off."""


class InvalidArrayError(ImageError):
    """An array as a whole, or what should hold the images, is not what is accepted."""


class InvalidImageError(InvalidArrayError):
    """One image of several is wrong: the one at `index`, counted from 0."""

    def __init__(self, detail: str, index: int) -> None:
        super().__init__(detail)
        self.index = index


class PixelLimitError(ImageError):
    """More pixels than may be decoded."""
