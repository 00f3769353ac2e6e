"""Where examples come from, and their order in training. `dataset.Source` is the contract."""

from dlflax.data.arrays import Arrays
from dlflax.data.dataset import Dataset, DiskArray, Raw, Source, Splits, examples
from dlflax.data.folder import ImageFolder
from dlflax.data.images import Images, load
from dlflax.data.order import epoch_batches, order, split
from dlflax.data.series import Series
from dlflax.data.table import Table
from dlflax.data.text import Text

__all__ = [
    "Arrays", "Dataset", "DiskArray", "ImageFolder", "Images", "Raw", "Series", "Source", "Splits",
    "Table", "Text",
    "epoch_batches", "examples", "load", "order", "split",
]  # fmt: skip
