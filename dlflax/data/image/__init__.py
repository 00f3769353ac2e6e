"""Images: the sources Images and ImageFolder, the encoder, decoding, duplicates."""

from dlflax.data.image.folder import ImageFolder
from dlflax.data.image.source import Images

__all__ = ["ImageFolder", "Images"]
