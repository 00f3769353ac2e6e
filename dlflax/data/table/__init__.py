"""Tables: source, encoder, and the readers of files, cells and columns."""

from dlflax.data.table.source import Table

__all__ = ["Table"]
