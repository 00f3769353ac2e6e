"""Numbers as people write them: one format a column, inferred once, applied for ever, said."""

import csv
import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import dlflax
from dlflax import run
from dlflax.data import Series, Table
from dlflax.data.table import number_formats
from dlflax.data.table.number_formats import NumberFormat, infer_formats
from dlflax.data.table.raw_table import RawTable, RowNames, as_column
from dlflax.errors import InputError
from dlflax.inference import serve_inputs
from experiments import forecast, tabular

pytestmark = pytest.mark.usefixtures("place")


def write(path, rows, delimiter=","):
    with open(path, "w", newline="", encoding="utf-8") as file:
        csv.writer(file, delimiter=delimiter).writerows(rows)
    return Path(path)


def infer(cells, delimiter=";", decimal="auto", **others):
    columns = {name: as_column(texts) for name, texts in {"x": cells, **others}.items()}
    lines = RowNames("a.csv, line", np.arange(2, 2 + len(cells)))
    return infer_formats(RawTable(columns, "a.csv", delimiter, lines), columns, decimal)["x"]


def parse(form, cells):
    values, wrong = form.parse(cells)
    assert not wrong.any()
    return values


@pytest.mark.parametrize(
    ("cells", "right"),
    [
        (["1,234", "2,5"], [1.234, 2.5]),
        (["9.521,2", "9.341"], [9521.2, 9341]),
        (["0,512", "12,250"], [0.512, 12.25]),
        (["1.234.567", "1.234"], [1234567, 1234]),
        (["1,234,567.5", "1,234", "NA"], [1234567.5, 1234, np.nan]),
        (["45.120", "1.050", "980"], [45120, 1050, 980]),
        (["12,34,567", "1,234"], [1234567, 1234]),
        (["1 234,5", "12\u00a0345", "1\u202f234"], [1234.5, 12345, 1234]),
        (["1'234.5", "12’345"], [1234.5, 12345]),
        (["-1,5", "\u22122,25", "+3,75", ",5", "1e-3", "1,5E+3"],
         [-1.5, -2.25, 3.75, 0.5, 0.001, 1500]),
        (["€1.234,50", "2,5 €", "-€ 3,5"], [1234.5, 2.5, -3.5]),
        (["EUR 10,679.5", "EUR 9,100", "0"], [10679.5, 9100, 0]),
        (["12.5 %", "9%"], [12.5, 9]),
        (["80 kg", "75.5kg"], [80, 75.5]),
        (["12 km/h", "5.5 km/h", "1,005 km/h"], [12, 5.5, 1005]),
        (["7.5 m²"], [7.5]),
        (["US$5.25", "US$ 1,000"], [5.25, 1000]),
    ],
)  # fmt: skip
def test_a_column_of_numbers(cells, right):
    how = infer(cells)
    np.testing.assert_array_equal(parse(how, cells), right)
    for cell, value in zip(cells, right, strict=True):  # a cell alone is the same number
        np.testing.assert_array_equal(parse(how, [cell]), [value])


@pytest.mark.parametrize(
    "cells",
    [["1.5", "2.5.1"], ["12", "1_2"], ["5 kg", "12 lb"], ["5%", "6"], ["10k", "500"], ["$5", "€6"],
     ["12:30"], ["2024-01-30"], ["3", "A3"], ["1,2,3"], ["0x1F"], ["5 5 5"], ["--5"], ["inf"]],
)  # fmt: skip
def test_what_is_no_column_of_numbers(cells):
    assert infer(cells, ",") is None


def test_what_a_column_leaves_open_its_file_decides():
    open_cells = ["1,234", "2,345"]
    assert infer(open_cells, ";", other=["0,5"]).decimal == ","
    assert infer(open_cells, ";", other=["0.5", "x"]).decimal == "."
    assert infer(open_cells, ",").decimal == "."
    assert infer(open_cells, ";", ",").decimal == ","
    assert infer(["1.500", "2"], ",", other=["0.25"]).decimal == "."
    for cells, delimiter, word in (
        (open_cells, ";", "'1,234' may have thousands or a fraction"),
        (["1.234"], "\t", "'1.234' may have"),
        (["2,5", "9521.2"], ",", "'9521.2' .line 3. and '2,5' .line 2."),
    ):
        with pytest.raises(InputError, match=f"a.csv, column x.*{word}.*--decimal"):
            infer(cells, delimiter)


