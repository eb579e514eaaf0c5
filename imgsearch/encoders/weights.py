"""Weights of a network: found, downloaded if need be, verified, never executed."""

from __future__ import annotations

import hashlib
import re
import shutil
from http.client import HTTPException
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.request import urlopen

from tqdm import tqdm

from imgsearch.encoders.base import short
from imgsearch.errors import WeightsError
from imgsearch.io import atomic

if TYPE_CHECKING:
    import torch

# torchvision's first ImageNet weights. PyTorch publishes the first 8 digits of each SHA-256 in
# the file's name; the full digests are recorded in several independent public projects.
PUBLISHED = {
    "resnet18": "f37072fd47e89c5e827621c5baffa7500819f7896bbacec160b1a16c560e07ec",
    "resnet34": "b627a593bcbe140c234610266fe4f8ae95ea42fc881d091c9b6052e6b1d0590f",
    "resnet50": "0676ba61b6795bbe1773cffd859882e5e297624d384b6993f7c9e683e722fb8a",
    "resnet101": "63fe2227b86e8f1f2063f43a75c84d195911b6a0eace650907dd3dc62dd49a0a",
    "resnet152": "394f9c45966e3651a89bbb78a48410a6755854ce4a5ab64927cf1c7247f85e58",
}
_OTHER = "Does the file belong to another network?"
SOURCE = "https://download.pytorch.org/models"
TIMEOUT = 60
"""Seconds without a byte after which a download has failed."""


def random_seed(weights: str | Path | None) -> int | None:
    """Return the seed of ``random:SEED``, None for anything else."""
    found = re.fullmatch(r"random:(\d{1,9})", str(weights))
    return int(found[1]) if found else None


def cached(name: str, home: Path) -> Path:
    """Where the weights of a published network are kept once they have been downloaded."""
    return home / "weights" / f"{name}-{PUBLISHED[name][:8]}.pth"


def locate(name: str, file: str | None, home: Path) -> Path:
    """Path of the weights of a published network: `file`, else a verified copy, downloaded once."""
    if file is not None:
        if not Path(file).is_file():
            raise WeightsError(file, "no such file; check IMGSEARCH_WEIGHTS or weights=")
        return Path(file)
    sha256, target = PUBLISHED[name], cached(name, home)
    if not target.is_file() or file_digest(target) != sha256:
        _download(f"{SOURCE}/{target.name}", target, sha256)
    return target


def _download(url: str, target: Path, sha256: str) -> None:
    try:
        with urlopen(url, timeout=TIMEOUT) as answer, atomic(target) as file:
            size = int(answer.headers.get("Content-Length", 0))
            with tqdm.wrapattr(file, "write", total=size, desc=target.name) as shown:
                shutil.copyfileobj(answer, shown)
            file.flush()
            if file_digest(Path(file.name)) != sha256:
                raise OSError(f"the downloaded file does not have the SHA-256 {sha256}")
    except (OSError, HTTPException) as error:
        raise WeightsError(
            target.name,
            f"cannot be downloaded from {url}: {short(error)}. Set IMGSEARCH_WEIGHTS to a local "
            f"file, copy the file to {target} from another machine, or use the encoder 'mini', "
            "which needs no download",
        ) from None


def file_digest(path: Path) -> str:
    """SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def state_of(network: torch.nn.Module, name: str, weights: str | None, home: Path) -> dict:
    """Weights of a file, of ``random:SEED``, or the published ones of `name`."""
    seed = random_seed(weights)
    if seed is not None:
        return random_state(network, seed)
    return read_state(locate(name, weights, home))


def read_state(path: Path) -> dict[str, torch.Tensor]:
    """Read the tensors of a weights file by name, as float32 on the CPU, without its classifier.

    It is ``.safetensors``, or a state dict that ``torch.save`` wrote, also in a checkpoint under
    ``state_dict`` or ``model``. No code from it is run.
    """
    import torch

    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            loaded = load_file(path)
        else:
            loaded = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch, pickle, zipfile and safetensors each have their own
        reason = f"cannot be read: {short(error)}"
        if "Weights only load failed" in str(error):
            reason = "is damaged or holds more than tensors; reading it could run code: refused"
        raise WeightsError(str(path), reason) from None
    for wrapper in ("state_dict", "model"):
        if isinstance(loaded, dict) and isinstance(loaded.get(wrapper), dict):
            loaded = loaded[wrapper]
    if not isinstance(loaded, dict) or not loaded:
        raise WeightsError(str(path), "holds no state dict")
    state = {}
    for key, value in loaded.items():
        if not isinstance(key, str) or not isinstance(value, torch.Tensor):
            raise WeightsError(str(path), f"{key!r} is not a tensor; a state dict is needed")
        name = key.removeprefix("module.")
        if name.startswith("fc.") or name.endswith("num_batches_tracked"):
            continue
        if value.is_sparse or value.is_quantized or not value.is_floating_point():
            raise WeightsError(str(path), f"{key} has type {value.dtype}; floats are needed")
        state[name] = value.to(torch.float32).contiguous()
        if not torch.isfinite(state[name]).all():
            raise WeightsError(str(path), f"{key} holds NaN or infinity")
    return state


def random_state(network: torch.nn.Module, seed: int) -> dict[str, torch.Tensor]:
    """Random weights for a network, the same for the same seed; for tests and benchmarks."""
    import torch

    source = torch.Generator().manual_seed(seed)
    state = {}
    for key, value in floats(network).items():
        noise = torch.randn(value.shape, generator=source)
        if value.ndim > 1:  # keeps the variance (He et al. 2015)
            state[key] = noise * (2 / value[0].numel()) ** 0.5
        elif key.endswith("running_var"):  # not trivial, so that fusing batch norms is tested
            state[key] = 1 + 0.2 * noise.clamp(-2, 2)
        elif key.endswith("weight"):
            state[key] = 0.7 + 0.1 * noise
        else:
            state[key] = 0.1 * noise
    return state


def floats(network: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Weights of a network, without its indices and counters."""
    state = network.state_dict()
    return {key: value.float() for key, value in state.items() if value.is_floating_point()}


def load_state(module: torch.nn.Module, state: dict[str, torch.Tensor], name: str) -> None:
    """Load weights into a network (on any device, also ``meta``), or tell why they do not fit."""
    try:
        missing, extra = module.load_state_dict(state, strict=False, assign=True)
    except RuntimeError as error:  # another shape
        raise WeightsError(name, f"{short(error)}. {_OTHER}") from None
    missing = sorted(floats(module).keys() & missing)
    if missing or extra:
        parts = [
            f"{len(keys)} {what} ({', '.join(keys[:3])}{', …' if len(keys) > 3 else ''})"
            for what, keys in (("missing", missing), ("not of this network", extra))
            if keys
        ]
        raise WeightsError(name, f"{'; '.join(parts)}. {_OTHER}")


def digest(state: dict[str, torch.Tensor]) -> str:
    """SHA-256 of the name, shape and little-endian float32 bytes of each tensor, sorted by name."""
    total = hashlib.sha256()
    for key in sorted(state):
        values = state[key].detach().contiguous().numpy().astype("<f4", copy=False)
        total.update(f"{key} {values.shape}\n".encode())
        total.update(values.tobytes() if values.ndim == 0 else memoryview(values).cast("B"))
    return total.hexdigest()
