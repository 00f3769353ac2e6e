"""Series: source, encoder, and the reader of their files."""

from dlflax.data.series.encoder import SeriesEncoder
from dlflax.data.series.source import Series

__all__ = ["Series", "SeriesEncoder"]
