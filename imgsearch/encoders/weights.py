"""Weights of an encoder: found, downloaded if need be, always verified, never executed.

A file is looked for in this order: the one that a parameter or ``IMGSEARCH_WEIGHTS``
names, the cache in ``IMGSEARCH_HOME/weights``, torchvision's published ImageNet weights.
"""

from __future__ import annotations

import hashlib
import http.client
import os
import re
import urllib.error
import urllib.request
from pathlib import Path
from typing import TYPE_CHECKING

from imgsearch.errors import WeightsError

if TYPE_CHECKING:
    import torch

PUBLISHED = {
    "resnet18": "resnet18-f37072fd.pth",
    "resnet34": "resnet34-b627a593.pth",
    "resnet50": "resnet50-0676ba61.pth",
    "resnet101": "resnet101-63fe2227.pth",
    "resnet152": "resnet152-394f9c45.pth",
}
"""torchvision's first ImageNet weights; the name ends in the first hex digits of the SHA-256."""

SOURCE = "https://download.pytorch.org/models"

_TIMEOUT = 30.0  # seconds without a byte
_TRIES = 4
_BLOCK = 1 << 20
_LIMIT = 1 << 30  # bytes; no published file is a third of it


def locate(
    name: str,
    *,
    file: str | Path | None = None,
    home: Path,
    source: str = SOURCE,
    progress: bool = True,
) -> Path:
    """Path of the weights of a published network, after a download if need be.

    Parameters
    ----------
    name : str
        A key of `PUBLISHED`.
    file : str or Path, optional
        A local file, to be used instead of cache and download.
    home : Path
        The folder in which ``weights/`` is the cache.
    source : str
        Folder URL that the published files lie in.
    progress : bool
        Whether a download shows a progress bar.

    Returns
    -------
    Path
        A file that is there. One from cache or download has the published SHA-256.

    Raises
    ------
    WeightsError
        The local file is missing, or the published one is neither cached nor to be had.
    """
    if file is not None:
        path = Path(file).expanduser()
        if not path.is_file():
            raise WeightsError(str(path), "no such file; check IMGSEARCH_WEIGHTS or weights=")
        return path
    published = PUBLISHED[name]
    return fetch(f"{source}/{published}", home / "weights" / published, progress=progress)


def fetch(url: str, target: Path, *, progress: bool = True) -> Path:
    """Download a file whose name ends in the beginning of its SHA-256.

    The file appears under its name only when it is whole and verified. What a broken
    transfer left is continued, also by a later call. Processes that want the same file
    wait for one another and download it once.

    Parameters
    ----------
    url : str
    target : Path
        Where the file is to be, named ``anything-HEX.suffix``.
    progress : bool
        Whether to show a progress bar.

    Returns
    -------
    Path
        `target`.

    Raises
    ------
    WeightsError
        It cannot be had; says what happened and what else can be done.
    """
    from filelock import FileLock

    prefix = _prefix(target)
    if target.is_file() and _sha256(target).startswith(prefix):
        return target
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(target.with_name(target.name + ".lock")):
            if target.is_file() and _sha256(target).startswith(prefix):
                return target  # another process was quicker
            part = target.with_name(target.name + ".part")
            for attempt in range(2):
                resumed = _transfer(url, part, progress)
                found = _sha256(part)
                if found.startswith(prefix):
                    part.replace(target)
                    return target
                part.unlink()
                if not resumed or attempt:
                    break  # what was continued may have been of another file: begin once more
            raise WeightsError(
                target.name,
                f"{url} gave a file with SHA-256 {found[:16]}…, not {prefix}…; {_ways_out(target)}",
            )
    except (OSError, http.client.HTTPException) as error:
        reason = error if isinstance(error, urllib.error.HTTPError) else None
        reason = reason or getattr(error, "reason", None) or error or type(error).__name__
        raise WeightsError(
            target.name, f"cannot be downloaded from {url} ({reason}); {_ways_out(target)}"
        ) from None


def _ways_out(target: Path) -> str:
    return (
        "either set IMGSEARCH_WEIGHTS to a file with these weights, or copy "
        f"{target.name} from another machine's cache to {target.parent}, or use the "
        "bundled encoder 'mini', which needs no download"
    )


def _prefix(target: Path) -> str:
    match = re.search(r"-([0-9a-f]{8,64})\.", target.name)
    if match is None:
        raise ValueError(f"{target.name} does not carry the beginning of its SHA-256")
    return match[1]


def _transfer(url: str, part: Path, progress: bool) -> bool:
    """Bring `part` to its full length; True if it continued what lay there before."""
    resumed = part.is_file() and part.stat().st_size > 0
    for attempt in range(_TRIES):
        before = part.stat().st_size if part.is_file() else 0
        try:
            if _request(url, part, progress):
                return resumed
        except urllib.error.HTTPError as error:
            if error.code == 416 and before:  # nothing left after what lies there
                if _length(error.headers.get("Content-Range")) != before:
                    part.unlink()
                    continue
                return resumed
            if error.code < 500 or attempt == _TRIES - 1:
                raise
        except (OSError, http.client.HTTPException):
            grown = part.is_file() and part.stat().st_size > before
            if not grown or attempt == _TRIES - 1:
                raise
    raise OSError(f"the transfer broke off {_TRIES} times")


