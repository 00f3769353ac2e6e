"""Cross-validation: who is in which fold, what is saved, going on."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest
from sklearn.datasets import load_breast_cancer

from dlflax import run
from dlflax.data import Arrays, Series, Table, make_splits
from dlflax.data.folds import folds
from dlflax.data.order import assign_folds
from dlflax.errors import InputError
from dlflax.run import cross_validation as command
from experiments import image_folder, mnist, tabular

pytestmark = pytest.mark.usefixtures("place")


def test_every_fold_has_its_share_of_each_class():
    targets = np.repeat(np.arange(4), [50, 23, 9, 2])
    of = assign_folds(targets, 5, 0)
    counts = np.array([np.bincount(targets[of == fold], minlength=4) for fold in range(5)])
    assert (np.ptp(counts, 0) <= 1).all() and np.ptp(counts.sum(1)) <= 1
    np.testing.assert_array_equal(of, assign_folds(targets, 5, 0))
    assert (of != assign_folds(targets, 5, 1)).any()


def test_groups_are_whole_and_folds_about_as_large():
    groups = np.repeat([f"g{i}" for i in range(30)], np.arange(1, 31))
    of = assign_folds(np.zeros(len(groups), np.float32), 4, 0, groups)
    assert all(len(set(of[groups == name])) == 1 for name in set(groups))
    assert np.ptp(np.bincount(of)) < 10
    with pytest.raises(InputError, match="there are 3 groups"):
        assign_folds(np.zeros(3), 4, 0, np.array(["a", "b", "c"]))


def test_each_example_is_tested_once():
    source = Table()
    dataset = source.load(lambda _: None)
    tested, cut = [], folds(dataset, 4, 0)
    for part in cut:
        splits = make_splits(source, part, 0.2, 0)
        rows = {*splits.names("train"), *splits.names("val")}, set(splits.names("test"))
        assert not rows[0] & rows[1] and len(rows[0] | rows[1]) == 569
        tested += splits.names("test")
        assert len(splits.test["targets"]) == len(part.test["targets"]) == len(rows[1])
    assert sorted(tested) == sorted(f"row {i + 1}" for i in range(569))
    joined = np.concatenate([part.test["targets"] for part in cut])
    assert joined.sum() == (load_breast_cancer().target == 0).sum() or (1 - joined).sum()


def test_bad_folds():
    dataset = Series().load(lambda _: None)
    with pytest.raises(InputError, match="not for a series"):
        folds(dataset, 3, 0)
    arrays = Arrays(*[{"inputs": np.zeros((4, 2), np.float32), "targets": np.arange(4) % 2}] * 2)
    for count in (1, 9):
        with pytest.raises(InputError, match="--folds"):
            folds(arrays.load(lambda _: None), count, 0)


FLAGS = ["--folds", "3", "--bag-folds", "0", "--epochs", "2", "--run-dir", "run"]


def ran(*flags, of=tabular):
    name, architectures = of.__name__.rpartition(".")[2], getattr(of, "ARCHITECTURES", {})
    run.main(name, of.PRESETS, architectures, [*FLAGS, *flags])
    return json.loads(Path("run/results.json").read_text(encoding="utf-8"))


def test_folds_of_which_one_was_scored_without_baselines():
    """As --baseline none of a resume does; the others are recorded with them."""
    one = {"test": {"loss": 1.0}, "baselines": {"mean": {"loss": 2.0}},
           "mcnemar": {"mean": {"examples": 3}}}  # fmt: skip
    summary = command._summary([one, {"test": {"loss": 3.0}}])
    assert summary == {"test": {"loss": 2.0}, "spread": {"loss": pytest.approx(2**0.5)}}
    assert command._summary([one, one])["mcnemar"] == {"mean": {"examples": 6}}


@pytest.mark.slow
@pytest.mark.baselines
def test_scores_and_going_on(capsys):
    results = ran("--patience", "0")
    assert len(results["each"]) == results["folds"] == 3
    for name, mean in results["test"].items():
        values = [one["test"][name] for one in results["each"]]
        assert mean == pytest.approx(np.mean(values))
        assert results["spread"][name] == pytest.approx(np.std(values, ddof=1))
    assert results["baselines"]["majority class"]["accuracy"] == pytest.approx(0.627, abs=0.01)
    for name, counts in results["mcnemar"].items():
        parts = [one["mcnemar"][name] for one in results["each"]]
        assert counts == {key: sum(part[key] for part in parts) for key in counts}
        assert counts["examples"] == 569
    assert "logistic regression" in results["mcnemar"]
    with open("run/folds.csv", newline="", encoding="utf-8") as file:
        assert [int(row["test"]) for row in csv.DictReader(file)] == [190, 190, 189]
    # as if it had been killed in the third fold
    path, text = Path("run/results.json"), Path("run/results.json").read_text(encoding="utf-8")
    cut = json.loads(text)
    path.write_text(json.dumps({**cut, "each": cut["each"][:2]}), encoding="utf-8")
    again = ran("--patience", "0", "--resume")
    assert again["test"] == results["test"] and again["each"][:2] == results["each"][:2]
    for flags, sentence in (((), "already holds a run"),
                            (("--resume", "--seed", "1"), "seed was 0, now 1")):  # fmt: skip
        with pytest.raises(SystemExit) as stopped:
            ran("--patience", "0", *flags)
        assert stopped.value.code == 2 and sentence in capsys.readouterr().err


@pytest.mark.slow
def test_a_fold_is_as_a_run(monkeypatch):
    """The same scores as an ordinary run whose test data are that fold."""
    flags = ["--model", "mlp", "--dataset", "digits", "--model.features", "32"]
    results = ran(*flags, "--baseline", "none", of=mnist)
    config = run.parse(run.Experiment("mnist", mnist), [*flags, "--epochs", "2"])
    dataset = config.data.load(lambda _: None)
    config = run.parse(
        run.Experiment("mnist", mnist), [*flags, "--epochs", "2", "--run-dir", "alone"]
    )
    alone = run.run("mnist", config, dataset=folds(dataset, 3, 0)[1])
    for name, value in results["each"][1]["test"].items():
        assert alone["test"][name] == pytest.approx(value, rel=1e-3, abs=1e-4)


@pytest.mark.slow
def test_pictures(capsys):
    from PIL import Image

    rng = np.random.default_rng(0)
    for i in range(30):
        pixels = rng.integers(0, 90, (12, 12, 3), dtype=np.uint8) + np.uint8(120 * (i % 2))
        path = Path("photos", "ab"[i % 2], f"{i}.png")
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(path)
    flags = ["--preset", "scratch", "--data", "photos", "--image-size", "12", "--batch-size", "8"]
    results = ran(*flags, "--model.features", "4", "--baseline", "none", of=image_folder)
    assert sum(one["examples"]["test"] for one in results["each"]) == 30


def test_folds_are_lanes_of_one_population(capsys, monkeypatch):
    """And score what each of them scores when it is trained alone."""
    flags = ["--model", "mlp", "--dataset", "digits", "--model.features", "32", "--patience", "1"]
    lanes = ran(*flags, "--baseline", "none", of=mnist)
    assert "training 3 folds as one population" in capsys.readouterr().out
    monkeypatch.setattr(command, "_is_one_population", lambda jobs: False)
    Path("run").rename("lanes")
    alone = ran(*flags, "--baseline", "none", of=mnist)
    assert "population" not in capsys.readouterr().out
    for one, other in zip(lanes["each"], alone["each"], strict=True):
        assert one["examples"] == other["examples"] and one["epochs_run"] == other["epochs_run"]
        for name, value in one["test"].items():
            assert other["test"][name] == pytest.approx(value, rel=1e-3, abs=1e-4)
