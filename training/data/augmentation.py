"""Vary training images a little each time they are used, on their device."""

import torch
from torch import Tensor


def augment(images: Tensor, *, flip: bool, shift: int, generator: torch.Generator) -> Tensor:
    """Mirror images [B, C, H, W] with probability ½ each (`flip`) and move them by up to `shift` pixels.

    Left and right are exchanged. Steps down and to the right are whole pixels, uniform in -shift … shift. The gap that
    a moved image leaves is filled by repeating its outermost row or column. No random numbers are drawn from
    `generator` for a variation that is off. The images may have any type.
    """
    if not flip and not shift:
        return images
    batch, channels, height, width = images.shape
    device = images.device
    rows = torch.arange(height, device=device).expand(batch, -1)  # [B, H], the row that each pixel comes from
    columns = torch.arange(width, device=device).expand(batch, -1)
    if flip:
        mirrored = torch.rand((batch, 1), generator=generator, device=device) < 0.5
        columns = torch.where(mirrored, width - 1 - columns, columns)
    if shift:
        down, right = torch.randint(-shift, shift + 1, (2, batch, 1), generator=generator, device=device)
        rows = (rows - down).clamp(0, height - 1)
        columns = columns.gather(1, (torch.arange(width, device=device) - right).clamp(0, width - 1))
    image = torch.arange(batch, device=device)[:, None, None, None]
    channel = torch.arange(channels, device=device)[None, :, None, None]
    return images[image, channel, rows[:, None, :, None], columns[:, None, None, :]]
