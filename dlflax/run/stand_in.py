"""Data that stand in for those asked for: the preset of their name replaces the default one.

Whether data stand in is known when they are loaded; flags that were given hold with either preset.
So `run.parse` reads the flags over both, and a Config holds what the other preset would change.
"""

import dataclasses
import re
from collections.abc import Callable, Mapping
from typing import Any

from dlflax.data import Dataset
from dlflax.run.config import Config
from dlflax.run.resume import freedom
from dlflax.run.serialize import flat, to_json

SAME = "data", "given", "stand_ins", "folds"  # whatever the preset
MODULES = re.compile(r"[\w.]+:|[()',]")  # of classes, and what is around lists


def stand_in_presets(presets: Mapping[str, Config], config: Config) -> dict[str, Config]:
    """Returns the presets of the config's architecture that have the name of their data set, if it
    is not the default's."""
    asked = vars(presets["default"].data).get("dataset")
    return {
        name: preset for name, preset in presets.items()
        if name == vars(preset.data).get("dataset") != asked
        and type(preset.recipe.model) is type(config.recipe.model)
    }  # fmt: skip


def changes(config: Config, other: Config) -> dict[str, Any]:
    """Returns the fields of `other` that the config has with other values."""
    names = [field.name for field in dataclasses.fields(Config) if field.name not in SAME]
    names = [name for name in names if not freedom(Config, name)]
    values = {name: getattr(other, name) for name in names}
    return {name: value for name, value in values.items() if value != getattr(config, name)}


def with_stand_in(config: Config, dataset: Dataset, log: Callable[[str], None]) -> Config:
    """Returns the Config for a Dataset that may stand in for the one asked for. It names the data
    that were loaded, so that a resumed run reads the same; `log` gets what it changes."""
    asked = vars(config.data).get("dataset")
    if not dataset.stands_in_for or dataset.stands_in_for != asked:
        return config
    preset = config.stand_ins.get(dataset.name, {})
    new = dataclasses.replace(config, **preset, stand_ins={})
    before, after = flat(to_json(config)), flat(to_json(new))
    values = {name: value for name, value in after.items() if value != before.get(name)}
    if values:
        text = ", ".join(
            f"{name.removesuffix('.class').rpartition('.')[2]} {re.sub(MODULES, '', str(value))}"
            for name, value in values.items()
        )
        log(f"note: {dataset.name} stand in for {asked}, so what no flag says is that of --preset "
            f"{dataset.name}: {text} (--preset default keeps that of {asked})")  # fmt: skip
    return dataclasses.replace(new, data=dataclasses.replace(config.data, dataset=dataset.name))
