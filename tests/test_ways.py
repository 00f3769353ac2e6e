"""One row, one answer: by every file, frame, request, and the exported model."""

import csv
import datetime as dt
import json
from decimal import Decimal
from pathlib import Path

import numpy as np
import onnxruntime
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest
from starlette.testclient import TestClient
from test_export import untrained

from dlflax import data, models
from dlflax.data.encoder import Upload
from dlflax.data.table.columns import CategoryColumn, NumberColumn, TimeColumn
from dlflax.data.table.raw_table import read_table
from dlflax.errors import InputError
from dlflax.inference import export, serve, serve_inputs

pytestmark = pytest.mark.usefixtures("place")
ROWS = 60
QUICK = 4


def write(name, columns, delimiter=","):
    """columns: name -> texts."""
    with open(name, "w", newline="", encoding="utf-8") as file:
        rows = zip(*columns.values(), strict=True)
        csv.writer(file, delimiter=delimiter).writerows([list(columns), *rows])
    return Path(name)


def cells(kind, rng):
    """(the typed values of a column of this kind, how a file writes one)."""
    numbers = np.round(rng.normal(0, 3000, ROWS), 2).tolist()
    days = [dt.datetime(2019, 3, 1) + dt.timedelta(int(d)) for d in rng.integers(0, 900, ROWS)]
    hours = [day + dt.timedelta(minutes=int(m)) for day, m in zip(days, rng.integers(0, 1440, ROWS),
             strict=True)]  # fmt: skip
    swapped = str.maketrans(",.", ".,")
    pick = lambda *levels: [levels[i] for i in rng.integers(0, len(levels), ROWS)]  # noqa: E731
    return {
        "float": (numbers, repr),
        "thousands": (numbers, "{:,.2f}".format),
        "comma": (numbers, lambda v: f"{v:,.2f}".translate(swapped)),
        "apostrophe": (numbers, lambda v: f"{v:,.2f}".replace(",", "’")),
        "narrow": (numbers, lambda v: f"{v:,.2f}".replace(",", "\u202f")),
        "accountant": (numbers, lambda v: f"({-v:,.2f})" if v < 0 else f"{v:,.2f}"),
        "minus behind": (numbers, lambda v: f"{-v:.2f}-" if v < 0 else f"{v:.2f}"),
        "dollars": (numbers, lambda v: f"$({-v:.2f})" if v < 0 else f"$ {v:.2f}"),
        "share": (numbers, lambda v: f"{v:.2f}%"),
        "science": (numbers, lambda v: f"{v:.9e}"),
        "tiny": ([v * 1e-9 for v in numbers], repr),
        "big": ([1.7e9 + v for v in numbers], repr),
        "int": ([int(v) for v in numbers], str),
        "zeros": ([abs(int(v)) for v in numbers], lambda v: f"{v:05}"),
        "gaps": ([None if i % 5 == 0 else v for i, v in enumerate(numbers)], repr),
        "empty int": ([None if i % 5 == 0 else int(v) for i, v in enumerate(numbers)], str),
        "odd": ([None if i == 7 else v for i, v in enumerate(numbers)], repr),
        "day": (days, lambda v: v.strftime("%Y-%m-%d")),
        "german day": (days, lambda v: v.strftime("%d.%m.%Y")),
        "american hour": (hours, lambda v: v.strftime("%m/%d/%Y %I:%M %p")),
        "named day": (days, lambda v: v.strftime("%d %b %Y")),
        "iso": (hours, lambda v: v.isoformat()),
        "no day": ([d if i % 6 else None for i, d in enumerate(days)], "{:%Y/%m/%d}".format),
        "clock": ([h.time() for h in hours], lambda v: f"{v:%H:%M:%S}"),
        "bool": (pick(True, False), str),
        "yes": (pick("yes", "no"), str),
        "no bool": (pick(True, False, None), str),
        "capitals": (pick("Red", "BLUE", "green", "grün"), str),
        "levels": (pick("1", "2", "10", "A"), str),
        "marks": (pick('a,b', 'c"d', "e\nf", "g;h", "i j", "√ü😀"), str),
        "rare": (pick("x", "y", None, "z"), str),
        "text": ([f"{a} {b} day, number {i}" for i, (a, b) in enumerate(
            zip(pick("good", "bad"), pick("old", "new"), strict=True))], str),
        "constant": (["same"] * ROWS, str),
        "id": ([12345678901234560000 + int(v) for v in rng.integers(0, 3, ROWS)], str),
        "names": ([f"k{i}" for i in range(ROWS)], str),
    }[kind]  # fmt: skip


