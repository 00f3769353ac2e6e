"""Transfer learning: pretrained weights, fine-tuning, heads trained on cached features."""

from dlflax.transfer.backbone import (
    head_inputs,
    load_backbone,
    merge_backbone,
    read_variables,
    save_backbone,
    write_variables,
)
from dlflax.transfer.features import Features
from dlflax.transfer.start import Start, Transfer, check, prepare, start_hparams, trainable_recipe

__all__ = [
    "Features", "Start", "Transfer", "check", "head_inputs", "load_backbone", "merge_backbone",
    "prepare", "read_variables", "save_backbone", "start_hparams", "trainable_recipe",
    "write_variables",
]  # fmt: skip
