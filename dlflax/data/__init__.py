"""Where examples come from (`load`) and the order they are trained in (`split`, `order`)."""

from dlflax.data.order import epoch_batches, order, split
from dlflax.data.sources import Dataset, cache_folder, load

__all__ = ["Dataset", "cache_folder", "epoch_batches", "load", "order", "split"]
