"""Where examples come from (`Images`, `load`) and their order in training (`split`, `order`)."""

from dlflax.data.dataset import Dataset, Splits
from dlflax.data.folder import ImageFolder
from dlflax.data.order import epoch_batches, order, split
from dlflax.data.series import Series
from dlflax.data.sources import Images, cache_folder, load
from dlflax.data.text import Text

__all__ = [
    "Dataset", "ImageFolder", "Images", "Series", "Splits", "Text",
    "cache_folder", "epoch_batches", "load", "order", "split",
]  # fmt: skip
