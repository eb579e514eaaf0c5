"""imagededup's CNN path with this ResNet-50: images a second for a folder.

    PYTHONPATH=.peers python -m benchmarks.peer FOLDER

It encodes only: nothing is stored, and no file is remembered.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from tests.helpers import load_torchvision

WARM = 8  # files that are encoded before it counts


def main(folder: Path) -> None:
    load_torchvision()  # imagededup uses none of its compiled operators
    from imagededup.methods import CNN
    from imagededup.utils.models import CustomModel
    from torchvision import models, transforms

    from imgsearch.encoders import resnet, weights

    network = models.resnet50()
    state = weights.random_state(resnet.resnet("resnet50"), 0)
    network.load_state_dict(state, strict=False)  # without its classifier
    network.fc = torch.nn.Identity()
    published = transforms.Compose([
        transforms.Resize(256),
        transforms.CenterCrop(224),
        transforms.ToTensor(),
        transforms.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    ])  # fmt: skip
    encoder = CNN(verbose=False, model_config=CustomModel("resnet50", network.eval(), published))
    files = sorted(folder.iterdir())
    with TemporaryDirectory() as few:
        for path in files[:WARM]:
            (Path(few) / path.name).symlink_to(path.absolute())
        encoder.encode_images(few)
    start = time.perf_counter()
    vectors = encoder.encode_images(folder)
    print(len(vectors) / (time.perf_counter() - start))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
