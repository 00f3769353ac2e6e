"""Which settings may differ when a run, its folds or a sweep is resumed: field by field."""

import copy
import dataclasses
import json
from pathlib import Path

import pytest

import experiments
from dlflax import run, train
from dlflax.config.resume import differences
from dlflax.config.run_folder import check_version
from dlflax.config.serialize import to_json
from dlflax.data import Arrays, ImageFolder, Images, Series, Source, Table, Text
from dlflax.errors import InputError
from dlflax.models import MLP
from dlflax.train.augment import Flip
from dlflax.train.tasks import TASKS
from dlflax.tune import sweep_command
from dlflax.tune.finish import in_folder
from dlflax.tune.sweep_config import Sweep
from experiments import image_folder, mnist

CONFIG = run.Config(train.Recipe(MLP((4,))))
FREE = {
    "data.data", "data.dataset", "recipe.task.scale", "run_dir", "resume", "devices",
    "fsdp", "distributed", "profile", "baseline", "logger", "verbose",
}  # fmt: skip
OF_SWEEP = {"trials", "min_improvement", "study", "storage", "ensemble_size", "auto"}
OF_SWEEP |= {"launcher", "workers", "launcher_options"}
SOURCES = [Arrays(), ImageFolder(), Images(), Series(), Table(), Text()]
CASES = {
    "Config": CONFIG,
    "Sweep": Sweep(CONFIG.recipe),
    **{type(data).__name__: dataclasses.replace(CONFIG, data=data) for data in SOURCES},
    **{
        name: dataclasses.replace(CONFIG, recipe=dataclasses.replace(CONFIG.recipe, task=task))
        for name, task in TASKS.items()
    },
}


def settings(config):
    data = {"sha256": "1", "weights_sha256": ""}
    return json.loads(json.dumps({"config": run.to_json(config), "data": data}))


def leaves(tree, prefix=()):
    for name, value in tree.items():
        if isinstance(value, dict):
            yield from leaves(value, (*prefix, name))
        else:
            yield (*prefix, name)


def test_all_sources_are_here():
    shipped = {kind for kind in Source.__subclasses__() if kind.__module__.startswith("dlflax.")}
    assert shipped == {type(data) for data in SOURCES}


@pytest.mark.parametrize("config", CASES.values(), ids=CASES)
def test_every_field_is_compared_but_those_that_may_differ(config):
    saved = settings(config)
    assert differences(saved, saved, config) == ""
    free = FREE | OF_SWEEP if isinstance(config, Sweep) else FREE
    seen = set()
    for *owners, name in leaves(saved["config"]):
        new = copy.deepcopy(saved)
        owner = new["config"]
        for each in owners:
            owner = owner[each]
        was, owner[name] = owner[name], ["something", "else"]
        place = ".".join([*owners, name])
        text = differences(saved, new, config)
        was = tuple(was) if isinstance(was, list) else was
        was = str(was) if isinstance(was, tuple) else was
        expected = f"{place} was {was!r}, now \"('something', 'else')\""
        assert text == ("" if place in free else expected)
        seen.add(place)
    fields = {field.name for field in dataclasses.fields(config)} - {"given", "stand_ins"}
    assert fields <= {place.partition(".")[0] for place in seen}
    for name in ("sha256", "weights_sha256"):
        new = {**saved, "data": {**saved["data"], name: "2"}}
        assert f"{name} was" in differences(saved, new, config)


@dataclasses.dataclass(frozen=True)
class Longer(run.Config):
    epochs: int = 7
    devices: int = 1  # still the machine's
    note: str = dataclasses.field(default="", metadata={"resume": "free"})
    order: str = "random"


@dataclasses.dataclass(frozen=True)
class Scans(Images):
    data: Path | None = Path("scans")  # still free
    dataset: str = dataclasses.field(default="", metadata={"resume": "compared"})
    workers: int = dataclasses.field(default=1, metadata={"resume": "free"})
    shade: float = 0.5


@dataclasses.dataclass(frozen=True)
class Wobble(Flip):
    name: str = dataclasses.field(default="", metadata={"resume": "free"})
    size: int = 1


def test_a_field_of_ones_own_may_have_an_old_name():
    saved = to_json(CONFIG) | {"length": 3}
    check_version({"versions": {"dlflax": "0.3.0"}, "config": saved}, "run")
    del saved["val_split"]
    with pytest.raises(InputError, match="with the field length, now max_length"):
        check_version({"versions": {"dlflax": "0.3.0"}, "config": saved}, "run")


