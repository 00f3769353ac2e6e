"""Transfer learning: pretrained weights, what of them is trained, features kept on disk."""

from dlflax.transfer.backbone import backbone, head_inputs, save, with_backbone
from dlflax.transfer.features import Features
from dlflax.transfer.prepare import (
    Start,
    Transfer,
    check,
    numbers_of_start,
    prepare,
    trained,
)

__all__ = [
    "Features", "Start", "Transfer", "backbone", "check", "head_inputs", "numbers_of_start",
    "prepare", "save", "trained", "with_backbone",
]  # fmt: skip
