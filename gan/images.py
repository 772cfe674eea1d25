"""Batches of images to bytes and back, and the pictures made of them."""

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor

PAPER = 255
GAP = 2  # pixels between pictures
CAPTION = 16  # pixels of height


def to_bytes(images: Tensor) -> np.ndarray:
    """Floats [..., C, H, W] in [-1, 1] on any device to new uint8 [..., H, W, C].

    The result shares no memory, needs no gradient and is on the CPU: -1 becomes 0, 1 becomes 255,
    values between are rounded and others clipped. Any floating type will do.

    Raises: ValueError for integers, which have no such range.
    """
    if not images.is_floating_point():
        raise ValueError(f"images must be floats in [-1, 1], not {images.dtype}")
    pixels = images.detach().float().add(1).mul(127.5).round().clamp(0, 255)
    return pixels.to(torch.uint8).movedim(-3, -1).contiguous().cpu().numpy()


def to_floats(pixels: np.ndarray | Tensor, device: torch.device | str | None = None) -> Tensor:
    """Bytes [..., H, W, C] to new float32 [..., C, H, W] in [-1, 1]; 0 becomes -1, 255 becomes 1.

    The result shares no memory with the bytes, whatever their strides, and lies channels last as
    they do. `device` is by default that of a tensor of bytes, and the CPU for an array.
    `to_bytes` gives back the very same bytes.

    Raises: ValueError for anything but uint8: floats are images already.
    """
    if pixels.dtype not in (np.uint8, torch.uint8):
        raise ValueError(f"pixels must be bytes (uint8), not {pixels.dtype}")
    if not isinstance(pixels, Tensor):
        pixels = torch.from_numpy(np.require(pixels, requirements=["C", "W"]))
    floats = pixels.to(device).to(torch.float32)  # bytes travel, floats are made where they arrive
    return floats.mul_(2 / 255).sub_(1).movedim(-1, -3)


def grid(images: Tensor, columns: int | None = None) -> np.ndarray:
    """Images [N, C, H, W] row by row in one picture uint8 [H', W', 3], about square unless told.

    Small ones are enlarged, so that they can be read on a screen.
    """
    pixels = _enlarged(to_bytes(images))
    columns = columns or max(1, round(len(pixels) ** 0.5))
    rows = -(-len(pixels) // columns)
    height, width = pixels.shape[1] + GAP, pixels.shape[2] + GAP
    sheet = np.full((rows * height + GAP, columns * width + GAP, 3), PAPER, dtype=np.uint8)
    for place, picture in enumerate(pixels):
        top, left = place // columns * height + GAP, place % columns * width + GAP
        sheet[top : top + height - GAP, left : left + width - GAP] = picture
    return sheet


def table(columns: dict[str, Tensor]) -> np.ndarray:
    """Columns of images [N, C, H, W], side by side under their names, as one picture uint8."""
    strips = {name: grid(images, columns=1) for name, images in columns.items()}
    wide = max(max(s.shape[1], _text_width(name) + 6 + 2 * GAP) for name, s in strips.items())
    for name, strip in strips.items():
        spare = wide - strip.shape[1]
        sides = (0, 0), (spare // 2, spare - spare // 2), (0, 0)
        strip = np.pad(strip, sides, constant_values=PAPER)
        strips[name] = np.concatenate([_caption(name, wide), strip])
    return np.concatenate([*strips.values()], axis=1)


def _enlarged(pixels: np.ndarray) -> np.ndarray:
    times = max(1, 96 // pixels.shape[2])
    pixels = pixels.repeat(times, axis=1).repeat(times, axis=2)
    return pixels.repeat(3, axis=3) if pixels.shape[3] == 1 else pixels[..., :3]


def _caption(text: str, width: int) -> np.ndarray:
    picture = Image.new("RGB", (width, CAPTION), (PAPER,) * 3)
    ImageDraw.Draw(picture).text(((width - _text_width(text)) // 2, 2), text, fill=(0, 0, 0))
    return np.array(picture)


def _text_width(text: str) -> int:
    return int(ImageDraw.Draw(Image.new("L", (1, 1))).textlength(text))
