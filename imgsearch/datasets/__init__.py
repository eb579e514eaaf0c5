"""Labelled datasets."""

from imgsearch.datasets.base import Dataset
from imgsearch.datasets.voc import Voc

__all__ = ["Dataset", "Voc"]
