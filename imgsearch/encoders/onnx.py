"""Any network as an ONNX file: data, not code. A JSON card beside it describes it."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from imgsearch.encoders.backends import (
    OpenVinoRunner,
    check_openvino,
    cpu_has_bf16,
    openvino_installed,
    with_normalisation,
)
from imgsearch.encoders.base import (
    NOT_STATED,
    Model,
    Plan,
    Preprocessing,
    Runner,
    sample_pictures,
    short,
)
from imgsearch.encoders.weights import file_digest
from imgsearch.errors import ConfigError, EncoderError, WeightsError


class Card(BaseModel):
    """The JSON file beside a model: what goes in and what comes out."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    name: Annotated[str, Field(min_length=1, max_length=100)]
    dim: Annotated[int, Field(ge=1, le=32_768)]
    resize: Annotated[int, Field(ge=1, le=4096)]
    crop: Annotated[int, Field(ge=1, le=4096)]
    interpolation: Literal["bilinear", "bicubic", "lanczos"] = "bilinear"
    mean: Annotated[list[float], Field(min_length=3, max_length=3)]
    std: Annotated[list[Annotated[float, Field(gt=0)]], Field(min_length=3, max_length=3)]
    license: Annotated[str, Field(min_length=1, max_length=100)] = NOT_STATED

    def preprocessing(self) -> Preprocessing:
        """Return what the card says of the pictures."""
        return Preprocessing(
            self.resize, self.crop, self.interpolation, tuple(self.mean), tuple(self.std)
        )


@dataclass
class OnnxModel(Model):
    """A path that ends in ``.onnx``."""

    path: Path = Path()

    backends = ("openvino", "onnxruntime")

    @classmethod
    def load(cls, name: str, weights: str | None, home: Path) -> OnnxModel:
        """Read the card, and run the model once to see that it is what the card describes."""
        path = Path(name)
        if path.suffix == ".pt2":
            onnx = path.with_suffix(".onnx").name
            raise EncoderError(
                name,
                "torch programs are not read; convert a file that you trust to ONNX, with the "
                f"same JSON card:\n  program = torch.export.load({path.name!r})\n"
                f"  torch.onnx.export(program, f={onnx!r}, external_data=False)\n"
                "(needs: pip install onnxscript)",
            )
        if weights is not None:
            raise ConfigError("weights", "leave it out: an ONNX file has its own")
        card, preprocessing = read_card(path)
        return cls(card.name, card.dim, preprocessing, model_digest(path), name=name, path=path)

    @classmethod
    def license_of(cls, name: str) -> str:
        """Licence that the card states."""
        return read_card(Path(name))[0].license

    @classmethod
    def plan(cls, device: str, precision: str, backend: str) -> Plan:
        """Choose for each ``auto``: OpenVINO on the CPU, onnxruntime with CUDA and in fp32."""
        if device == "auto":
            device = "cuda:0" if cuda_provided() and backend != "openvino" else "cpu"
        if device == "mps":
            raise ConfigError("device", "ONNX files run on cpu or cuda, not on mps")
        if device.startswith("cuda") and not cuda_provided():
            raise ConfigError("device", "ONNX files run on cuda with: pip install onnxruntime-gpu")
        device = "cuda:0" if device == "cuda" else device
        plain = "openvino" if device == "cpu" and openvino_installed() else "onnxruntime"
        runs_on = plain if backend == "auto" else backend
        if backend == "openvino":
            check_openvino(device)
        if backend == "onnxruntime" and find_spec("onnxruntime") is None:
            raise ConfigError("backend", "onnxruntime is not installed: pip install onnxruntime")
        if runs_on == "onnxruntime" and precision not in ("auto", "fp32"):
            raise ConfigError("precision", f"onnxruntime runs in fp32, not in {precision}")
        lower = "bf16" if runs_on == "openvino" and cpu_has_bf16() else "fp32"
        return Plan.make(device, precision, lower, backend, plain)

    def runner(self, device: str, precision: str, backend: str) -> Runner:
        """Make what runs the model, and run it once to see that it is what the card describes."""
        run = self._openvino(precision) if backend == "openvino" else OnnxRuntime(self, device)
        self.batch = run.batch
        wanted = self.batch or 1, self.dim
        try:
            shape = run(sample_pictures(self.preprocessing.size, wanted[0])).shape
        except Exception as error:  # those of onnxruntime have no common base
            raise EncoderError(self.name, f"does not run: {short(error)}") from None
        if shape != wanted:
            reason = f"gives an output of shape {shape}, not (n, {self.dim}) as its JSON card says"
            raise EncoderError(self.name, reason)
        return run

    def _openvino(self, precision: str) -> OpenVinoRunner:
        import openvino

        try:
            graph = openvino.Core().read_model(self.path)
            inputs = [list(each.get_partial_shape()) for each in graph.inputs]
            fixed = [[None if d.is_dynamic else d.get_length() for d in each] for each in inputs]
            batch = check_input(self, fixed)
            graph.reshape([batch or -1, 3, *self.preprocessing.size])
            return OpenVinoRunner(with_normalisation(graph, self.preprocessing), precision)
        except RuntimeError as error:
            raise EncoderError(self.name, f"OpenVINO cannot run it: {short(error)}") from None


