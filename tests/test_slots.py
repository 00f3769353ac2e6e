"""The slots of a Recipe: one table for flags, search spaces and the reader of config.json."""

import dataclasses
import json
from pathlib import Path

import pytest

from dlflax import run, train
from dlflax.errors import InputError
from dlflax.models import MLP
from dlflax.train.augment import Flip
from dlflax.train.slots import SLOTS, components, replace_components, short_names
from dlflax.train.tasks import TASKS, Classification
from dlflax.tune.suggest.space import STRUCTURE

RECIPE = train.Recipe(MLP((4,)), augment=(Flip(),))
FIELDS = {field.name for field in dataclasses.fields(train.Recipe)}
SHIPPED = [(slot, name) for slot in SLOTS for name in SLOTS[slot].shipped]


def saved(recipe):
    return json.loads(json.dumps(run.to_json(run.Config(recipe))))


def read(config):
    return run.config_from_json(config, Path("folder"), run.Experiment("mnist")).recipe


def test_the_table_names_parts_of_a_recipe():
    assert SLOTS.keys() - FIELDS == {"loss"}
    assert set(STRUCTURE) - FIELDS == {"loss"} and len(set(STRUCTURE)) == len(STRUCTURE)
    for name, slot in SLOTS.items():
        assert slot.several == isinstance(getattr(RECIPE, name, None), tuple)
        assert slot.help or not slot.shipped


@pytest.mark.parametrize(("slot", "name"), SHIPPED)
def test_a_shipped_thing_is_chosen_saved_and_read(slot, name):
    names = (name,) if SLOTS[slot].several else name
    recipe = replace_components(RECIPE, {slot: names}, [])
    assert short_names(slot, recipe) == names
    assert read(saved(recipe)) == recipe
    assert replace_components(recipe, {slot: names}, []) is recipe


def test_what_a_recipe_has_stays_and_can_be_named_elsewhere():
    adam = train.Adam(b1=0.5)
    recipe = dataclasses.replace(RECIPE, optimizer=adam, augment=())
    assert replace_components(recipe, {"optimizer": "adam", "step": None}, []) is recipe
    assert replace_components(recipe, {"optimizer": "sgd"}, []).optimizer == train.SGD()
    assert replace_components(RECIPE, {"augment": ()}, []).augment == ()
    named = dataclasses.replace(RECIPE, optimizer=train.optim.gradient_transformation)
    assert (
        components("optimizer", [named])["gradient_transformation"]
        is train.optim.gradient_transformation
    )
    both = replace_components(RECIPE, {"loss": "huber", "task": "regression"}, [])
    assert (both.task.loss, type(both.task)) == (train.losses.Huber(), type(TASKS["regression"]))


def test_a_thing_in_the_slot_of_another_kind_is_refused():
    """By the number of arguments, or as no task."""
    for slot, name in SHIPPED:
        value = run.to_json(SLOTS[slot].shipped[name])
        for other in SLOTS:
            count = SLOTS[other].arguments.count(",")
            if slot == other or count and count == SLOTS[slot].arguments.count(","):
                continue
            config = saved(RECIPE)
            if other == "loss":
                config["recipe"]["task"]["loss"] = value
            else:
                config["recipe"][other] = [value] if SLOTS[other].several else value
            with pytest.raises(InputError, match="nothing was called"):
                read(config)


@pytest.mark.parametrize("slot", sorted({"model", *SLOTS} - {"loss"}))
def test_a_slot_that_is_gone_or_empty_is_refused(slot):
    config = saved(RECIPE)
    for value in (
        3,
        "Adam",
        [3],
        [None],
        {"class": None},
        {"b1": 0.5},
        *([] if slot == "step" else [None]),
    ):
        config["recipe"][slot] = value
        with pytest.raises(InputError):
            read(config)
    del config["recipe"][slot]
    with pytest.raises(InputError, match=slot):
        read(config)


def test_functions():
    step = dataclasses.replace(RECIPE, step=train.step)
    assert read(saved(step)).step is train.step and read(saved(RECIPE)).step is None
    for function in (train.fit, train.optim.warmup_and_progress, Classification):
        config = saved(RECIPE)
        name = f"{function.__module__}:{function.__name__}"
        config["recipe"]["task"] = {"function": name}
        with pytest.raises(InputError, match="is not a subclass of dlflax.train.tasks:Task"):
            read(config)
