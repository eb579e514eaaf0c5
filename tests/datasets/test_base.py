"""The interface of datasets, with the smallest one that can be evaluated."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from imgsearch.datasets import Dataset
from imgsearch.errors import DatasetError


class Table(Dataset):
    """Labels in a dictionary, all images in one set."""

    root = Path("/data/table")
    classes = ("cat", "dog")

    def __init__(self, rows: dict[str, str]):
        self.rows = rows

    def image_sets(self) -> list[str]:
        return ["every"]

    def image_set(self, name: str) -> tuple[str, ...]:
        return tuple(self.rows)

    def image_files(self) -> dict[str, Path]:
        return {name: self.root / f"{name}.jpg" for name in self.rows}

    def annotated(self) -> frozenset[str]:
        return frozenset(self.rows)

    def labels(self, names: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        present = np.array([[c in self.rows[name] for c in self.classes] for name in names])
        difficult = np.array(
            [[f"({c})" in self.rows[name] for c in self.classes] for name in names]
        )
        return present & ~difficult, difficult


def test_images_of_one_class_are_selected():
    table = Table({"a": "cat", "b": "cat dog", "c": "dog", "d": "cat (dog)", "e": "(dog)"})
    assert table.single_label(tuple("abcde"), ["cat", "dog"]) == ("a", "c")
    assert table.single_label(tuple("edcba"), ["dog"]) == ("c",)
    with pytest.raises(DatasetError, match="has no class 'cow'; its classes: cat, dog"):
        table.single_label(("a",), ["cow"])


def test_a_dataset_must_have_every_method():
    with pytest.raises(TypeError, match="labels"):
        Dataset()