class OnnxRuntime:
    """Runs an ONNX file with onnxruntime, on the CPU or with CUDA."""

    precision = "fp32"

    def __init__(self, model: OnnxModel, device: str):
        try:
            import onnxruntime
        except ImportError:
            raise EncoderError(
                model.name,
                "ONNX files need OpenVINO (pip install 'imgsearch[openvino]'), or on a GPU "
                "onnxruntime-gpu",
            ) from None
        provider: Any = "CPUExecutionProvider"
        if device.startswith("cuda"):
            provider = "CUDAExecutionProvider", {"device_id": int(device.partition(":")[2])}
        try:
            self._session = onnxruntime.InferenceSession(model.path, providers=[provider])
        except Exception as error:  # its errors have no common base
            raise EncoderError(model.name, f"onnxruntime cannot run it: {short(error)}") from None
        inputs = self._session.get_inputs()
        self.batch = check_input(
            model, [[d if isinstance(d, int) else None for d in i.shape] for i in inputs]
        )
        self._input = inputs[0].name
        mean, std = np.array(model.preprocessing.mean), np.array(model.preprocessing.std)
        self._scale, self._shift = np.float32(1 / (255 * std)), np.float32(mean / std)

    def __call__(self, batch: np.ndarray) -> np.ndarray:
        """Compute the features of a batch."""
        x = (batch * self._scale - self._shift).transpose(0, 3, 1, 2)
        return self._session.run(None, {self._input: np.ascontiguousarray(x)})[0].astype(np.float32)


def cuda_provided() -> bool:
    """Whether onnxruntime is installed and built for CUDA."""
    if find_spec("onnxruntime") is None:
        return False
    import onnxruntime

    return "CUDAExecutionProvider" in onnxruntime.get_available_providers()


def check_input(model: OnnxModel, shapes: list[list[int | None]]) -> int:
    """Check that a model has one input, of the card's size; return its batch, 0 for any."""
    wanted = (3, *model.preprocessing.size)
    if len(shapes) != 1 or len(shapes[0]) != 4:
        raise EncoderError(model.name, "must have one input of shape (n, 3, height, width)")
    (batch, *sides) = shapes[0]
    if any(side not in (None, want) for side, want in zip(sides, wanted, strict=True)):
        raise EncoderError(model.name, f"its input is {sides}, and its JSON card says {wanted}")
    return batch or 0


def read_card(path: Path) -> tuple[Card, Preprocessing]:
    """Read the JSON card beside a model."""
    file = path.with_suffix(".json")
    if not path.is_file():
        raise WeightsError(str(path), "no such file")
    try:
        card = Card.model_validate_json(file.read_bytes())
        return card, card.preprocessing()
    except OSError as error:
        raise WeightsError(
            str(path), f"needs its JSON card beside it: {file.name}: {error.strerror}"
        ) from None
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(map(str, first["loc"]))
        raise WeightsError(str(file), f"{where}: {first['msg']}".lstrip(": ")) from None
    except ValueError as error:
        raise WeightsError(str(file), str(error)) from None


def model_digest(path: Path) -> str:
    """SHA-256 of a model and of the files in its folder that hold its weights, if any do."""
    # Both libraries that run it refuse weights outside that folder.
    total = hashlib.sha256(data := path.read_bytes())
    # Protocol Buffers: key and value of an entry of TensorProto.external_data
    places = re.findall(rb"\x0a\x08location\x12([\x01-\x7f])(.{0,127})", data, re.DOTALL)
    for name in sorted({text[: length[0]].decode(errors="replace") for length, text in places}):
        if (path.parent / name).is_file():
            total.update(f"{name} {file_digest(path.parent / name)}\n".encode())
    return total.hexdigest()
