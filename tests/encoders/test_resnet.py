"""Networks: ResNet as torchvision has it, exported programs read without running their code."""

from __future__ import annotations

import io
import json
import shutil
import zipfile

import pytest
import torch
from torch import nn

from imgsearch.encoders import resnet, weights
from imgsearch.errors import EncoderError, WeightsError
from tests.conftest import CARD
from tests.helpers import load_torchvision


def rewritten(exported, tmp_path, change):
    """A copy of tiny.pt2 whose records `change` (a function of name and bytes) has gone over."""
    source = exported[0] / "tiny.pt2"
    target = tmp_path / "tiny.pt2"
    shutil.copy(source.with_suffix(".json"), tmp_path)
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w") as new:
        for info in old.infolist():
            body = change(info.filename.split("/", 1)[1], old.read(info))
            if body is not None:
                new.writestr(info.filename, body)
    return target


def model(change):
    """Change the program's JSON by a function of it."""

    def apply(name, body):
        if name != "models/model.json":
            return body
        content = json.loads(body)
        change(content)
        return json.dumps(content)

    return apply


# ---------------------------------------------------------------- ResNet


@pytest.mark.parametrize("name", ["resnet18", "resnet50"])
def test_folding_batch_norms_changes_nothing(name):
    network = resnet.resnet(name)
    weights.fit(network, resnet.random_state(network, 1), name)
    x = torch.randn(2, 3, 64, 64)
    with torch.inference_mode():
        plain = network(x)
        folded = resnet.fuse_conv_bn(network)(x)
    assert plain.shape == (2, network.dim) == (2, 512 if name == "resnet18" else 2048)
    assert not any(isinstance(module, nn.BatchNorm2d) for module in network.modules())
    assert torch.allclose(plain, folded, atol=1e-5, rtol=1e-4)


def test_random_weights_depend_on_the_seed_alone():
    network = resnet.resnet("resnet18")
    digests = [weights.digest(resnet.random_state(network, seed)) for seed in (1, 1, 2)]
    assert digests[0] == digests[1] != digests[2]


def torchvision_models():
    try:
        load_torchvision()
    except ImportError:
        pytest.skip(
            "torchvision is missing: pip install --no-deps torchvision, if it fits this torch"
        )
    from torchvision import models

    return models


@pytest.mark.parametrize("name", ["resnet18", "resnet50"])
def test_resnet_is_that_of_torchvision(name):
    theirs = getattr(torchvision_models(), name)()
    network = resnet.resnet(name)
    state = resnet.random_state(network, 2)
    wrong = theirs.load_state_dict(state, strict=False)
    assert wrong.unexpected_keys == []
    assert set(wrong.missing_keys) == {"fc.weight", "fc.bias"}
    weights.fit(network, state, name)
    theirs.fc = nn.Identity()
    x = torch.randn(2, 3, 224, 224)
    with torch.inference_mode():
        assert torch.allclose(network(x), theirs.eval()(x), atol=1e-5, rtol=0)


# ---------------------------------------------------------------- exported programs


@pytest.mark.parametrize("name", ["tiny", "fixed"])
def test_program_gives_what_its_module_gave(exported, name):
    folder, network = exported
    program, card, sha256 = resnet.load_program(folder / f"{name}.pt2")
    assert (card.dim, len(sha256)) == (6, 64)
    assert (program.least, program.most) == ((1, 100) if name == "tiny" else (3, 3))
    for n in (1, 3, 7) if name == "tiny" else (3,):
        x = torch.randn(n, 3, 16, 16)
        with torch.inference_mode():
            assert torch.allclose(program(x), network(x), atol=1e-5)


def test_real_program_gives_what_torch_gives(shared):
    path = shared / "weights" / "mobilenet_v2.pt2"
    program, card, _ = resnet.load_program(path)
    x = torch.randn(2, 3, 224, 224)
    with torch.inference_mode():
        expected = torch.export.load(path).module()(x)
        assert torch.allclose(program(x), expected, atol=1e-4, rtol=1e-4)
    assert expected.shape == (2, card.dim)


