"""ResNets are those of torchvision."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from imgsearch.encoders import resnet, weights


@pytest.mark.parametrize("name", ["resnet50"])
def test_fusing_batch_norms_changes_nothing(name):
    network = resnet.resnet(name)
    weights.load_state(network, weights.random_state(network, 1), name)
    x = torch.randn(2, 3, 64, 64)
    with torch.inference_mode():
        plain = network(x)
        folded = resnet.fuse_conv_bn(network)(x)
    assert plain.shape == (2, network.dim) == (2, 512 if name == "resnet18" else 2048)
    assert not any(isinstance(module, nn.BatchNorm2d) for module in network.modules())
    assert torch.allclose(plain, folded, atol=1e-5, rtol=1e-4)


def test_random_weights_depend_on_the_seed_alone():
    network = resnet.resnet("resnet18")
    digests = [weights.digest(weights.random_state(network, seed)) for seed in (1, 1, 2)]
    assert digests[0] == digests[1] != digests[2]


@pytest.mark.parametrize("name", ["resnet50", pytest.param("resnet18", marks=pytest.mark.soak)])
def test_resnet_is_that_of_torchvision(name, torchvision):
    theirs = getattr(torchvision.models, name)()
    network = resnet.resnet(name)
    state = weights.random_state(network, 2)
    wrong = theirs.load_state_dict(state, strict=False)
    assert wrong.unexpected_keys == []
    assert set(wrong.missing_keys) == {"fc.weight", "fc.bias"}
    weights.load_state(network, state, name)
    theirs.fc = nn.Identity()
    x = torch.randn(2, 3, 224, 224)
    with torch.inference_mode():
        assert torch.allclose(network(x), theirs.eval()(x), atol=1e-5, rtol=0)
