"""Networks: ResNet in torch, and exported torch programs read without running their code.

The ResNet has the state-dict names that torchvision and timm share, so that the weights
of either load unchanged. An exported program (``.pt2``) is interpreted here node by node:
torch's own loader unpickles, evaluates expressions and compiles code out of the file.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import operator
import re
from io import BytesIO
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from torch import nn
from torch.nn import functional

from imgsearch.errors import EncoderError, WeightsError

LAYERS = {
    "resnet18": ("basic", (2, 2, 2, 2)),
    "resnet34": ("basic", (3, 4, 6, 3)),
    "resnet50": ("bottleneck", (3, 4, 6, 3)),
    "resnet101": ("bottleneck", (3, 4, 23, 3)),
    "resnet152": ("bottleneck", (3, 8, 36, 3)),
}
"""Kind of block and number of blocks in the four stages (He et al. 2015, table 1)."""


class _Basic(nn.Module):
    expansion = 1

    def __init__(self, inputs: int, width: int, stride: int):
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, width, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.downsample = _shortcut(inputs, width, stride)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        shortcut = x if self.downsample is None else self.downsample(x)
        x = functional.relu(self.bn1(self.conv1(x)), inplace=True)
        x = self.bn2(self.conv2(x))
        return functional.relu(x + shortcut, inplace=True)


class _Bottleneck(nn.Module):
    # the stride is on the 3 x 3 convolution ("v1.5"), as in torchvision and timm
    expansion = 4

    def __init__(self, inputs: int, width: int, stride: int):
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, width, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, 4 * width, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(4 * width)
        self.downsample = _shortcut(inputs, 4 * width, stride)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        shortcut = x if self.downsample is None else self.downsample(x)
        x = functional.relu(self.bn1(self.conv1(x)), inplace=True)
        x = functional.relu(self.bn2(self.conv2(x)), inplace=True)
        x = self.bn3(self.conv3(x))
        return functional.relu(x + shortcut, inplace=True)


def _shortcut(inputs: int, outputs: int, stride: int) -> nn.Sequential | None:
    if stride == 1 and inputs == outputs:
        return None
    return nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))


class ResNet(nn.Module):
    """ResNet without its classifier: images in, average-pooled features out.

    Parameters
    ----------
    name : str
        A key of `LAYERS`.

    Attributes
    ----------
    dim : int
        Length of the features: 512 for 18 and 34 layers, else 2048.
    """

    def __init__(self, name: str):
        super().__init__()
        kind, counts = LAYERS[name]
        block = {"basic": _Basic, "bottleneck": _Bottleneck}[kind]
        self.conv1 = nn.Conv2d(3, 64, 7, 2, 3, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        inputs = 64
        for stage, count in enumerate(counts):
            width = 64 * 2**stage
            blocks = []
            for index in range(count):
                blocks.append(block(inputs, width, 2 if stage and not index else 1))
                inputs = width * block.expansion
            setattr(self, f"layer{stage + 1}", nn.Sequential(*blocks))
        self.dim = inputs

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Features of normalised images.

        Parameters
        ----------
        x : torch.Tensor
            float (n, 3, height, width).

        Returns
        -------
        torch.Tensor
            float (n, dim), not normalised.
        """
        x = functional.relu(self.bn1(self.conv1(x)), inplace=True)
        x = functional.max_pool2d(x, 3, 2, 1)
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        return x.mean((2, 3))


def resnet(name: str) -> ResNet:
    """Build a ResNet that has no weights yet (on the meta device: see ``weights.fit``).

    Parameters
    ----------
    name : str
        ``resnet18``, ``resnet34``, ``resnet50``, ``resnet101`` or ``resnet152``.

    Returns
    -------
    ResNet
        In eval mode.
    """
    with torch.device("meta"):
        return ResNet(name).eval()


def random_state(network: nn.Module, seed: int) -> dict[str, torch.Tensor]:
    """Random weights for a network, the same for the same seed; for tests and benchmarks.

    Parameters
    ----------
    network : torch.nn.Module
        May be on the meta device.
    seed : int

    Returns
    -------
    dict of str to torch.Tensor
        float32. Convolutions are scaled to keep the variance (He et al. 2015); batch norms
        have means and variances that are not trivial, so that folding them is put to the test.
    """
    source = torch.Generator().manual_seed(seed)
    state = {}
    for key, value in network.state_dict().items():
        if key.endswith("num_batches_tracked"):
            continue
        noise = torch.randn(value.shape, generator=source)
        if value.ndim > 1:
            state[key] = noise * (2 / value[0].numel()) ** 0.5
        elif key.endswith("running_var"):
            state[key] = 1 + 0.2 * noise.clamp(-2, 2)
        elif key.endswith("weight"):
            state[key] = 0.7 + 0.1 * noise
        else:
            state[key] = 0.1 * noise
    return state


