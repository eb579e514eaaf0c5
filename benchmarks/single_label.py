"""Measure an encoder on images of one class each: leave-one-out, cosine, full depth.

    python benchmarks/single_label.py VOC_ROOT --encoder mini
    python benchmarks/single_label.py VOC_ROOT --encoder resnet50 --classes cat cow dog
    python benchmarks/single_label.py VOC_ROOT --vectors features.npz

Takes the images all of whose objects are of one of the classes. `--set` chooses an
image set; without it every annotated image counts, also those that are in no set of
`Main` (their annotations may be incomplete). An .npz holds `names` and `vectors`.
"""

from __future__ import annotations

import argparse
import hashlib
import json
from pathlib import Path

import numpy as np

from imgsearch.datasets.voc import Voc
from imgsearch.evaluation import scoring

ANIMALS = ("cat", "cow", "dog", "horse", "sheep")


def encoded(name: str, paths: list[Path]) -> np.ndarray:
    from imgsearch.encoders import load_encoder

    encoder = load_encoder(name)
    return np.concatenate([encoder.encode(paths[i : i + 32]) for i in range(0, len(paths), 32)])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("voc_root")
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--encoder", help="a name, or the path of an ONNX file")
    source.add_argument("--vectors", help="an .npz with names and vectors")
    parser.add_argument("--classes", nargs="+", default=ANIMALS)
    parser.add_argument("--set", help="image set, such as trainval")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    voc = Voc(arguments.voc_root)
    images = voc.image_set(arguments.set) if arguments.set else sorted(voc.annotated())
    names = voc.single_label(images, arguments.classes)
    files = voc.image_files()
    paths = [files[name] for name in names]
    if arguments.encoder:
        vectors = encoded(arguments.encoder, paths)
    else:
        with np.load(arguments.vectors) as archive:
            known = dict(zip(archive["names"].tolist(), archive["vectors"], strict=True))
        vectors = np.stack([known[name] for name in names])
    ids = [int(hashlib.sha256(path.read_bytes()).hexdigest()[:16], 16) >> 1 for path in paths]
    task = scoring.task(
        np.array(ids), vectors, *voc.labels(names), classes=voc.classes, names=names
    )
    found = scoring.evaluate(task, ks=(1, 5, 10), seed=arguments.seed)
    control = scoring.evaluate(task.permuted(arguments.seed), ks=(1, 5, 10))

    def figure(value) -> dict:
        kept = ("value", "low", "high", "baseline", "queries")
        return {key: round(part, 4) for key, part in value._asdict().items() if key in kept}

    report = {
        "encoder": arguments.encoder or arguments.vectors,
        "images": len(names),
        "micro": {f.metric: figure(f) for f in found.summary() if f.average == "micro"},
        "classes_mAP": {f.average: figure(f) for f in found.per_class()},
        "permuted_labels_mAP": figure(control.summary()[0]),
    }
    print(json.dumps(report, indent=1))


if __name__ == "__main__":
    main()