def test_fields_of_ones_own():
    recipe = dataclasses.replace(CONFIG.recipe, augment=(Flip(), Wobble()))
    config = Longer(recipe, data=Scans())
    free = dict(note="a", devices=2, run_dir=Path("b"))
    free |= {
        "data": Scans(data=Path("elsewhere"), workers=4),
        "recipe": dataclasses.replace(recipe, augment=(Flip(), Wobble("c"))),
    }
    other = dataclasses.replace(config, **free)
    assert differences(settings(config), settings(other), other) == ""
    for change, text in [
        (dict(epochs=8), "epochs was 7, now 8"),
        (dict(order="sorted"), "order was 'random', now 'sorted'"),
        (dict(data=Scans(shade=0.1)), "data.shade was 0.5, now 0.1"),
        (dict(data=Scans(dataset="d")), "data.dataset was '', now 'd'"),
        (dict(data=Images()), "data.class was"),
        (dict(recipe=dataclasses.replace(recipe, augment=(Flip(),))), "recipe.augment was"),
        (dict(recipe=dataclasses.replace(recipe, augment=(Flip(), Wobble(size=2)))),
         "recipe.augment was"),
    ]:  # fmt: skip
        other = dataclasses.replace(config, **change)
        assert text in differences(settings(config), settings(other), other)
        assert text.partition(" ")[0] in differences(settings(other), settings(config), config)


def test_a_field_that_a_saved_run_lacks():
    saved = settings(CONFIG)
    del saved["config"]["seed"], saved["config"]["verbose"]
    assert differences(saved, settings(CONFIG), CONFIG) == "seed was None, now 0"


def test_flags_of_a_sweep_that_are_declared_anew():
    def parsed(*flags):
        return sweep_command._parse(
            "random_search", experiments, ("random",), ["mnist", *flags], ""
        )[-1]

    few, more = parsed("--trials", "3"), parsed("--trials", "5", "--ensemble-size", "0")
    assert type(few) is not Sweep and differences(settings(few), settings(more), more) == ""
    more = parsed("--trials", "5", "--seed", "1")
    assert differences(settings(few), settings(more), more) == "seed was 0, now 1"


def folder_of(config, folder):
    data = dict.fromkeys(("name", "source", "sha256", "weights_sha256"), "")
    saved = {
        **settings(config), "experiment": "mnist", "defined_in": {},
        "versions": {"dlflax": "0.3.0"},
        "data": {**data, "train": 1, "validation": 1, "test": 1},
    }  # fmt: skip
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(saved))
    return folder


def test_a_resumed_run_takes_over_all_but_what_is_of_the_machine(tmp_path):
    saved = dataclasses.replace(
        mnist.DEFAULT, seed=5, data=Images(data=Path("there")), devices=3, fsdp=True,
        distributed=True, profile=True, baseline="none", logger="wandb", verbose=True,
    )  # fmt: skip
    folder = folder_of(saved, tmp_path)
    experiment = run.Experiment("mnist", mnist)
    config = run.parse(experiment, ["--resume", "--run-dir", str(folder)])
    assert (config.seed, config.data.data) == (5, Path("there"))
    assert (config.devices, config.logger, config.baseline) == (0, "none", "auto")
    assert not (config.fsdp or config.distributed or config.profile or config.verbose)


def test_the_winner_of_a_sweep_continues_or_makes_way(tmp_path):
    folder = folder_of(CONFIG, tmp_path / "best")
    same = in_folder(dataclasses.replace(CONFIG, verbose=True), folder)
    assert same.resume and same.run_dir == folder
    other = in_folder(dataclasses.replace(CONFIG, hparams=train.Hparams(l2=0.5)), folder)
    assert not other.resume and not folder.exists() and len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize(
    "place, old, new",
    [
        ("", "validation", "val_split"), ("data", "data_dir", "data"),
        ("transfer", "views", "num_views"), ("data", "size", "image_size"),
    ],
)  # fmt: skip
def test_a_folder_with_an_old_field_is_refused_with_the_new_one(tmp_path, place, old, new):
    folder = folder_of(image_folder.PRESETS["default"], tmp_path / "run")
    saved = json.loads((folder / "config.json").read_text())
    fields = saved["config"][place] if place else saved["config"]
    fields[old] = fields.pop(new)
    (folder / "config.json").write_text(json.dumps(saved))
    experiment = run.Experiment("image_folder", image_folder)
    with pytest.raises(InputError) as error:
        run.parse(experiment, ["--resume", "--run-dir", str(folder)])
    sentence = f"was saved with the field {old}, now {new}: start a new run, or read this one with"
    assert str(folder) in str(error.value) and sentence in str(error.value)
