"""Settings that may differ when a run, its folds or a sweep is resumed: their fields say so.

A field of a Config, or of anything in it, has `metadata={"resume": "free"}` where another value
changes nothing that is trained, or another check covers it; "local" where it belongs to the machine
or the process, so that a resume does not take the saved value either. All others are compared.
"""

import dataclasses

import numpy as np

from dlflax import train
from dlflax.run.config import Config
from dlflax.run.serialize import flat

CHECKSUMS = "sha256", "weights_sha256"  # in "data" of `folder.settings`


def freedom(kind: type, name: str) -> str | None:
    """Returns "free" or "local" for such a field of a dataclass, else None. A field that overrides
    one of a parent keeps its metadata, unless it has its own."""
    for parent in kind.__mro__:
        field = vars(parent).get("__dataclass_fields__", {}).get(name)
        if field is not None and "resume" in field.metadata:
            word = field.metadata["resume"]
            return word if word in ("free", "local") else None
    return None


def differences(saved: dict, new: dict, config) -> str:
    """Returns in words what differs between saved settings and those of `config`, as
    `folder.settings` gives both; "" if nothing but what may."""
    was, now = (
        flat(
            _without_free(settings["config"], config)
            | {name: settings["data"].get(name) for name in CHECKSUMS}
        )
        for settings in (saved, new)
    )
    return "; ".join(
        f"{name} was {was.get(name)!r}, now {now.get(name)!r}"
        for name in sorted({*was, *now})
        if was.get(name) != now.get(name)
    )


def _without_free(saved, thing):
    """Returns the JSON of a dataclass, or of a tuple of them, without the fields that may differ.
    thing: such a dataclass, whose class says which these are."""
    if isinstance(saved, list) and isinstance(thing, tuple):
        # where one is longer, they differ anyway
        return [*map(_without_free, saved, thing), *saved[len(thing) :]]
    if not isinstance(saved, dict) or not dataclasses.is_dataclass(thing):
        return saved
    return {
        name: _without_free(value, getattr(thing, name, None))
        for name, value in saved.items()
        if not freedom(type(thing), name)
    }


def more_epochs_change_the_past(config: Config, epochs: int, steps_per_epoch: int) -> bool:
    """True if the learning rates of the steps in `epochs` epochs would have been others with
    config.epochs in all than with `epochs`."""
    steps = np.arange(epochs * steps_per_epoch, dtype=np.float32)

    def rates(total):
        numbers = config.hparams.replace(total_steps=float(total * steps_per_epoch))
        numbers = train.as_float32(numbers)  # float32, as in training: a file may have any number
        rates = config.recipe.schedule(steps, numbers)
        return np.broadcast_to(np.asarray(rates), steps.shape)

    return not np.array_equal(rates(epochs), rates(config.epochs))
