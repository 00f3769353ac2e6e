"""Presets of data sets that stand in for a data set that cannot be downloaded.

Only loading shows whether data stand in, and flags override either preset. So `run.parse` applies
the flags to both presets, and the Config holds the field values of the other one.
"""

import dataclasses
import re
from collections.abc import Callable, Mapping
from typing import Any

from dlflax.config.config import Config
from dlflax.config.resume import resume_policy
from dlflax.config.serialize import flatten, to_json
from dlflax.data import Dataset

SHARED = "data", "given", "stand_ins", "folds"  # fields that are equal for both presets
MODULES = re.compile(r"[\w.]+:|[()',]")  # modules of classes, and punctuation of lists


def stand_in_presets(presets: Mapping[str, Config], config: Config) -> dict[str, Config]:
    """Returns the presets that are named after another data set and have the architecture of the
    config."""
    default = vars(presets["default"].data).get("dataset")
    return {
        name: preset for name, preset in presets.items()
        if name == vars(preset.data).get("dataset") != default
        and type(preset.recipe.model) is type(config.recipe.model)
    }  # fmt: skip


def changes(config: Config, other: Config) -> dict[str, Any]:
    """Returns the field values of `other` that differ from the config's."""
    names = [field.name for field in dataclasses.fields(Config) if field.name not in SHARED]
    names = [name for name in names if not resume_policy(Config, name)]
    values = {name: getattr(other, name) for name in names}
    return {name: value for name, value in values.items() if value != getattr(config, name)}


def apply_stand_in(config: Config, dataset: Dataset, log: Callable[[str], None]) -> Config:
    """Returns the Config, with values of another preset if the Dataset stands in for the requested
    one. It then names the loaded data, so that a resumed run reads them."""
    requested = vars(config.data).get("dataset")
    if not dataset.stands_in_for or dataset.stands_in_for != requested:
        return config
    preset = config.stand_ins.get(dataset.name, {})
    new = dataclasses.replace(config, **preset, stand_ins={})
    before, after = flatten(to_json(config)), flatten(to_json(new))
    values = {name: value for name, value in after.items() if value != before.get(name)}
    if values:
        text = ", ".join(
            f"{name.removesuffix('.class').rpartition('.')[2]} {re.sub(MODULES, '', str(value))}"
            for name, value in values.items()
        )
        log(f"note: {dataset.name} stand in for {requested}, so defaults are those of --preset "
            f"{dataset.name}: {text} (--preset default has those of {requested})")  # fmt: skip
    return dataclasses.replace(new, data=dataclasses.replace(config.data, dataset=dataset.name))
