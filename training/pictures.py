"""Photographs for the distillation: read once, cropped afresh each epoch."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from PIL import Image

HELD_OUT = 0.1
"""Part of the photographs that is never trained on: every choice was made on it."""


def read(folder: Path) -> list[Image.Image]:
    """Read all JPEG and PNG files of a folder, sorted by name, as RGB."""
    suffixes = {".jpg", ".jpeg", ".png"}
    files = sorted(path for path in folder.iterdir() if path.suffix.lower() in suffixes)
    if len(files) < 20:
        raise SystemExit(f"{folder} holds {len(files)} photographs; give a folder with more")
    with ThreadPoolExecutor(2) as pool:
        return list(pool.map(lambda path: Image.open(path).convert("RGB"), files))


def split(count: int) -> tuple[np.ndarray, np.ndarray]:
    """Give the numbers of the photographs to train on, and of the same tenth held out."""
    order = np.random.default_rng(0).permutation(count)
    held = max(1, int(count * HELD_OUT))
    return np.sort(order[held:]), np.sort(order[:held])


def centre(picture: Image.Image, side: int) -> np.ndarray:
    """Give a picture as an encoder sees it: middle square of 7/8 of the short side, uint8."""
    width, height = picture.size
    part = min(width, height) * 7 / 8
    left, upper = (width - part) / 2, (height - part) / 2
    box = (left, upper, left + part, upper + part)
    return np.asarray(picture.resize((side, side), Image.Resampling.BILINEAR, box=box))


def tensor(pictures: list[np.ndarray]) -> torch.Tensor:
    """Pictures (side, side, 3) in uint8 as one normalised batch (n, 3, side, side)."""
    x = torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2)
    return x.to(torch.float32, memory_format=torch.channels_last).div_(127.5).sub_(1)


def batches(
    pictures: list[Image.Image], numbers: np.ndarray, *, size: int, side: int, seed: int
) -> Iterator[torch.Tensor]:
    """Make one round of random crops.

    Crops are of 30 to 100 % of the picture, mirrored half the time, with brightness,
    contrast and saturation changed; half of the batches are mixed, by weight (mixup) or by
    a pasted rectangle (cutmix). The same seed gives the same pictures whatever their side,
    so that teacher and student see the same in their own resolutions.

    Parameters
    ----------
    pictures : list of PIL.Image.Image
    numbers : numpy.ndarray
        Which of them to take.
    size : int
        Pictures in a batch; what is left over is left out.
    side : int
        Side of the crops in pixels.
    seed : int
        Decides everything.

    Yields
    ------
    torch.Tensor
        Normalised (size, 3, side, side).
    """
    rng = np.random.default_rng(seed)
    order = rng.permutation(numbers)

    def make(chunk: np.ndarray, child: np.random.Generator):
        return _batch([pictures[i] for i in chunk], side, child)

    chunks = [order[i : i + size] for i in range(0, len(order) - size + 1, size)]
    children = rng.spawn(len(chunks))
    with ThreadPoolExecutor(1) as pool:  # the next batch is made while this one is learnt
        ahead = pool.submit(make, chunks[0], children[0]) if chunks else None
        for step in range(len(chunks)):
            batch = ahead.result()
            if step + 1 < len(chunks):
                ahead = pool.submit(make, chunks[step + 1], children[step + 1])
            yield batch


def _batch(pictures: list[Image.Image], side: int, rng: np.random.Generator) -> torch.Tensor:
    crops = []
    for picture in pictures:
        crop = picture.resize((side, side), Image.Resampling.BILINEAR, box=_box(picture, rng))
        crops.append(np.asarray(crop)[:, ::-1] if rng.random() < 0.5 else np.asarray(crop))
    light, contrast, colour = (
        torch.tensor(rng.uniform(0.7, 1.3, (len(pictures), 1, 1, 1)), dtype=torch.float32)
        for _ in range(3)
    )
    x = (tensor(crops) + 1) * light - 1
    grey = x.mean((1, 2, 3), keepdim=True)
    x = (x - grey) * contrast + grey
    grey = x.mean(1, keepdim=True)
    x = ((x - grey) * colour + grey).clamp(-1, 1)
    how, weight = rng.choice(["whole", "whole", "mixup", "cutmix"]), rng.random()
    if how == "mixup":
        x = weight * x + (1 - weight) * x.flip(0)
    elif how == "cutmix":
        part = (1 - weight) ** 0.5
        top, left = (round(start * (1 - part) * side) for start in rng.random(2))
        inside = ..., slice(top, top + round(part * side)), slice(left, left + round(part * side))
        x[inside] = x.flip(0)[inside]
    return x.contiguous(memory_format=torch.channels_last)


def _box(picture: Image.Image, rng: np.random.Generator) -> tuple[float, float, float, float]:
    width, height = picture.size
    area = rng.uniform(0.3, 1) * width * height
    ratio = np.exp(rng.uniform(np.log(3 / 4), np.log(4 / 3)))
    across, down = min(width, (area * ratio) ** 0.5), min(height, (area / ratio) ** 0.5)
    left, upper = rng.uniform(0, width - across), rng.uniform(0, height - down)
    return left, upper, left + across, upper + down