TABLES = [
    ("float", "gaps", "capitals", "day", "bool"), ("comma", "german day", "marks", "text"),
    ("accountant", "clock", "rare", "empty int"), ("dollars", "american hour", "levels", "id"),
    ("thousands", "iso", "yes"), ("apostrophe", "named day", "no bool"),
    ("narrow", "no day", "constant", "int"), ("minus behind", "text", "bool"), ("share", "names"),
    ("science", "tiny", "big"), ("zeros", "odd", "float"), ("gaps", "empty int"), ("day",),
    ("clock", "clock"), ("marks", "capitals", "levels"), ("text", "text"), ("no bool", "rare"),
    ("big", "no day", "yes", "id"), ("comma", "share"), ("int", "iso", "text", "dollars"),
]  # fmt: skip
NAMES = [
    "raw",
    "inputs",
    "outputs",
    "a,b",
    'q"',
    "two\nlines",
    " x y ",
    "größe",
    "target",
    "n",
    "0",
]


def answers_of(predictor, given):
    examples = given if isinstance(given, data.Examples) else predictor.encoder.parse(given)
    return [list(v.get("probabilities", {}).values()) or v["values"]
            for _, v in predictor.answer_examples(examples)]  # fmt: skip


@pytest.mark.parametrize(
    "number",
    [n if n < QUICK else pytest.param(n, marks=pytest.mark.slow) for n in range(len(TABLES))],
)
def test_a_row_of_a_table_has_one_answer(number, tmp_path, capsys):
    rng = np.random.default_rng(number)
    names = [NAMES[(3 * number + i) % len(NAMES)] for i in range(len(TABLES[number]))]
    columns = {name: cells(kind, rng) for name, kind in zip(names, TABLES[number], strict=True)}
    columns["beside"] = np.round(rng.normal(size=ROWS), 3).tolist(), repr
    columns["y z"] = cells("capitals" if number % 3 == 0 else "float", rng)
    texts = {
        name: ["" if value is None else form(value) for value in values]
        for name, (values, form) in columns.items()
    }
    if "odd" in TABLES[number]:
        texts[names[TABLES[number].index("odd")]][7] = "see note"
    delimiter = ";" if "comma" in TABLES[number] else ",;\t|"[number % 4]
    path = write("table.csv", texts, delimiter)
    task = "classification" if number % 3 == 0 else "regression"
    predictor = untrained(data.Table(data=path), task, models.MLP((8,)), tmp_path)
    wanted = np.array(answers_of(predictor, str(path)))
    assert np.ptp(wanted, 0).min() > 1e-3 * np.abs(wanted).max()
    scale = np.abs(wanted).max()

    def check(given, rows=slice(None), what=""):
        np.testing.assert_allclose(
            np.array(answers_of(predictor, given)) / scale, wanted[rows] / scale, atol=1e-6,
            rtol=0, err_msg=what,
        )  # fmt: skip

    typed = [dict(zip(columns, row, strict=True)) for row in zip(*(c[0] for c in columns.values()),
             strict=True)]  # fmt: skip
    frame = pd.DataFrame(typed)
    for name in columns:  # as pandas has them from a file: integers beside gaps are floats
        if isinstance(typed[0][name], dt.datetime):
            frame[name] = pd.to_datetime(frame[name])
    objects = frame.astype(object).where(frame.notna(), None)
    written = pd.DataFrame(texts)
    frame.to_parquet("a.parquet")
    frame.to_feather("a.feather")
    written.assign(beside=frame["beside"]).to_excel("a.xlsx", index=False)
    if not {"id", "tiny"} & {*TABLES[number]}:  # a sheet has 15 digits
        frame.to_excel("b.xlsx", index=False)
    lines = [json.dumps(row, default=str) for row in typed]
    Path("a.jsonl").write_text("\n".join(lines), "utf-8")
    ways = {
        "parquet": "a.parquet", "feather": "a.feather", "excel": "a.xlsx", "jsonl": "a.jsonl",
        "frame": frame, "objects": objects, "texts": written, "polars": pl.from_pandas(frame),
        "arrow": pa.table(frame), "nullable": frame.convert_dtypes(), "rows": typed,
        "category": frame.astype({n: "category" for n in frame if frame[n].nunique() < 9}),
        "upload": Upload(path.read_bytes(), "a.csv"),
        "reversed": frame[list(frame)[::-1]], "index": frame.set_index("beside"),
        "more": frame.assign(more=1), "asked": frame.drop(columns="y z"),
    }  # fmt: skip
    if Path("b.xlsx").exists():
        ways["typed excel"] = "b.xlsx"
    for what, given in ways.items():
        check(given, what=what)
    for given in (frame.iloc[[5]], frame.iloc[5], typed[5:6], written.iloc[5].to_dict()):
        check([given] if isinstance(given, dict) else given, [5])
    body = json.dumps({"rows": [json.loads(line) for line in lines]}).encode()
    for kind, content in (("application/json", body), ("text/csv", path.read_bytes())):
        (part,) = serve_inputs.split_request(predictor.encoder, kind, content)
        check(serve_inputs.read_part(predictor.encoder, part), what=kind)
    with TestClient(serve.app(predictor)) as client:
        served = client.post("/predict", content=body, headers={"content-type": "application/json"})
        found = [list(v.get("probabilities", {}).values()) or v["values"]
                 for v in served.json()["answers"]]  # fmt: skip
        np.testing.assert_allclose(np.array(found) / scale, wanted / scale, atol=1e-6, rtol=0)
    file = export.export(predictor, log=lambda _: None)
    raw = predictor.encoder.raw(predictor.encoder.parse("a.parquet"))
    (found,) = onnxruntime.InferenceSession(file).run(None, {"inputs": raw})
    np.testing.assert_allclose(found / scale, wanted / scale, atol=2e-6, rtol=0)