def fuse_conv_bn(network: nn.Module) -> nn.Module:
    """Merge each batch norm of a network in eval mode into the convolution before it.

    Works on pairs that follow one another: ``convN`` and ``bnN`` of one module, and
    neighbours in a ``Sequential``.

    Parameters
    ----------
    network : torch.nn.Module
        In eval mode; is changed in place.

    Returns
    -------
    torch.nn.Module
        The same network.
    """
    from torch.nn.utils.fusion import fuse_conv_bn_eval

    for module in network.modules():
        children = dict(module.named_children())
        names = list(children)
        if isinstance(module, nn.Sequential):
            pairs = list(itertools.pairwise(names))
        else:
            pairs = [(name, name.replace("conv", "bn")) for name in names if "conv" in name]
        for first, second in pairs:
            conv, norm = children[first], children.get(second)
            if isinstance(conv, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d):
                setattr(module, first, fuse_conv_bn_eval(conv, norm))
                setattr(module, second, nn.Identity())
    return network


# --------------------------------------------------------------------------- exported programs


class Card(BaseModel):
    """The JSON file beside an exported program: what goes in and what comes out."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    name: Annotated[str, Field(min_length=1, max_length=100)]
    dim: Annotated[int, Field(ge=1, le=32_768)]
    resize: Annotated[int, Field(ge=1, le=4096)]
    crop: Annotated[int, Field(ge=1, le=4096)]
    interpolation: Literal["bilinear", "bicubic"] = "bilinear"
    mean: Annotated[list[float], Field(min_length=3, max_length=3)]
    std: Annotated[list[Annotated[float, Field(gt=0)]], Field(min_length=3, max_length=3)]

    @model_validator(mode="after")
    def _fits(self) -> Card:
        if self.crop > self.resize:
            raise ValueError(f"crop {self.crop} is larger than resize {self.resize}")
        return self


class Program(nn.Module):
    """An exported program, interpreted. Made by :func:`load_program`.

    Attributes
    ----------
    least, most : int
        Sizes of a batch that the program takes (equal where it was exported for one size).
    """

    def __init__(
        self,
        nodes: list[_Node],
        tensors: dict[str, torch.Tensor],
        entry: str,
        result: str,
        least: int,
        most: int,
    ):
        super().__init__()
        self.least, self.most = least, most
        self._nodes, self._entry, self._result = nodes, entry, result
        self._names = {name: f"tensor{index}" for index, name in enumerate(tensors)}
        for name, attribute in self._names.items():
            self.register_buffer(attribute, tensors[name], persistent=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Run the program.

        Parameters
        ----------
        x : torch.Tensor
            float32, shape ``(n, 3, crop, crop)``: normalised images.

        Returns
        -------
        torch.Tensor
            float32, shape ``(n, dim)``.
        """
        values: dict[str, Any] = {
            name: getattr(self, attribute) for name, attribute in self._names.items()
        }
        values[self._entry] = x
        for node in self._nodes:
            given = node.function(
                *[_value(part, values, x.device) for part in node.positional],
                **{key: _value(part, values, x.device) for key, part in node.named.items()},
            )
            if len(node.outputs) == 1:
                values[node.outputs[0]] = given
            else:
                values.update(zip(node.outputs, given, strict=True))
            for name in node.last_use:
                del values[name]
        return values[self._result]


class _Node(NamedTuple):
    function: Any
    positional: tuple[Any, ...]
    named: dict[str, Any]
    outputs: tuple[str, ...]
    last_use: tuple[str, ...]


class _Name(str):
    """A value of the program that another node made."""


class _Here:
    """The device that the program runs on, instead of the one it was exported on."""


def _value(part: Any, values: dict[str, Any], device: torch.device) -> Any:
    if isinstance(part, _Name):
        return values[part]
    if isinstance(part, list):
        return [_value(each, values, device) for each in part]
    return device if part is _Here else part


# torch._export.serde.schema: numbers that stand for types in the file
_TYPES = {
    1: torch.uint8, 2: torch.int8, 3: torch.int16, 4: torch.int32, 5: torch.int64,
    6: torch.float16, 7: torch.float32, 8: torch.float64, 12: torch.bool, 13: torch.bfloat16,
}  # fmt: skip
_FORMATS = {1: torch.contiguous_format, 2: torch.channels_last, 4: torch.preserve_format}
_SCALARS = {
    f"_operator.{function.__name__}": function
    for function in (
        operator.add, operator.sub, operator.mul, operator.floordiv, operator.truediv,
        operator.mod, operator.neg, operator.pow, operator.getitem,
        operator.eq, operator.ne, operator.lt, operator.le, operator.gt, operator.ge,
    )
}  # fmt: skip
_OPERATOR = re.compile(r"torch\.ops\.aten\.([a-z0-9_]+)\.([A-Za-z0-9_]+)")
_REFUSED = {"from_file"}  # the one aten operator that opens files
_MAX_ARCHIVE = 4 * 2**30