def _request(url: str, part: Path, progress: bool) -> bool:
    """One request that appends to `part`; True if the file is whole then."""
    from tqdm import tqdm

    have = part.stat().st_size if part.is_file() else 0
    headers = {"User-Agent": "imgsearch", "Accept-Encoding": "identity"}
    if have:
        headers["Range"] = f"bytes={have}-"
    request = urllib.request.Request(url, headers=headers)
    with urllib.request.urlopen(request, timeout=_TIMEOUT) as answer:
        begins = re.match(r"bytes (\d+)-", answer.headers.get("Content-Range") or "")
        if answer.status != 206 or not begins or int(begins[1]) != have:
            have = 0  # the server gives the whole file
        left = answer.headers.get("Content-Length")
        total = have + int(left) if left and left.isdigit() else None
        if (total or 0) > _LIMIT:
            raise OSError(f"{total:,} bytes are announced (limit {_LIMIT:,})")
        with (
            part.open("r+b" if have else "wb") as file,
            tqdm(
                total=total, initial=have, desc=part.stem, unit="B", unit_scale=True,
                disable=not progress,
            ) as bar,
        ):  # fmt: skip
            file.seek(have)
            while block := answer.read(_BLOCK):
                file.write(block)
                bar.update(len(block))
                have += len(block)
                if have > _LIMIT:
                    raise OSError(f"more than {_LIMIT:,} bytes came")
            file.flush()
            os.fsync(file.fileno())
    return total is None or have == total


def _length(content_range: str | None) -> int | None:
    match = re.search(r"/(\d+)$", content_range or "")
    return int(match[1]) if match else None


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_state(path: Path) -> dict[str, torch.Tensor]:
    """Tensors of a weights file, by name, as float32 on the CPU. Runs no code from it.

    Parameters
    ----------
    path : Path
        ``.safetensors``, or what ``torch.save`` made of a state dict (also inside a
        checkpoint, under ``state_dict`` or ``model``).

    Returns
    -------
    dict of str to torch.Tensor
        Without the classifier (``fc.*``) and counters of training.

    Raises
    ------
    WeightsError
        The file is damaged, holds anything but finite tensors, or would run code.
    """
    import torch

    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            loaded = load_file(path)
        else:
            loaded = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch, pickle, zipfile and safetensors each have their own
        text = str(error)
        if "Weights only load failed" in text:
            reason = "is damaged or holds more than tensors; reading it could run code: refused"
        else:
            reason = f"cannot be read: {' '.join(text.split())[:120] or type(error).__name__}"
        raise WeightsError(str(path), reason) from None
    for wrapper in ("state_dict", "model"):
        if isinstance(loaded, dict) and isinstance(loaded.get(wrapper), dict):
            loaded = loaded[wrapper]
    if not isinstance(loaded, dict) or not loaded:
        raise WeightsError(str(path), "holds no state dict")
    state = {}
    for key, value in loaded.items():
        if not isinstance(key, str) or not isinstance(value, torch.Tensor):
            raise WeightsError(str(path), f"{key!r} is no tensor; a state dict is wanted")
        name = key.removeprefix("module.")
        if name.startswith("fc.") or name.endswith("num_batches_tracked"):
            continue
        if value.is_sparse or value.is_quantized or not value.is_floating_point():
            raise WeightsError(str(path), f"{key} has type {value.dtype}; floats are wanted")
        state[name] = value.to(torch.float32).contiguous()
        if not torch.isfinite(state[name]).all():
            raise WeightsError(str(path), f"{key} holds NaN or infinity")
    return state


def fit(module: torch.nn.Module, state: dict[str, torch.Tensor], name: str) -> None:
    """Put weights into a network, if they are exactly its own.

    Parameters
    ----------
    module : torch.nn.Module
        May be on the meta device; takes over the tensors.
    state : dict of str to torch.Tensor
        From :func:`read_state`.
    name : str
        What an error is to name.

    Raises
    ------
    WeightsError
        Names are missing or left over, or shapes differ; shows the first of them.
    """
    wanted = {
        key: tuple(value.shape)
        for key, value in module.state_dict().items()
        if not key.endswith("num_batches_tracked")
    }
    given = {key: tuple(value.shape) for key, value in state.items()}
    wrong = {
        "missing": [key for key in wanted if key not in given],
        "not of this network": [key for key in given if key not in wanted],
        "of another shape": [
            f"{key} {given[key]} instead of {shape}"
            for key, shape in wanted.items()
            if key in given and given[key] != shape
        ],
    }
    parts = [
        f"{len(keys)} {what} ({', '.join(keys[:3])}{', …' if len(keys) > 3 else ''})"
        for what, keys in wrong.items()
        if keys
    ]
    if parts:
        raise WeightsError(name, "; ".join(parts) + ". Is the file of another network?")
    module.load_state_dict(state, strict=False, assign=True)


def digest(state: dict[str, torch.Tensor]) -> str:
    """SHA-256 of the weights themselves, the same whatever file they came in.

    Parameters
    ----------
    state : dict of str to torch.Tensor
        float32, on the CPU.

    Returns
    -------
    str
        64 hex digits, over name, shape and little-endian bytes of each tensor,
        sorted by name.
    """
    total = hashlib.sha256()
    for key in sorted(state):
        values = state[key].detach().contiguous().numpy().astype("<f4", copy=False)
        total.update(f"{key} {values.shape}\n".encode())
        total.update(values.tobytes() if values.ndim == 0 else memoryview(values).cast("B"))
    return total.hexdigest()