KINDS = [
    "iso",
    "german",
    "hours",
    "american",
    "zone",
    "months",
    "years",
    "rows",
    "clock",
    "quarter",
]


def series_columns(kind):
    """(texts of the columns of a series, its times as typed values)."""
    steps = range(ROWS)
    hours = [dt.datetime(2020, 1, 30, 3) + dt.timedelta(hours=i) for i in steps]
    days = [dt.datetime(2020, 1, 30) + dt.timedelta(i) for i in steps]
    months = [dt.datetime(2015 + i // 12, i % 12 + 1, 1) for i in steps]
    times, form = {
        "iso": (days, "%Y-%m-%d"), "german": (days, "%d.%m.%Y"), "hours": (hours, "%Y-%m-%d %H:%M"),
        "american": (hours, "%m/%d/%Y %I:%M %p"), "zone": (hours, "%Y-%m-%dT%H:%M:%S+01:00"),
        "months": (months, "%Y-%m"), "years": ([dt.datetime(1950 + i, 1, 1) for i in steps], "%Y"),
        "rows": (None, ""), "clock": (hours, "%Y-%m-%d"), "quarter": (
            [dt.datetime(2000 + i // 4, i % 4 * 3 + 1, 1) for i in steps], "%Y-%m"),
    }[kind]  # fmt: skip
    texts = {"t": [time.strftime(form) for time in times] if times else ["x"] * ROWS}
    if kind == "clock":
        texts["hour"] = [f"{time:%H:%M}" for time in times]
    if kind == "zone":
        times = [time.replace(tzinfo=dt.timezone(dt.timedelta(hours=1))) for time in times]
    return texts, times


@pytest.mark.parametrize(
    "kind", [k if i < 3 else pytest.param(k, marks=pytest.mark.slow) for i, k in enumerate(KINDS)]
)
def test_a_window_of_a_series_has_one_answer(kind, tmp_path, capsys):
    rng = np.random.default_rng(0)
    texts, times = series_columns(kind)
    values, beside = (np.round(rng.normal(1e4, 3000, ROWS), 2).tolist() for _ in "yp")
    comma = str.maketrans(",.", ".,") if kind in ("german", "months") else {}
    texts |= {"p": [f"{v:.2f}".translate(comma) for v in beside],
              "y": [f"{v:,.2f}".translate(comma) for v in values]}  # fmt: skip
    if kind in ("hours", "years"):  # newest first
        texts = {name: column[::-1] for name, column in texts.items()}
    path = write("s.csv", texts, ";" if comma else ",")
    source = data.Series(data=path, target="y", past_covariates=("p",), window=8, horizon=3)
    predictor = untrained(source, "forecast", models.MLP((8,)), tmp_path)
    ((_, own),) = predictor.answers([])
    frame = pd.DataFrame({"p": beside, "y": values})
    if times and kind != "clock":
        frame.insert(0, "t", pd.to_datetime(pd.Series(times)))
        frame.to_parquet("s.parquet")
    rows = [dict(zip(texts, row, strict=True)) for row in zip(*texts.values(), strict=True)]
    ways = [str(path), rows, pd.DataFrame(texts), pd.DataFrame(texts).convert_dtypes(),
            Upload(path.read_bytes(), "s.csv")]  # fmt: skip
    if kind != "clock":
        ways += [frame, frame.astype(object), pl.from_pandas(frame), frame.to_dict("records")]
    if "t" in frame:
        ways += ["s.parquet", frame.set_index("t"), frame.sample(frac=1, random_state=0)]
    for way in ways:
        examples = predictor.encoder.parse(way)
        ((_, answer),) = predictor.answer_examples(examples)
        np.testing.assert_allclose(answer["forecast"], own["forecast"], rtol=1e-6)
    for media, content in (("application/json", json.dumps({"rows": rows}).encode()),
                           ("text/csv", path.read_bytes())):  # fmt: skip
        (part,) = serve_inputs.split_request(predictor.encoder, media, content)
        examples = serve_inputs.read_part(predictor.encoder, part)
        ((_, answer),) = predictor.answer_examples(examples)
        assert answer["forecast"] == pytest.approx(own["forecast"], rel=1e-6)
    file = export.export(predictor, log=lambda _: None)
    window = np.float64([values, beside]).T[None, -8:]
    found = onnxruntime.InferenceSession(file).run(None, {"inputs": window})[0][0]
    np.testing.assert_allclose(found, own["forecast"], rtol=1e-6)


def test_a_text_has_one_answer(tmp_path):
    rng = np.random.default_rng(0)
    words = np.array(["good", "bad", "schön", "日本", "😀", "naïve", "x" * 300])
    texts = [" ".join(some) for some in rng.choice(words, (ROWS, 6))]
    path = write("texts.csv", {"text": texts, "label": [str(i % 2) for i in range(ROWS)]})
    source = data.Text(data=path, tokenizer="bpe", vocab_size=300)
    predictor = untrained(source, "classification", models.RNN(features=(4,)), tmp_path)
    asked = [*texts[:5], "never seen", 'a "quoted", one', "two\nlines", "good " * 4000]
    wanted = np.array(answers_of(predictor, asked))
    frame = pd.DataFrame({"text": asked})
    ways = [frame, frame["text"], frame.astype("category"), pl.from_pandas(frame), pa.table(frame),
            pl.Series("text", asked), frame["text"].astype(object)]  # fmt: skip
    for way in ways:
        np.testing.assert_allclose(answers_of(predictor, way), wanted, atol=1e-6)
    (part,) = serve_inputs.split_request(
        predictor.encoder, "application/json", json.dumps({"texts": asked}).encode()
    )
    served = serve_inputs.read_part(predictor.encoder, part)
    np.testing.assert_allclose(answers_of(predictor, served), wanted, atol=1e-6)
    for i, text in enumerate(asked):
        sent = Upload(text.encode())
        np.testing.assert_allclose(answers_of(predictor, sent), wanted[i : i + 1], atol=1e-6)
    file = export.export(predictor, log=lambda _: None)
    raw = predictor.encoder.raw(predictor.encoder.parse(asked))
    (found,) = onnxruntime.InferenceSession(file).run(None, {"inputs": raw})
    np.testing.assert_allclose(found, wanted, atol=1e-6)
    for wrong in ("", " \n", frame.assign(more=1), pd.Series(["a", None]), [1], pl.Series([1])):
        with pytest.raises(InputError):
            predictor.encoder.parse(wrong)


def encoder_of(path, **options):
    source = data.Table(data=path, **options)
    return data.make_splits(source, source.load(lambda _: None), 0.2, 0).encoder


def first_column(values, form=str, **options):
    rng = np.random.default_rng(0)
    beside = [f"{v:.3f}" for v in rng.normal(size=len(values))]
    texts = [form(value) for value in values]
    return encoder_of(write("a.csv", {"x": texts, "b": beside, "y": beside[::-1]}), **options)


def test_accountants_write_negative_numbers():
    encoder = first_column(range(-40, 40), lambda v: f"({-v},000)" if v < 0 else f"{v}.5")
    ask = [{"x": x, "b": 0} for x in ("(7)", "7-", "-7", "7−", "(1,234.5)", "(-7)", "7--", "()")]
    with pytest.raises(InputError, match="row 6") as error:
        encoder.parse(ask)
    assert [s.split(":")[0] for s in error.value.sentences] == [
        f"the list of rows, row {i}" for i in (6, 7, 8)
    ]
    raw = encoder.raw(error.value.examples)
    assert raw[:, 0].tolist() == [-7, -7, -7, -7, -1234.5]


def test_integers_that_float64_cannot_tell_apart_are_names():
    long = [str(12345678901234567890 + i % 3) for i in range(60)]
    (column, _) = first_column(long).columns
    assert isinstance(column, CategoryColumn) and len(column.levels) == 3
    pd.DataFrame({"x": [2**60 + i % 3 for i in range(60)], "y": range(60)}).to_parquet("a.parquet")
    encoder = encoder_of("a.parquet", target_type="number")
    assert isinstance(encoder.columns[0], CategoryColumn)
    given = [{"x": 2**60 + 1}, {"x": str(2**60 + 2)}, {"x": 2**60 + 9}]
    assert encoder.raw(encoder.parse(given)).tolist() == [[2], [3], [0]]
    far = first_column([10**18 + 10**15 * i for i in range(60)])  # of these it can
    assert isinstance(far.columns[0], NumberColumn)
    values = far.raw(far.parse([{"x": 10**400, "b": 1}]))
    assert np.isnan(values[0, 0])


def test_a_point_and_a_comma_that_may_both_part_thousands_are_refused():
    with pytest.raises(InputError, match=r"'1.234' \(line 2\) and '1,234' \(line 3\): write"):
        first_column(["1.234", "1,234"] * 30)
    first_column(["1.234", "1,234", "0.5"] * 20)  # which decides


def test_a_time_of_day_is_a_time():
    encoder = first_column([f"{i % 12 + 1}:{i % 60:02} {'ap'[i % 2]}m" for i in range(60)])
    assert isinstance(encoder.columns[0], TimeColumn)
    raw = encoder.raw(encoder.parse([{"x": "1:30 PM", "b": 0}]))
    assert raw[0, [0, 4]].tolist() == [13.5 / 24, 13.5 / 24]
    for wrong in ("13:30", "13:30 PM", "2024-01-01"):
        with pytest.raises(InputError, match="where training rows have a time such as 02:30 PM"):
            encoder.parse([{"x": wrong, "b": 0}])


def test_one_odd_cell_of_times_is_missing():
    days = pd.date_range("2024-01-01", periods=60, freq="25h")
    for form in ("%d.%m.%Y", "%Y-%m-%dT%H:%M:%S+02:00", "%I:%M:%S %p"):
        encoder = first_column(["See note", *(day.strftime(form) for day in days[1:])])
        (column, _) = encoder.columns
        assert isinstance(column, TimeColumn) and column.describe()["note"] == "no times: see note"
        raw = encoder.raw(encoder.parse([{"x": "see NOTE", "b": 0}, {"x": None, "b": 0}]))
        assert np.isnan(raw[:, :5]).all()
        with pytest.raises(InputError, match="the column x has 'other'"):
            encoder.parse([{"x": "other", "b": 0}])
    (column, _) = first_column(["see note"] * 9 + ["01.02.2024", "03.02.2024", "x"] * 17).columns
    assert isinstance(column, CategoryColumn)


def test_what_unpacks_to_much_is_refused(monkeypatch):
    frame = pd.DataFrame({"a": np.zeros(100_000, np.int8), "b": np.zeros(100_000, np.int8)})
    frame.to_parquet("a.parquet")
    frame[:3000].to_excel("a.xlsx")
    assert read_table(Path("a.parquet")) and read_table(Path("a.xlsx"))
    monkeypatch.setattr("dlflax.data.table.raw_table.max_file_bytes", lambda: 150_000)
    for name in ("a.parquet", "a.xlsx"):
        with pytest.raises(InputError, match="unpacked, it is larger than a quarter of the mem"):
            read_table(Path(name))


def test_a_clock_is_in_a_zone_as_in_training():
    naive = pd.date_range("2024-01-01", periods=60, freq="7h")
    berlin = naive.tz_localize("Europe/Berlin")
    for times, other in ((naive, berlin), (berlin, naive)):
        frame = pd.DataFrame({"t": times, "y": np.arange(60) / 7})
        frame.to_parquet("a.parquet")
        frame.to_csv("a.csv", index=False)
        encoder = encoder_of("a.parquet")
        wanted = encoder.raw(encoder.parse("a.parquet"))
        for given in (frame, "a.csv", frame.to_dict("records"), frame.astype(object)):
            np.testing.assert_allclose(encoder.raw(encoder.parse(given)), wanted)
        with pytest.raises(InputError, match="the data frame, row 1: the column t has"):
            encoder.parse(frame.assign(t=other))


def test_the_index_of_a_frame_is_no_target():
    frame = pd.DataFrame({"x": np.arange(60) / 7, "y": np.arange(60) / 3})
    frame[frame["x"] > 1].to_parquet("a.parquet")
    assert list(read_table(Path("a.parquet")).columns) == ["x", "y"]
    frame.set_index("x").to_parquet("b.parquet")
    assert list(read_table(Path("b.parquet")).columns) == ["x", "y"]


def test_values_of_any_type_are_read():
    for values, wanted in (
        ([Decimal("1.5"), None], [1.5, None]), ([dt.timedelta(hours=1)], [3600.0]),
        ([b"a ", b"b"], ["a", "b"]), ([[1, 2]], ["[1, 2]"]), ([pd.NA, pd.NaT, 1], [None, None, 1]),
        ([np.array([1, 2])], ["[1, 2]"]), ([dt.time(9, 5)], ["09:05:00"]), ([10**30], [10**30]),
    ):  # fmt: skip
        column = read_table([{"a": value} for value in values]).columns["a"]
        assert column.tolist() == wanted
        (column,) = read_table(
            pd.DataFrame({"a": pd.Series(values, dtype=object)})
        ).columns.values()
        assert column.tolist() == wanted


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        (pd.DataFrame([[1, 2]], columns=["a", "a"]), "the data frame has two columns 'a'"),
        ([{"1": 1, 1: 2}], "the list of rows has two columns '1'"),
        (pl.Series("a", [1]), "a Series is no table: give a data frame"),
        ([{"a": "\ud800"}], "a cell has '.ud800', a lone surrogate"),
        ([{"a": "\ud800"}, {"a": 1}], "a cell has '.ud800', a lone surrogate"),
    ],
)
def test_no_table_is_one_sentence(given, sentence):
    with pytest.raises(InputError, match=sentence):
        read_table(given)


def test_a_whole_number_is_a_class_however_it_is_written():
    names = ["007", "008", "010"]
    path = write(
        "a.csv", {"x": [f"{i}.5" for i in range(60)], "y": [names[i % 3] for i in range(60)]}
    )
    encoder = encoder_of(path)
    assert encoder.target.names == tuple(names)
    frame = pd.read_csv("a.csv")  # which has 7, 8 and 10
    assert encoder.parse_with_targets(frame).target.tolist() == [i % 3 for i in range(60)]
    path = write("b.csv", {"x": [f"{i}.5" for i in range(60)], "y": ["a\nb", "NA", "c"] * 20})
    encoder = encoder_of(path)
    assert encoder.parse_with_targets(path).target.tolist() == [1, 0, 2] * 20
    with pytest.raises(InputError, match="row 2, column y has a missing value.*keep_default_na"):
        encoder.parse_with_targets(pd.read_csv(path))


def test_the_form_of_unicode_decides_nothing(capsys):
    levels, size = ["gr\u00fcn", "blau"], "gr\u00f6\u00dfe"
    columns = {size: [levels[i % 2] for i in range(60)], "y": [f"{i / 7:.2f}" for i in range(60)]}
    encoder = encoder_of(write("a.csv", columns))
    given = [{"gro\u0308\u00dfe": "gru\u0308n"}, {"gro\u0308\u00dfe": "BLAU"}]
    assert encoder.raw(encoder.parse(given)).tolist() == [[2], [1]]
    assert "is read as größe" in capsys.readouterr().err


@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be"])
@pytest.mark.parametrize("heading", ["a", "é", "дата", "日本語"])
def test_utf_16_without_its_mark(encoding, heading):
    Path("a.csv").write_bytes(f"{heading},b\n1,{heading}\n".encode(encoding))
    assert list(read_table(Path("a.csv")).columns) == [heading, "b"]


def test_a_column_is_no_other_that_is_read():
    columns = {"a": [str(i * i % 61) for i in range(60)], "A": [str(i % 7) for i in range(60)]}
    encoder = encoder_of(write("a.csv", {**columns, "y": [f"{i / 7:.2f}" for i in range(60)]}))
    with pytest.raises(InputError, match="the list of rows lacks the column a,"):
        encoder.parse([{"A": 1}])
