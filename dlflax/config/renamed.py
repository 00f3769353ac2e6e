"""Old names of fields, and so of flags: both are refused with the new name."""

import re
from collections.abc import Collection

# A field of Config, a sweep, a data source or Transfer by its name; a field of hparams or of the
# model after "hparams." or "model."; a value of a flag after the flag and a space.
RENAMED = {
    "validation": "val_split",
    "log": "logger",
    "reduce_on_plateau": "plateau_patience",
    "shard_state": "fsdp",
    "data_dir": "data",
    "task by_target": "auto",
    # images
    "size": "image_size",
    "test": "test_split",
    "labels": "labels_csv",
    "views": "num_views",
    "head_epochs": "freeze_epochs",
    "self_contained": "save_backbone",
    "finetune all": "full",
    # texts
    "length": "max_length",
    "vocabulary": "vocab_size",
    "vectors": "embeddings",
    # tables
    "target_kind": "target_type",
    "ignore": "drop_columns",
    "bins": "num_bins",
    # series
    "column": "target",
    "period": "seasonality",
    "tail": "test_split",
    # sweeps
    "tolerance": "min_improvement",
    "population": "population_size",
    "seeds": "num_seeds",
    "rank cautious": "pessimistic",
    "mode": "population_map",
    "ensemble": "ensemble_size",
    "retrain_on_all": "refit_full",
    # models
    "model.depth": "convs_per_stage",
    "model.dropout_on": "dropout_after",
    "model.formulation": "implementation",
    "model.embedding": "embedding_dim",
    "model.code": "latent_dim",
    "model.width": "hidden_dim",
    "model.heads": "num_heads",
    "model.mlp": "mlp_dim",
    "model.patch": "patch_size",
    # hparams
    "hparams.backbone_rate": "backbone_lr_scale",
    "hparams.warmup": "warmup_fraction",
    "hparams.translate": "translate_pixels",
    "hparams.rotate": "rotate_degrees",
    "hparams.zoom": "zoom_fraction",
    "hparams.crop": "crop_pixels",
    "hparams.flip": "flip_probability",
    "hparams.cutout": "cutout_fraction",
    "hparams.mixup": "mixup_alpha",
    "hparams.cutmix": "cutmix_alpha",
    "hparams.noise": "noise_std",
}
REPLACED = {  # a flag of sweeps that has no single new name: what replaces it
    "--prune": "use --search halving --reduction-factor N",
    "--slice": "use --search freeze-thaw --epochs-per-round N",
    "--heartbeat": "workers are started by --launcher and --workers",
}
LAST_COMMIT = "472e8ce"  # before these names


def new_flag(flag: str) -> str | None:
    """Returns the new name of a flag, --val-split for --validation; None if it was not renamed."""
    dashes, path = re.fullmatch(r"(?s)(-*(?:no-)?)(.*)", flag).groups()
    prefix, _, name = path.replace("-", "_").rpartition(".")
    group = prefix.removeprefix("space").lstrip(".")
    for key in [f"{group}.{name}"] if group else [name, f"hparams.{name}"]:
        if key in RENAMED:
            return f"{dashes}{prefix}{'.' * bool(prefix)}{RENAMED[key].replace('_', '-')}"
    return None


def new_value(value: str, choices: Collection[str]) -> str | None:
    """Returns the new name of a flag's value, one of its choices; None if it was not renamed."""
    new = (RENAMED[key] for key in RENAMED if key.endswith(f" {value}"))
    return next((name for name in new if name in choices), None)


def describe_old_field(names, group: str = "", valid=None) -> str:
    """Returns the sentence that refuses a saved file with an old field; "" if it has none.

    names: fields of one object in it; group: "hparams", "model" or another slot of the Config;
    valid: names of the fields that its class has now."""
    for name in names:
        new = RENAMED.get(f"{group}.{name}" if group in ("hparams", "model") else name)
        if new and (valid is None or new in valid):
            return (
                f"was saved with the field {name}, now {new}: start a new run, or read this one "
                f"with commit {LAST_COMMIT} of this project."
            )
    return ""
