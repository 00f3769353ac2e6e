"""Sources of examples, their encoders, splits and order. `dataset.Source` and `encoder.Encoder`
are the contracts."""

from dlflax.data.arrays import Arrays
from dlflax.data.dataset import Dataset, Source, Splits, make_splits, num_examples, read_dataset
from dlflax.data.encoder import (
    BASE64,
    DiskArray,
    Encoder,
    Examples,
    Form,
    Limits,
    Plain,
    Spec,
    TooMuch,
    Upload,
    as_upload,
    join,
)
from dlflax.data.image.folder import ImageFolder
from dlflax.data.image.source import Images, load
from dlflax.data.order import epoch_batches, order, split
from dlflax.data.series import Series, SeriesEncoder
from dlflax.data.splits import ByContent, ByTime, Given, Share
from dlflax.data.table import Table
from dlflax.data.target import Classes, Labels, Nothing, Numbers, Steps, Target
from dlflax.data.text import Text

__all__ = [
    "Arrays", "BASE64", "ByContent", "ByTime", "Classes", "Dataset", "DiskArray", "Encoder",
    "Examples", "Form", "Given", "ImageFolder", "Images", "Labels", "Limits", "Nothing", "Numbers",
    "Plain", "Series", "SeriesEncoder", "Share", "Source", "Spec", "Splits", "Steps", "Table",
    "Target", "Text", "TooMuch", "Upload", "as_upload", "epoch_batches", "join", "load",
    "make_splits", "num_examples", "order", "read_dataset", "split",
]  # fmt: skip