def test_any_dialect_gives_the_same_numbers():
    rng = np.random.default_rng(0)
    for _ in range(300):
        decimal = rng.choice([".", ","])
        group = rng.choice(["", number_formats.DECIMALS[decimal], " ", "\u00a0", "'"])
        unit = rng.choice(["", "$", "%", "kg", "EUR"])
        values = np.round(rng.normal(0, 10 ** rng.integers(0, 7), 20), int(rng.integers(1, 4)))
        values[0] = 0.25  # shows the decimal mark
        table = str.maketrans({",": group, ".": decimal})
        cells = [f"{value:,}".translate(table) + " " * bool(rng.integers(2)) * bool(unit) + unit
                 for value in values]  # fmt: skip
        how = infer(cells, rng.choice([",", ";", "\t"]))
        assert how == NumberFormat(decimal, unit)
        np.testing.assert_array_equal(parse(how, cells), values)


def boards(path):
    """price = 2 length + width, with decimal commas; some lengths with three digits behind."""
    rng = np.random.default_rng(0)
    rows = []
    for i in range(120):
        length, width = round(rng.uniform(1, 9), 3 if i % 3 == 0 else 1), round(rng.random(), 2)
        cells = (f"{length}", f"{width:.2f}", f"{2 * length + width:.2f} €")
        rows.append([cell.replace(".", ",") for cell in cells])
    return write(path, [("length", "width", "price"), *rows], ";")


def values_of(answers):
    return [answer["values"][0] for answer in answers]


def test_a_row_means_the_same_by_every_way_in(capsys):
    flags = ["--data", str(boards("boards.csv")), "--epochs", "20", "--run-dir", "r"]
    run.main("tabular", tabular.PRESETS, {}, [*flags, "--baseline", "none", "--bag-folds", "0"])
    assert "numbers are read as 1.234,5 in length, width." in capsys.readouterr().out
    model = dlflax.load("r", log=lambda _: None)
    lengths = ("1,234", "2,5", "2,500", "1.234,5")
    together = write("a.csv", [("length", "width"), *((x, "0,50") for x in lengths)], ";")
    right = values_of(model.predict(str(together)))
    assert right[0] == pytest.approx(2.97, abs=1) and right[1] == right[2]
    typed = pd.DataFrame({"length": [1.234, 2.5, 2.5, 1234.5], "width": 0.5})
    assert values_of(model.predict(typed)) == pytest.approx(right)
    assert values_of(model.predict(typed.astype(str).replace(r"\.", ",", regex=True))) == right
    assert values_of(model.predict(typed.to_numpy())) == pytest.approx(right)
    assert values_of(model.predict(typed.iloc[0])) == pytest.approx(right[:1])
    body = json.dumps({"rows": typed.to_dict("records")}).encode()
    predictor = model._predictor
    (part,) = serve_inputs.split_request(predictor.encoder, "application/json", body)
    examples = serve_inputs.read_part(predictor.encoder, part)
    answers = [values for _, values in predictor.answer_examples(examples)]
    assert values_of(answers) == pytest.approx(right)
    for i, x in enumerate(lengths):
        alone = write("b.csv", [("length", "width"), (x, "0,50")], ";")
        assert values_of(model.predict(str(alone))) == pytest.approx(right[i : i + 1])
    write("wrong.csv", [("length", "width"), ("2.5", "0,50")], ";")
    with pytest.raises(InputError, match="line 2: the column length has '2.5', where train"):
        model.predict("wrong.csv")
    # another delimiter: by another program, which may have another rule
    for cells, word in (("2.5", "has numbers such as 1,234.5"), ("1.234", "write the file as")):
        write("other.csv", [("length", "width"), (cells, "1")], "\t")
        with pytest.raises(InputError, match=word):
            model.predict("other.csv")
    write("other.csv", [("width", "length"), ("1,0", "2,5")], "\t")
    assert len(model.predict("other.csv")) == 1