class _Unsupported(Exception):
    """What a program needs that is not to be had here."""


def load_program(path: Path) -> tuple[Program, Card, str]:
    """Read an exported torch program and the JSON file beside it; no code of theirs runs.

    Parameters
    ----------
    path : Path
        A ``.pt2`` file as ``torch.export.save`` writes it (torch 2.8 or newer), with a
        ``.json`` of the same name beside it: fields of `Card`.

    Returns
    -------
    program : Program
        In float (n, 3, crop, crop), out float (n, dim).
    card : Card
    sha256 : str
        Of the program's file.

    Raises
    ------
    WeightsError
        A file is missing, damaged, or holds what would have to be unpickled.
    EncoderError
        The program uses what is not supported, or does not fit its JSON file.
    """
    card = _card(path.with_suffix(".json"))
    try:
        if path.stat().st_size > _MAX_ARCHIVE:
            raise WeightsError(str(path), f"larger than {_MAX_ARCHIVE:,} bytes")
        data = path.read_bytes()
    except OSError as error:
        raise WeightsError(str(path), f"cannot be read: {error.strerror}") from None
    try:
        program = _program(data, card)
    except _Unsupported as error:
        raise EncoderError(str(path), f"the exported program {error}") from None
    except (WeightsError, EncoderError):
        raise
    except Exception as error:
        words = " ".join(str(error).split())[:120]
        raise WeightsError(
            str(path), f"is no exported program that can be read ({type(error).__name__}: {words})"
        ) from None
    return program, card, hashlib.sha256(data).hexdigest()


def _card(path: Path) -> Card:
    try:
        text = path.read_bytes()
    except OSError as error:
        raise WeightsError(
            str(path), f"cannot be read ({error.strerror}); an exported program needs it beside it"
        ) from None
    try:
        return Card.model_validate_json(text)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False, include_input=False)[0]
        where = ".".join(map(str, first["loc"])) or "the file"
        raise WeightsError(str(path), f"{where}: {first['msg']}") from None


def _program(data: bytes, card: Card) -> Program:
    archive = torch._C.PyTorchFileReader(BytesIO(data))
    records = set(archive.get_all_records())
    models = [name for name in records if re.fullmatch(r"models/[^/]+\.json", name)]
    if len(models) != 1:
        raise _Unsupported(f"has {len(models)} models; one is wanted")
    model = models[0].removeprefix("models/").removesuffix(".json")
    module = json.loads(archive.get_record(models[0]))["graph_module"]
    ranges = json.loads(archive.get_record(models[0]))["range_constraints"]
    graph, signature = module["graph"], module["signature"]

    stored: dict[str, torch.Tensor] = {}
    for kind in ("weights", "constants"):
        config = f"data/{kind}/model_{kind}_config.json".replace("model_", f"{model}_")
        stored |= _payload(archive, f"data/{kind}/", json.loads(archive.get_record(config)))

    entries, tensors = [], {}
    for spec in signature["input_specs"]:
        ((kind, given),) = spec.items()
        if kind == "user_input":
            entries.append(given["arg"]["as_tensor"]["name"])
        elif kind in ("parameter", "buffer", "tensor_constant"):
            tensors[given["arg"]["name"]] = stored[given[f"{kind}_name"]]
        else:
            raise _Unsupported(f"takes an input of kind {kind}")
    results = [spec.get("user_output", {}).get("arg", {}) for spec in signature["output_specs"]]
    if len(entries) != 1 or len(results) != 1 or "as_tensor" not in results[0]:
        raise _Unsupported("must take one tensor, give one tensor and change nothing else")
    entry, result = entries[0], results[0]["as_tensor"]["name"]

    shape = graph["tensor_values"][entry]["sizes"]
    if [size.get("as_int") for size in shape[1:]] != [3, card.crop, card.crop]:
        raise _Unsupported(f"does not take pictures of {card.crop} x {card.crop} as its JSON says")
    if graph["tensor_values"][entry]["dtype"] != 7:
        raise _Unsupported("does not take float32")
    given = graph["tensor_values"][result]["sizes"]
    if len(given) != 2 or given[1].get("as_int") != card.dim:
        raise _Unsupported(f"does not give vectors of {card.dim} numbers as its JSON says")
    least, most = _batch(shape[0], ranges)
    return Program(
        _nodes(graph["nodes"], result, set(tensors)), tensors, entry, result, least, most
    )


