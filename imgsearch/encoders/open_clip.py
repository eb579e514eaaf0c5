"""Models of open_clip: pictures and texts in one space, with the configuration of each model."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from imgsearch.encoders import weights as files
from imgsearch.encoders.backends import TorchModel, import_extra
from imgsearch.encoders.base import (
    NOT_STATED,
    Preprocessing,
    root_logger_unchanged,
    short,
)
from imgsearch.errors import EncoderError, WeightsError

# Licences of published weights, by MODEL/TAG, since open_clip does not state them.
LICENSES = {
    r"PE-Core-.*": "Apache-2.0",
    r"ViT-.*-SigLIP.*": "Apache-2.0",
    r"MobileCLIP2-.*": "apple-amlr (research only)",
    r".*-worldwide.*": "CC-BY-NC-4.0",
    r".*/(openai|laion2b|datacomp|commonpool).*": "MIT",
}
CROP_MODES = {"shortest": "center", "squash": "squash"}


@dataclass
class ClipModel(TorchModel):
    """``clip:NAME`` or ``clip:NAME/TAG``; the network is the image tower."""

    clip: nn.Module | None = None
    kind: str = ""

    text = True

    @classmethod
    def load(cls, name: str, weights: str | None, home: Path) -> ClipModel:
        """Let open_clip make both towers, and load the weights into them."""
        open_clip = import_extra(name, "open_clip", "clip")
        kind, _, tag = name.removeprefix("clip:").partition("/")
        tags = open_clip.list_pretrained_tags_by_model(kind)
        tag = tag or (tags[0] if len(tags) == 1 else "")
        if tag not in tags and (tag or weights is None):
            choices = ", ".join(f"clip:{kind}/{each}" for each in tags)
            raise EncoderError(name, f"has no such weights: {choices or 'see open_clip'}")
        published = open_clip.get_pretrained_cfg(kind, tag)
        seed = files.random_seed(weights)
        with root_logger_unchanged():
            try:
                if weights is None:
                    cache = str(home / "weights")
                    weights = open_clip.download_pretrained(published, cache_dir=cache)
                file = None if seed is not None else str(intact(files.locate(name, weights, home)))
                gelu = published.get("quick_gelu", False)
                clip = open_clip.create_model(kind, file, force_quick_gelu=gelu).eval()
            except WeightsError:
                raise
            except Exception as error:  # an unknown name, no connection, a file of another network
                raise EncoderError(name, f"open_clip cannot make it: {short(error)}") from None
        if seed is not None:
            files.load_state(clip, files.random_state(clip, seed), name)
        config = open_clip.get_model_preprocess_cfg(clip)
        config = config | published | {"size": config["size"]}
        return cls.of_network(
            name, clip.visual, preprocessing_of(name, config),
            sha256=files.digest(files.floats(clip)), clip=clip, kind=kind,
        )  # fmt: skip

    @classmethod
    def license_of(cls, name: str) -> str:
        """Licence of the published weights, as far as it is known here."""
        kind = name.removeprefix("clip:")
        return next(
            (text for form, text in LICENSES.items() if re.fullmatch(form, kind)), NOT_STATED
        )

    @property
    def identity(self) -> dict[str, Any]:
        """What the vectors mean; the weights are those of both towers."""
        config = import_extra(self.name, "open_clip", "clip").get_model_config(self.kind)[
            "text_cfg"
        ]
        keys = ("context_length", "vocab_size", "hf_tokenizer_name", "tokenizer_kwargs")
        return super().identity | {"text": {key: config[key] for key in keys if key in config}}

    @cached_property
    def tokenizer(self) -> Any:
        """What open_clip makes of the model's own configuration; some need a download."""
        open_clip = import_extra(self.name, "open_clip", "clip")
        try:
            with root_logger_unchanged():
                return open_clip.get_tokenizer(self.kind)
        except Exception as error:
            raise EncoderError(
                self.name,
                f"has a tokenizer that cannot be loaded ({short(error)}); many need: "
                "pip install transformers sentencepiece",
            ) from None

    def encode_text(self, texts: list[str]) -> np.ndarray:
        """Return features of texts, on the CPU in fp32."""
        with torch.inference_mode():
            return self.clip.encode_text(self.tokenizer(texts)).numpy()


def preprocessing_of(name: str, config: dict[str, Any]) -> Preprocessing:
    """Return the preprocessing of an open_clip configuration, as open_clip evaluates with it."""
    size = config["size"]
    size = size if isinstance(size, int) else size[0] if size[0] == size[1] else tuple(size)
    mode = CROP_MODES.get(config["resize_mode"], config["resize_mode"])
    mean, std = tuple(config["mean"]), tuple(config["std"])
    try:
        return Preprocessing(size, size, config["interpolation"], mean, std, mode)
    except ValueError as error:
        raise EncoderError(name, f"its preprocessing cannot be reproduced: {error}") from None


def intact(file: Path) -> Path:
    """Check a file that the hub's client keeps: a link to one whose name is its SHA-256."""
    blob = file.resolve()
    if re.fullmatch("[0-9a-f]{64}", blob.name) and files.file_digest(blob) != blob.name:
        raise WeightsError(str(file), f"is damaged: delete {blob} to download it again")
    return file