@pytest.mark.slow
def test_a_table_is_evaluated_as_it_was_trained():
    """The target by its name, its kind and format as in training, all rows."""
    run.main("tabular", tabular.PRESETS, {}, ["--data", str(boards("boards.csv")),
             "--epochs", "20", "--run-dir", "r", "--baseline", "none",
             "--bag-folds", "0"])  # fmt: skip
    model = dlflax.load("r", log=lambda _: None)
    rows = [(f"{2 * i},000", "1,5", f"{i},5", "x") for i in range(1, 6)]
    write("few.csv", [("price", "length", "width", "note"), *rows], ";")
    error = np.array(values_of(model.predict("few.csv"))) - [2.0 * i for i in range(1, 6)]
    wanted = pytest.approx(np.sqrt(np.mean(error**2)), rel=1e-4)
    assert model.evaluate("few.csv")["rmse"] == wanted
    frame = pd.DataFrame({"length": 1.5, "width": np.arange(1, 6) + 0.5})
    frame["price"] = 2 * np.arange(1, 6)
    assert model.evaluate(frame)["rmse"] == wanted
    features, prices = frame[["length", "width"]].to_numpy(), frame["price"].to_numpy()
    assert model.evaluate(features, prices)["rmse"] == wanted
    with pytest.raises(InputError, match="lacks the column price, which the model predicts"):
        model.evaluate(frame[["length", "width"]])
    kinds = [(f"{i}", f"{i % 7}", "ab"[i % 2]) for i in range(60)]
    write("kinds.csv", [("i", "j", "kind"), *kinds])
    run.main("tabular", tabular.PRESETS, {}, ["--data", "kinds.csv", "--epochs", "2",
             "--run-dir", "k", "--baseline", "none", "--bag-folds", "0"])  # fmt: skip
    said = []
    model = dlflax.load("k", log=said.append)
    write("one.csv", [("kind", "i", "j"), *((k, i, j) for i, j, k in kinds[:20:2])])
    answers = model.predict("one.csv")  # one class alone
    assert model.evaluate("one.csv")["accuracy"] == np.mean([a["class"] == "a" for a in answers])
    said.clear()
    write("new.csv", [("i", "j", "kind"), *((i, j, "c") for i, j, _ in kinds[:5]), *kinds[:15]])
    right = [
        a["class"] == k for a, (*_, k) in zip(model.predict("new.csv")[5:], kinds, strict=False)
    ]
    assert model.evaluate("new.csv")["accuracy"] == pytest.approx(np.sum(right) / 20)
    assert said == [
        "5 of 20 examples are of classes that the model does not have: they count as wrong."
    ]


def test_a_series_keeps_its_format(capsys):
    values = 9500 + 300 * np.sin(np.arange(120) / 4)
    cells = [f"{v:,.1f}".translate(str.maketrans(",.", ".,")) for v in values]
    cells = [cell.removesuffix(",0") for cell in cells]
    cells[3], values[3] = "9.341", 9341
    path = write("a.csv", [("n", "value"), *enumerate(cells)], ";")
    series = Series(data=path, window=12, horizon=3)
    np.testing.assert_allclose(series.load(print).train["window"][0, :, 0], values[:12].round(1))
    run.main("forecast", forecast.PRESETS, {}, ["--data", "a.csv", "--epochs", "1", "--window",
             "12", "--horizon", "3", "--run-dir", "r", "--baseline", "none"])  # fmt: skip
    assert "numbers are read as 1.234,5 in value." in capsys.readouterr().out
    model = dlflax.load("r", log=lambda _: None)
    short = [f"9.{300 + i}" for i in range(12)]  # which alone could be fractions
    (answer,) = model.predict(str(write("b.csv", [("n", "value"), *enumerate(short)], ";")))
    assert min(answer["forecast"]) > 5000
    with pytest.raises(InputError, match="--decimal , is for a file"):
        Series(decimal=",").load(print)


