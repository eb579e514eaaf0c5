"""Models of timm, with the preprocessing that each declares."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from imgsearch.encoders import weights as files
from imgsearch.encoders.backends import TorchModel, import_extra
from imgsearch.encoders.base import NOT_STATED, Preprocessing, short
from imgsearch.errors import EncoderError


class TimmModel(TorchModel):
    """``timm:NAME``."""

    @classmethod
    def load(cls, name: str, weights: str | None, home: Path) -> TimmModel:
        """Let timm make the network without its classifier, and measure its output."""
        timm, kind = import_extra(name, "timm", "timm"), name.removeprefix("timm:")
        try:
            network = timm.create_model(kind, pretrained=weights is None, num_classes=0).eval()
        except Exception as error:  # an unknown name, no connection, a damaged download
            raise EncoderError(name, f"timm cannot make it: {short(error)}") from None
        if weights is not None:
            state = files.state_of(network, name, weights, home)
            heads = network.default_cfg.get("classifier") or "fc"
            heads = (heads,) if isinstance(heads, str) else tuple(heads)
            state = {k: v for k, v in state.items() if k.rpartition(".")[0] not in heads}
            files.load_state(network, state, weights)
        preprocessing = preprocessing_of(name, timm.data.resolve_model_data_config(network))
        digest = files.digest(files.floats(network))
        return cls.of_network(name, network, preprocessing, sha256=digest)

    @classmethod
    def license_of(cls, name: str) -> str:
        """Licence that timm states for the published weights."""
        timm = import_extra(name, "timm", "timm")
        return timm.get_pretrained_cfg(name.removeprefix("timm:")).license or NOT_STATED


def preprocessing_of(name: str, config: dict[str, Any]) -> Preprocessing:
    """Return the preprocessing of a timm data configuration, as timm evaluates with it."""
    channels, *size = config["input_size"]
    resize = tuple(math.floor(side / config["crop_pct"]) for side in size)
    if channels != 3:
        raise EncoderError(name, f"takes {channels} channels; pictures have 3")
    square = size[0] == size[1]
    try:
        return Preprocessing(
            resize[0] if square else resize,
            size[0] if square else tuple(size),
            config["interpolation"],
            tuple(config["mean"]),
            tuple(config["std"]),
            config["crop_mode"],
        )
    except ValueError as error:
        raise EncoderError(name, f"its preprocessing cannot be reproduced: {error}") from None
