"""The registry of encoders: one entry for each name, or for each form of name."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable
from functools import cache, partial
from importlib.metadata import entry_points
from typing import TYPE_CHECKING, Any, NamedTuple

from imgsearch.errors import ConfigError, EncoderError

if TYPE_CHECKING:
    from imgsearch.encoders.base import Encoder

GROUP = "imgsearch.encoders"


class Entry(NamedTuple):
    """A registered encoder.

    Attributes
    ----------
    name : str
        What a user types: ``resnet50``, or a form such as ``timm:NAME``.
    pattern : str
        Regular expression that the whole name must match.
    model : str or callable
        Where its class is, ``"module:class"``; imported when an encoder is loaded. The class
        is a subclass of :class:`imgsearch.encoders.base.Model`. Or a function without
        parameters that returns the :class:`Encoder`.
    license : str or None
        Licence of the weights; None if that depends on the model.
    dim, input_size, download : int or None
        Length of the vectors, side of the network's input in pixels, and bytes that are
        downloaded the first time; None if that depends on the model, or if there is none.
    requires : str
        What must be installed; empty if nothing.
    purpose : str
        What it is good for, in one sentence for a menu.
    text : bool
        Whether it encodes text too.
    is_path : bool
        Whether the name is the path of a file.
    weights_setting : bool
        Whether ``IMGSEARCH_WEIGHTS`` names its weights.
    """

    name: str
    pattern: str
    model: str | Callable[[], Encoder]
    license: str | None = None
    dim: int | None = None
    input_size: int | None = None
    requires: str = ""
    download: int | None = None
    purpose: str = ""
    text: bool = False
    is_path: bool = False
    weights_setting: bool = False


class Entries(tuple):
    """Entries that a notebook shows as a table."""

    __slots__ = ()

    def _repr_html_(self) -> str:
        import pandas as pd

        hidden = ["pattern", "model", "is_path", "weights_setting"]
        table = pd.DataFrame(self, columns=Entry._fields, dtype=object).drop(columns=hidden)
        return table.fillna("").to_html(index=False)


_RESNETS = (
    ("resnet18", 512, 47_000_000, "The smallest ResNet; a fast baseline."),
    ("resnet34", 512, 87_000_000, "A ResNet between 18 and 50."),
    ("resnet50", 2048, 103_000_000, "The usual baseline of published comparisons."),
    ("resnet101", 2048, 179_000_000, "A deeper ResNet, at twice the cost of resnet50."),
    ("resnet152", 2048, 242_000_000, "The deepest ResNet, at three times the cost of resnet50."),
)
_TIMM = partial(
    Entry, model="imgsearch.encoders.timm:TimmModel", requires="pip install 'imgsearch[timm]'"
)
_CLIP = partial(
    Entry, model="imgsearch.encoders.open_clip:ClipModel", text=True,
    requires="pip install 'imgsearch[clip]'",
)  # fmt: skip

_entries: dict[str, Entry] = {
    entry.name: entry
    for entry in (
        Entry("mini", "mini", "imgsearch.encoders.mini:MiniModel", "Apache-2.0", 256, 160,
              purpose="Small, fast on a CPU and part of the package; good for a first look, and "
              "for text queries of single words.", text=True),
        *(Entry(name, name, "imgsearch.encoders.resnet:ResNetModel", "BSD-3-Clause", dim, 224,
                download=size, purpose=purpose, weights_setting=True)
          for name, dim, size, purpose in _RESNETS),
        _CLIP("clip:PE-Core-B-16", r"clip:PE-Core-B-16", license="Apache-2.0", dim=1024,
              input_size=224, download=1_800_000_000,
              purpose="Searches by text and by image; the best choice for most collections."),
        _CLIP("clip:ViT-B-16-SigLIP2", r"clip:ViT-B-16-SigLIP2", license="Apache-2.0", dim=768,
              input_size=224, download=1_500_000_000,
              purpose="Searches by text in many languages and by image; needs transformers too."),
        _CLIP("clip:MobileCLIP2-S0", r"clip:MobileCLIP2-S0",
              license="apple-amlr (research only)", dim=512, input_size=256, download=300_000_000,
              purpose="The fastest text and image encoder on a CPU; for research only."),
        _CLIP("clip:NAME", r"clip:[\w.\-]+(/[\w.\-]+)?",
              purpose="Any model of open_clip, as NAME or NAME/WEIGHTS."),
        _TIMM("timm:vit_base_patch14_reg4_dinov2.lvd142m",
              r"timm:vit_base_patch14_reg4_dinov2\.lvd142m", license="Apache-2.0", dim=768,
              input_size=518, download=347_000_000,
              purpose="DINOv2: finds the same landmark, animal or object again."),
        _TIMM("timm:NAME", r"timm:[\w.\-]+",
              purpose="Any image model of timm, with its own preprocessing."),
        # .pt2 is matched to say how such a file is converted.
        Entry("FILE.onnx", r"(?s).+\.(onnx|pt2)", "imgsearch.encoders.onnx:OnnxModel",
              requires="pip install 'imgsearch[openvino]'", is_path=True,
              purpose="A network of your own, with a JSON card beside it."),
    )
}  # fmt: skip


def list_encoders() -> Entries:
    """Return every registered encoder, in the order of registration, for a notebook as a table."""
    _load_plugins()
    return Entries(_entries.values())


def register(target: Entry | Callable | None = None, **about: Any) -> Any:
    """Add an encoder to the registry, or replace the one of the same name.

    A function is registered as a decorator, ``@register(name="mine", version="1")``, or by a
    call, ``register(function, name="mine", version="1")``. A package registers its encoders by
    an entry point of the group ``imgsearch.encoders`` that names a module which calls this.

    Parameters
    ----------
    target : Entry or callable
        A callable is described by :func:`from_callable`. The pattern of an entry is tried
        after those of the entries before it.
    **about
        Parameters of :func:`from_callable` where `target` is a callable.

    Returns
    -------
    Entry or callable
        `target`, so that it serves as a decorator.
    """
    if target is None:
        return partial(register, **about)
    if isinstance(target, Entry):
        _entries[target.name] = target
    else:
        entry_of(target, **about)
    return target


def entry_of(function: Callable, **about: Any) -> Entry:
    """Entry of a function, which is registered if it is not yet, or if `about` is given."""
    for entry in _entries.values():
        if not about and isinstance(entry.model, partial) and entry.model.args == (function,):
            return entry
    from imgsearch.encoders.functions import from_callable, identify

    name, version = identify(function, about.get("name"), about.get("version", "0"))
    for entry in _entries.values():
        if not callable(entry.model) and re.fullmatch(entry.pattern, name):
            raise ConfigError("name", f"{name!r} already refers to {entry.name}; choose another")
    _entries[name] = Entry(
        f"{name}@{version}", f"{re.escape(name)}(@{re.escape(version)})?",
        partial(from_callable, function, **about), about.get("license", "not stated"),
        purpose=(function.__doc__ or "A function.").partition("\n")[0],
    )  # fmt: skip
    return _entries[name]


def resolve(name: str) -> tuple[Entry, str, str | None]:
    """Find the entry of a name, and separate the name from the weights that follow an ``@``."""
    _load_plugins()
    plain, _, weights = name.partition("@")
    for entry in _entries.values():
        if callable(entry.model) and re.fullmatch(entry.pattern, name):
            return entry, entry.name, None
        if entry.is_path and re.fullmatch(entry.pattern, name):
            return entry, name, None
        if isinstance(entry.model, str) and re.fullmatch(entry.pattern, plain):
            return entry, plain, weights or None
    known = ", ".join(entry.name for entry in _entries.values())
    raise EncoderError(
        name,
        f"is unknown; known are {known}. A function of your own must be registered in each "
        f"session: imgsearch.encoders.register(function, name={plain!r}, "
        f"version={weights or '0'!r})",
    )


@cache
def _load_plugins() -> None:
    """Import what installed packages declare as encoders, once."""
    for point in entry_points(group=GROUP):
        try:
            point.load()
        except Exception as error:  # of a package that is not ours
            log = logging.getLogger(__name__)
            log.warning("encoders of %s cannot be loaded: %s", point.value, error)
