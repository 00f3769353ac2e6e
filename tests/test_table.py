"""Tables: what becomes of each column, classes and numbers, bad files."""

import csv
import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
from sklearn.datasets import load_diabetes
from sklearn.ensemble import HistGradientBoostingRegressor

from dlflax import run
from dlflax.data import Table, make_splits
from dlflax.data.table.columns import CategoryColumn, NumberColumn
from dlflax.data.table.number_formats import NumberFormat
from dlflax.data.table.raw_table import as_column
from dlflax.errors import InputError
from dlflax.report import tables
from experiments import predict, tabular

pytestmark = pytest.mark.usefixtures("place")


def write(name, header, rows):
    with open(name, "w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([header, *rows])
    return Path(name)


def houses(n=120, seed=0):
    rng = np.random.default_rng(seed)
    rows = []
    for i in range(n):
        size, kind = rng.uniform(30, 200), rng.choice(["flat", "house", "villa"])
        price = 1000 * size * {"flat": 1, "house": 1.5, "villa": 2}[kind]
        rows.append([
            f"{size:.1f}" if i % 9 else "", kind if i % 11 else "NA", f"id{i}", "same",
            f"{price:.0f}",
        ])  # fmt: skip
    return rows


HEADER = ["size", "kind", "id", "same", "price"]


def test_what_becomes_of_each_column():
    path = write("houses.csv", HEADER, houses())
    source, said = Table(data=path, num_bins=4), []
    dataset = source.load(said.append)
    splits = make_splits(source, dataset, 0.2, 0)
    assert any("inferred: a number" in line for line in said)
    size, kind = splits.encoder.columns
    assert isinstance(size, NumberColumn) and size.missing and len(size.edges) == 5
    assert isinstance(kind, CategoryColumn) and kind.levels == ("flat", "house", "villa")
    assert kind.missing
    assert {column.name: column.reason for column in splits.encoder.dropped} == {
        "id": "has 77 different names in 77 rows", "same": "is the same in all training rows"
    }  # fmt: skip
    assert "2 columns are dropped: id has 77 different names in 77 rows; same" in splits.notes[0]
    parts = [splits.train, splits.val, splits.test]
    assert [len(part["targets"]) for part in parts] == [77, 19, 24]
    wide = size.width() + kind.width()
    assert all(part["inputs"].shape[1] == wide == 6 + 5 for part in parts)
    assert splits.train["targets"].mean() == pytest.approx(0, abs=1e-5)
    assert splits.train["targets"].std() == pytest.approx(1, abs=1e-5)
    # only the training rows decide: other test rows change nothing
    examples = dataset.examples
    sizes = examples.columns["size"].to_pylist()
    test = dataset.split.test(examples)
    other = ["999999" if held else size for held, size in zip(test, sizes, strict=True)]
    changed = {**examples.columns, "size": as_column(other)}
    changed = dataclasses.replace(examples, columns=changed)
    again = make_splits(source, dataclasses.replace(dataset, examples=changed), 0.2, 0)
    assert (again.test["inputs"] != splits.test["inputs"]).any(1).all()
    assert again.encoder == splits.encoder
    np.testing.assert_array_equal(again.train["inputs"], splits.train["inputs"])


def test_bins_are_between_the_distinct_quantiles():
    edges = [NumberColumn.fit("x", np.array(values), 2, NumberFormat()).edges
             for values in ([0.0, 1.0, 3.0], [0.0, 0.0, 3.0, 3.0, 3.0])]  # fmt: skip
    assert edges == [(0.0, 1.0, 3.0), ()]


def test_the_encoding_of_a_number():
    column = NumberColumn("x", NumberFormat(), 2.0, 1.0, 2.0, (0.0, 1.0, 3.0), missing=True)
    cells = ["0.5", "2", "9", "-1", ""]
    right = [[-0.25, 0.5, 0, 0], [0.5, 1, 0.5, 0], [4, 1, 1, 0], [-1, 0, 0, 0], [0.5, 1, 0.5, 1]]
    np.testing.assert_allclose(column.encode(column.parse(as_column(cells))[0], np), right)
    kinds = CategoryColumn("k", ("a", "b"), missing=False)
    cells = ["a", "b", "new", ""]
    right = [[1, 0, 0], [0, 1, 0], [0, 0, 1], [0, 0, 0]]
    raw, wrong = kinds.parse(as_column(cells))
    np.testing.assert_array_equal(kinds.encode(raw, np), right)
    np.testing.assert_array_equal(raw[:, 0], [1, 2, 0, np.nan])
    assert not wrong.any()


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
def test_numbers_as_people_write_them(delimiter):
    rows = ["a b c".replace(" ", delimiter)]
    comma = delimiter != ","
    for i in range(40):
        number = f"{i}.000,5" if comma else f'"{i},000.5"'
        rows.append(delimiter.join([number, "xy"[i % 2], str(i % 2)]))
    Path("t.csv").write_text("\ufeff" + "\n".join(rows), encoding="utf-8")
    source = Table(data=Path("t.csv"))
    splits = make_splits(source, source.load(lambda line: None), 0.2, 0)
    assert splits.class_names == ("0", "1")
    assert isinstance(splits.encoder.columns[0], NumberColumn)
    assert splits.encoder.columns[0].mean > 5000


@pytest.mark.parametrize(
    ("content", "options", "right"),
    [
        ("a,b\n", {}, "no rows"),
        ("", {}, "not a CSV file"),
        ("a,a\n1,2\n", {}, "two columns 'a'"),
        ("a,b\n1\n", {}, "line 2 has 1 cell for 2 columns"),
        ("a,b\n1,2\n", {"target": "c"}, "--target c"),
        ("a,b\n1,2\n", {"drop_columns": ("c",)}, "--drop-columns c"),
        ("b\n1\n2\n", {}, "no column besides"),
        ("a,b\n" + "1,x\n" * 9, {}, "fewer than two classes"),
        ("a,b\n" + "1,x\n1,y\n" * 9, {}, "all columns were dropped"),
        ("a,b\n" + "1,x\n2,y\n" * 9, {"target_type": "number"}, "not a number"),
        ("a,b\n1,\n2,\n", {}, "fewer than two classes"),
        ("a,b\n1,2\n3,4.5\n", {}, "too few"),
        ("a,b\n" + "1,x\n2,y\n" * 9, {"test_split": 1.5}, "--test-split 1.5"),
        ("a,b\n" + "1,x\n2,y\n" * 9, {"num_bins": -1}, "--num-bins -1"),
    ],
)
def test_tables_that_cannot_be_used(content, options, right):
    Path("bad.csv").write_text(content, encoding="utf-8")
    source = Table(data=Path("bad.csv"), **options)
    with pytest.raises(InputError, match=right):
        make_splits(source, source.load(lambda line: None), 0.2, 0)


def test_generated_tables_train_or_are_refused():
    """100 files out of all that a cell can be: one sentence, or data that a network can read."""
    rng = np.random.default_rng(0)
    cells = ["1", "2.5", "-3", "1e400", "nan", "", "a", "b", "\u00e9", "1,5", "NA", "x" * 300, "0"]
    used = 0
    for i in range(100):
        columns, rows = rng.integers(1, 5), rng.integers(0, 40)
        lines = [",".join(f"c{k}" for k in range(columns))]
        some = rng.choice(cells, rng.integers(1, len(cells)))
        for _ in range(rows):
            lines.append(",".join(f'"{cell}"' for cell in rng.choice(some, columns)))
        Path("t.csv").write_text("\n".join(lines), encoding="utf-8")
        source = Table(data=Path("t.csv"))
        try:
            splits = make_splits(source, source.load(lambda line: None), 0.2, i)
        except InputError as error:
            assert str(error).count("\n") == 0
            continue
        used += 1
        for part in (splits.train, splits.val, splits.test):
            assert np.isfinite(part["inputs"]).all() and np.isfinite(part["targets"]).all()
    assert used > 5


def command(*flags):
    run.main(
        "tabular",
        tabular.PRESETS,
        {},
        ["--epochs", "5", "--run-dir", "r", "--bag-folds", "0", *flags],
    )
    return json.loads(Path("r/results.json").read_text())


@pytest.mark.baselines
@pytest.mark.figures
def test_a_number_from_a_file(capsys):
    write("houses.csv", HEADER, houses())
    results = command("--data", "houses.csv", "--target", "price", "--batch-size", "16")
    assert results["task"] == "Regression"
    beside = results["baselines"]
    assert list(beside) == ["mean", "ridge regression", "histogram gradient boosting"]
    assert 10_000 < results["test"]["rmse"] < beside["mean"]["rmse"]
    rows = list(csv.DictReader(Path("r/importance.csv").read_text().splitlines()))
    assert {row["column"] for row in rows} == {"size", "kind"}
    assert Path("r/importance.png").exists() and Path("r/predicted.png").exists()
    write("new.csv", ["kind", "size", "more"], [["villa", "200", "?"], ["flat", "30", "?"]])
    capsys.readouterr()
    predict.command(Path("r"), ("new.csv",))
    dear, cheap = capsys.readouterr().out.splitlines()
    values = [float(line.rpartition(" ")[2].replace(",", "")) for line in (dear, cheap)]
    assert dear.startswith("new.csv, line 2") and values[0] > values[1] > 0
    write("lacks.csv", ["kind"], [["villa"]])
    with pytest.raises(SystemExit):
        predict.command(Path("r"), ("lacks.csv",))
    assert "lacks the column size" in capsys.readouterr().err


@pytest.mark.baselines
def test_classes_that_pip_ships(capsys):
    results = command("--dataset", "wine")
    assert results["task"] == "Classification" and results["test"]["accuracy"] > 0.8
    assert "histogram gradient boosting" in results["baselines"]
    assert "test: histogram gradient boosting" in capsys.readouterr().out


@pytest.mark.baselines
def test_gradient_boosting_is_scikit_learns_own():
    source = Table(dataset="diabetes")
    splits = make_splits(source, source.load(lambda line: None), 0.2, 0)
    found = splits.train["targets"]
    model = HistGradientBoostingRegressor(random_state=0).fit(splits.plain("train").rows, found)
    error = model.predict(splits.plain("test").rows) - splits.test["targets"]
    results = command("--dataset", "diabetes", "--val-split", "0.2")
    rmse = np.sqrt(np.mean(error**2)) * splits.target.scale[0]
    mine = results["baselines"]["histogram gradient boosting"]["rmse"]
    assert mine == pytest.approx(rmse, rel=1e-4)
    truth = load_diabetes().target
    assert splits.target.mean[0] == pytest.approx(truth.mean(), rel=0.1)


def test_notes_leave_room_for_the_other_columns(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    rows = [{"column": "comment", "type": "category", "format": "", "missing": 3, "levels": 2,
             "note": "no egg was ever seen, " * 9}]  # fmt: skip
    tables.print_columns(rows, Path("r"), False)
    shown = capsys.readouterr().out
    assert all(word in shown for word in (*rows[0], "comment", "category"))
