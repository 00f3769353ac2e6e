"""Comparison of the settings of a resumed run, cross-validation or sweep with the saved ones.

A field of a Config, or of a dataclass in it, has `metadata={"resume": "free"}` if it may differ,
because it has no effect on training or another check covers it. "local" fields, of the machine or
process, may differ too, and their saved values are not restored. All others are compared.
"""

import dataclasses

import numpy as np

from dlflax import train
from dlflax.config.config import Config
from dlflax.config.serialize import flatten

CHECKSUMS = "sha256", "weights_sha256"  # in "data" of `run_folder.settings`


def resume_policy(kind: type, name: str) -> str | None:
    """Returns "free", "local" or None for a field of a dataclass, inherited from its parents."""
    for parent in kind.__mro__:
        field = vars(parent).get("__dataclass_fields__", {}).get(name)
        if field is not None and "resume" in field.metadata:
            policy = field.metadata["resume"]
            return policy if policy in ("free", "local") else None
    return None


def differences(saved: dict, new: dict, config) -> str:
    """Returns the differences of two `run_folder.settings` in words, without fields that may
    differ."""
    was, now = (
        flatten(
            _drop_free(settings["config"], config)
            | {name: settings["data"].get(name) for name in CHECKSUMS}
        )
        for settings in (saved, new)
    )
    return "; ".join(
        f"{name} was {was.get(name)!r}, now {now.get(name)!r}"
        for name in sorted({*was, *now})
        if was.get(name) != now.get(name)
    )


def _drop_free(saved, value):
    """Drops fields that may differ from the JSON of `value`, a dataclass or a tuple of these."""
    if isinstance(saved, list) and isinstance(value, tuple):
        # lists of unequal lengths differ anyway
        return [*map(_drop_free, saved, value), *saved[len(value) :]]
    if not isinstance(saved, dict) or not dataclasses.is_dataclass(value):
        return saved
    return {
        name: _drop_free(inner, getattr(value, name, None))
        for name, inner in saved.items()
        if not resume_policy(type(value), name)
    }


def changes_past_rates(config: Config, epochs: int, steps_per_epoch: int) -> bool:
    """True if config.epochs, instead of `epochs`, changes learning rates of finished steps."""
    steps = np.arange(epochs * steps_per_epoch, dtype=np.float32)

    def rates(total):
        hparams = config.hparams.replace(total_steps=float(total * steps_per_epoch))
        rates = config.recipe.schedule(steps, train.as_float32(hparams))  # float32 as in training
        return np.broadcast_to(np.asarray(rates), steps.shape)

    return not np.array_equal(rates(epochs), rates(config.epochs))