@pytest.mark.parametrize("price", ["€{:,.0f}", "EUR {:,.0f}", "{:,.0f} $", "${:,.0f}"])
def test_a_target_with_a_currency_is_a_number(price):
    amounts = [5000 + 37 * i for i in range(90)]
    rows = [(i % 7, 25 + i / 10, price.format(amount)) for i, amount in enumerate(amounts)]
    dataset = Table(data=write("a.csv", [("rooms", "area", "price"), *rows])).load(print)
    assert not dataset.class_names
    np.testing.assert_array_equal(dataset.examples.target, amounts)


def test_many_rows_are_not_dropped_in_silence():
    rows = [(i, f"about {1000 + i if i % 9 else i % 2}") for i in range(90)]
    with pytest.raises(InputError, match="80 of 90 rows are of a class with fewer than 3 rows"):
        Table(data=write("a.csv", [("x", "price"), *rows])).load(print)
    rows = [(i, ("none", "mild", "n/a")[i % 3]) for i in range(90)]
    dataset = Table(data=write("b.csv", [("x", "finding"), *rows])).load(print)
    assert dataset.examples.classes == ("mild", "n/a", "none") and len(dataset.examples) == 90
    rows = [(i, ("", "mild", "severe")[i % 3]) for i in range(90)]
    said = []
    assert len(Table(data=write("c.csv", [("x", "f"), *rows])).load(said.append).test["x"])
    assert said[0].startswith("30 rows have no f")


def test_1e3_is_a_number_among_numbers():
    """R's readr writes 1000 so; a column of such codes is none of numbers."""
    cells = [f"{990 + i / 4}" for i in range(60)] + ["1e3"]
    form = infer(cells)
    assert parse(form, cells)[-1] == 1000 and "1e3" not in form.missing
    assert infer([f"{i}e{i % 3}" for i in range(60)]) is None


def test_ordinals_are_no_amounts():
    assert infer(["2. Middle Atlantic"] * 30) is None
    assert infer([f"{i % 5}. Bezirk" for i in range(30)]) is None
    assert infer([f"{i}.5 kg" for i in range(30)]).unit == "kg"


def test_why_a_column_is_not_read_as_numbers():
    said, rows = [], [(f"{i / 8}" if i % 20 else "lost", i % 2, i % 3) for i in range(80)]
    Table(data=write("a.csv", [("level", "x", "y"), *rows])).load(said.append)
    assert said[0] == "level: 4 of 80 cells are no numbers (lost): it is not read as numbers."
    nil = [(cell.replace("lost", "nil"), *rest) for cell, *rest in rows]
    form = infer([cell for cell, *_ in nil])
    assert np.isnan(parse(form, ["nil"])).all()


def test_targets_with_marks_for_missing_values():
    """Of a number they are missing, however many; of classes they are one, which is said."""
    said, rows = [], [(i % 7, "NA" if i % 3 == 0 else f"{i / 8}") for i in range(90)]
    dataset = Table(data=write("a.csv", [("x", "y"), *rows])).load(said.append)
    assert len(dataset.examples) == 60 and "30 rows have no y (NA): dropped." in said
    rows = [(i % 7, ("NA", "no", "yes")[i % 3]) for i in range(90)]
    Table(data=write("b.csv", [("x", "y"), *rows])).load(said.append)
    assert any(line.startswith("y: 30 rows have 'NA', which is a class here") for line in said)


def test_few_whole_numbers_that_are_rare_are_no_classes():
    rows = [(i, [3, 4, *range(20, 35)][i % 5 if i < 25 else i % 17]) for i in range(40)]
    dataset = Table(data=write("a.csv", [("x", "y"), *rows])).load(print)
    assert not dataset.class_names and len(dataset.examples) == 40