class Evil:
    """Creates a file when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (open, (str(self.path), "w"))


def test_pickles_in_a_program_are_never_read(exported, tmp_path):
    trace = tmp_path / "it ran"
    evil = io.BytesIO()
    torch.save(Evil(trace), evil)

    def poisoned(name, body):  # torch.export.load would run this
        return evil.getvalue() if name == "data/sample_inputs/model.pt" else body

    path = rewritten(exported, tmp_path, poisoned)
    resnet.load_program(path)
    assert not trace.exists()

    def weight(name, body):
        if name == "data/weights/model_weights_config.json":
            content = json.loads(body)
            next(iter(content["config"].values()))["use_pickle"] = True
            return json.dumps(content)
        return evil.getvalue() if name == "data/weights/weight_0" else body

    with pytest.raises(WeightsError, match="pickle"):
        resnet.load_program(rewritten(exported, tmp_path, weight))
    assert not trace.exists()


def test_code_in_a_program_is_never_run(exported, tmp_path):
    trace = tmp_path / "it ran"
    code = f"open({str(trace)!r}, 'w')"

    def change(content):
        content["guards_code"] = [code]
        content["graph_module"]["module_call_graph"] = code
        graph = content["graph_module"]["graph"]
        for value in graph["tensor_values"].values():
            for size in value["sizes"]:
                if "as_expr" in size:
                    size["as_expr"]["expr_str"] += f" + {code}"

    program, _, _ = resnet.load_program(rewritten(exported, tmp_path, model(change)))
    program(torch.randn(2, 3, 16, 16))
    assert not trace.exists()


@pytest.mark.parametrize(
    "target",
    [
        "torch.os.system",
        "torch.load",
        "torch.ops.aten.from_file.default",
        "torch.ops.aten.relu",
        "torch.ops.aten.__class__.default",
        "_operator.attrgetter",
        "os.system",
        "torch.ops.higher_order.cond",
    ],
)
def test_only_tensor_operators_are_called(exported, tmp_path, target):
    def change(content):
        content["graph_module"]["graph"]["nodes"][0]["target"] = target

    with pytest.raises(EncoderError, match="not supported"):
        resnet.load_program(rewritten(exported, tmp_path, model(change)))


def test_damaged_programs_are_refused(exported, tmp_path):
    data = (exported[0] / "tiny.pt2").read_bytes()
    path = tmp_path / "tiny.pt2"
    shutil.copy(exported[0] / "tiny.json", tmp_path)
    for part in (b"", data[: len(data) // 2], b"PK\3\4" + data[4:60]):
        path.write_bytes(part)
        with pytest.raises(WeightsError, match=r"cannot be read|no exported program"):
            resnet.load_program(path)
    with pytest.raises(WeightsError, match="no exported program"):
        resnet.load_program(
            rewritten(exported, tmp_path, lambda name, body: None if "weight_0" in name else body)
        )
    path.unlink()
    with pytest.raises(WeightsError, match="cannot be read"):
        resnet.load_program(path)


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (None, "needs it beside it"),
        ("{", "Invalid JSON"),
        ({"dim": "6"}, "dim: "),
        ({"mean": [0.5, 0.5]}, "mean: "),
        ({"std": [0.5, 0.5, 0.0]}, r"std.2: "),
        ({"crop": 300}, "larger than resize"),
        ({"url": "x"}, "url: Extra"),
        ({"interpolation": "nearest"}, "interpolation: "),
    ],
)
def test_the_json_is_checked(exported, tmp_path, change, why):
    path = shutil.copy(exported[0] / "tiny.pt2", tmp_path / "tiny.pt2")
    if change is not None:
        text = change if isinstance(change, str) else json.dumps(CARD | change)
        path.with_suffix(".json").write_text(text)
    with pytest.raises(WeightsError, match=why):
        resnet.load_program(path)


@pytest.mark.parametrize("change", [{"dim": 7}, {"crop": 15}])
def test_a_json_of_another_program_is_refused(exported, tmp_path, change):
    path = shutil.copy(exported[0] / "tiny.pt2", tmp_path / "tiny.pt2")
    path.with_suffix(".json").write_text(json.dumps(CARD | change))
    with pytest.raises(EncoderError, match="as its JSON says"):
        resnet.load_program(path)
