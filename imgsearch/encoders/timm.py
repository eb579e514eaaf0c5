"""Models of timm, with the preprocessing that each declares."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch

from imgsearch.encoders import weights as files
from imgsearch.encoders.backends import TorchModel, short
from imgsearch.encoders.base import Preprocessing
from imgsearch.errors import EncoderError


class TimmModel(TorchModel):
    """``timm:NAME``."""

    @classmethod
    def load(cls, name: str, weights: str | None, home: Path) -> TimmModel:
        """Let timm make the network without its classifier, and measure its output."""
        try:
            import timm
        except Exception as error:  # torchvision breaks in many ways beside a torch not its own
            raise EncoderError(
                name, f"timm cannot be imported ({short(error)}): pip install 'imgsearch[timm]'"
            ) from None
        kind = name.removeprefix("timm:")
        try:
            network = timm.create_model(kind, pretrained=weights is None, num_classes=0).eval()
        except Exception as error:  # an unknown name, no connection, a damaged download
            raise EncoderError(name, f"timm cannot make it: {short(error)}") from None
        if weights is not None:
            seed = files.random_seed(weights)
            if seed is None:
                state = files.read_state(files.locate(name, weights, home))
            else:
                state = files.random_state(network, seed)
            heads = network.default_cfg.get("classifier") or "fc"
            heads = (heads,) if isinstance(heads, str) else tuple(heads)
            state = {k: v for k, v in state.items() if k.rpartition(".")[0] not in heads}
            files.load_state(network, state, weights)
        state = {k: v.float() for k, v in network.state_dict().items() if v.is_floating_point()}
        preprocessing = preprocessing_of(name, timm.data.resolve_model_data_config(network))
        # num_features is another number where a layer follows the pooling (MobileNetV3, HGNet).
        with torch.inference_mode():
            output = network(torch.zeros(1, 3, *preprocessing.size))
        if not isinstance(output, torch.Tensor) or output.ndim != 2:
            raise EncoderError(name, "does not give one vector for each picture; take another")
        return cls(
            f"{name}@{weights}" if weights else name, name, output.shape[1], preprocessing,
            files.digest(state), network=network,
        )  # fmt: skip


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
