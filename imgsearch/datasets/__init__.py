"""Labelled datasets."""

from imgsearch.datasets.voc import Voc

__all__ = ["Voc"]