def _batch(size: dict[str, Any], ranges: dict[str, dict[str, int | None]]) -> tuple[int, int]:
    if "as_int" in size:
        return size["as_int"], size["as_int"]
    symbol = re.search(r"\b[su]\d+\b", size["as_expr"]["expr_str"])
    limits = ranges.get(symbol[0], {}) if symbol else {}
    return max(1, limits.get("min_val") or 1), min(2**16, limits.get("max_val") or 2**16)


def _payload(archive: Any, folder: str, config: dict[str, Any]) -> dict[str, torch.Tensor]:
    tensors = {}
    for name, entry in config["config"].items():
        meta = entry["tensor_meta"]
        if entry["use_pickle"] or meta is None:
            raise WeightsError(
                name, "is stored as a pickle, and reading it could run code: refused"
            )
        if meta["layout"] != 7:
            raise _Unsupported(f"stores {name} in a layout that is not plain")
        kind = _TYPES[meta["dtype"]]
        raw = archive.get_record(folder + entry["path_name"])
        flat = torch.frombuffer(bytearray(raw), dtype=kind) if raw else torch.empty(0, dtype=kind)
        numbers = [[part["as_int"] for part in meta[key]] for key in ("sizes", "strides")]
        tensors[name] = torch.as_strided(flat, *numbers, meta["storage_offset"]["as_int"])
    return tensors


def _nodes(raw: list[dict[str, Any]], result: str, kept: set[str]) -> list[_Node]:
    nodes, used = [], {result} | kept
    for node in reversed(raw):
        positional, named, needs = [], {}, set()
        for given in node["inputs"]:
            value = _argument(given["arg"], needs)
            if given.get("kind") == 2:
                named[given["name"]] = value
            else:
                positional.append(value)
        outputs = tuple(_output(each) for each in node["outputs"])
        if len(outputs) == 1 and isinstance(outputs[0], tuple):
            outputs = outputs[0]
        function = _function(node["target"])
        fresh = tuple(sorted((needs | set(outputs)) - used))
        used |= needs | set(outputs)
        nodes.append(_Node(function, tuple(positional), named, outputs, fresh))
    return nodes[::-1]


def _function(target: str) -> Any:
    match = _OPERATOR.fullmatch(target)
    if match and match[1] not in _REFUSED:
        found = getattr(getattr(torch.ops.aten, match[1], None), match[2], None)
        if isinstance(found, torch._ops.OpOverload):
            return found
    if target in _SCALARS:
        return _SCALARS[target]
    raise _Unsupported(f"calls {target[:80]}, which is not supported")


def _output(output: dict[str, Any]) -> Any:
    ((kind, value),) = output.items()
    if kind == "as_tensor":
        return value["name"]
    if kind == "as_tensors":
        return tuple(each["name"] for each in value)
    if kind in ("as_sym_int", "as_sym_bool", "as_sym_float"):
        return value["as_name"]
    if kind == "as_none":
        return "nothing"
    raise _Unsupported(f"has an output of kind {kind}")


def _argument(argument: dict[str, Any], needs: set[str]) -> Any:
    ((kind, value),) = argument.items()

    def named(name: str) -> _Name:
        needs.add(name)
        return _Name(name)

    def symbol(each: dict[str, Any]) -> Any:
        return named(each["as_name"]) if "as_name" in each else next(iter(each.values()))

    if kind == "as_none":
        return None
    if kind == "as_tensor":
        return named(value["name"])
    if kind == "as_tensors":
        return [named(each["name"]) for each in value]
    if kind in ("as_optional_tensors", "as_optional_tensor"):
        many = [_argument(each, needs) for each in (value if kind[-1] == "s" else [value])]
        return many if kind[-1] == "s" else many[0]
    if kind in ("as_int", "as_ints", "as_float", "as_floats", "as_bool", "as_bools", "as_string"):
        return value
    if kind in ("as_sym_int", "as_sym_bool", "as_sym_float"):
        return symbol(value)
    if kind in ("as_sym_ints", "as_sym_bools", "as_sym_floats"):
        return [symbol(each) for each in value]
    if kind == "as_scalar_type":
        return _TYPES[value]
    if kind == "as_memory_format":
        return _FORMATS[value]
    if kind == "as_layout" and value == 7:
        return torch.strided
    if kind == "as_device":
        return _Here
    raise _Unsupported(f"has an argument of kind {kind}")
