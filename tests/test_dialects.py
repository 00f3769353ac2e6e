"""A table means the same in whatever dialect it is written, and by every way in."""

import bz2
import csv
import dataclasses
import functools
import gzip
import io
import lzma
import math
from datetime import datetime, timedelta
from pathlib import Path

import hypothesis
import numpy as np
import openpyxl
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest
from hypothesis import strategies as st

from dlflax.data import Table, make_splits
from dlflax.data.table.columns import CategoryColumn, NumberColumn, TextColumn, TimeColumn
from dlflax.data.table.raw_table import read_table
from dlflax.errors import InputError

pytestmark = pytest.mark.usefixtures("place")
ROWS = 60


def clean_rows():
    """Rows of typed values: with fractions and thousands, whole numbers, money, a time, levels, a
    yes or no, free text, a code, the target."""
    rng, rows = np.random.default_rng(0), []
    for i in range(ROWS):
        rows.append({
            "length": None if i % 13 == 5 else round(float(rng.normal(0, 3000)), 2),
            "count": int(rng.integers(0, 900)),
            "price": round(float(rng.uniform(1, 90_000)), 2),
            "day": None if i % 17 == 4 else datetime(2021, 1, 31) + timedelta(days=int(i * 11)),
            "colour": None if i % 11 == 3 else str(rng.choice(["red", "green", "dark blue"])),
            "member": bool(rng.random() < 0.5),
            "remark": " ".join(rng.choice(["good", "bad", "old", "loud", "far"], 4)) + f" {i}",
            "code": str(rng.choice(["1E5", "2E3", "1_11"])),
            "y": round(float(rng.normal(0, 2000)), 1),
        })  # fmt: skip
    return rows


def number(value, dialect):
    text = f"{value:,}" if dialect["thousands"] else f"{value}"
    marks = {",": dialect["thousands"], ".": dialect["decimal"]}
    return "".join(marks.get(letter, letter) for letter in text)


def cell(name, value, dialect):
    if value is None:
        return dialect["missing"]
    if isinstance(value, bool):
        return dialect["booleans"][value]
    if isinstance(value, datetime):
        return value.strftime(dialect["times"])
    if isinstance(value, str):
        return value
    return number(value, dialect) + (dialect["currency"] if name == "price" else "")


def write(path, rows, dialect):
    text = io.StringIO(newline="")
    quoting = csv.QUOTE_ALL if dialect["quoted"] else csv.QUOTE_MINIMAL
    writer = csv.writer(
        text, delimiter=dialect["delimiter"], quoting=quoting, lineterminator=dialect["end"]
    )
    writer.writerow(rows[0])
    for i, row in enumerate(rows):
        if dialect["blank"] and i % 20 == 7:
            text.write(dialect["end"])
        pad = " " * dialect["padded"]
        writer.writerow([pad + cell(name, value, dialect) for name, value in row.items()])
    content = text.getvalue().encode(dialect["encoding"])
    Path(path).write_bytes(gzip.compress(content) if str(path).endswith(".gz") else content)
    return Path(path)


CLEAN = {
    "delimiter": ",", "decimal": ".", "thousands": "", "missing": "", "booleans": ("False", "True"),
    "times": "%Y-%m-%d", "currency": "", "quoted": False, "end": "\n", "blank": False,
    "padded": False, "encoding": "utf-8",
}  # fmt: skip


@functools.cache
def clean_splits():
    """Returns the splits of the clean file, and the inputs of all of its rows."""
    splits = splits_of(write("clean.csv", clean_rows(), CLEAN))
    return splits, splits.encoder.encode(splits.encoder.parse("clean.csv"))["inputs"]


@pytest.mark.parametrize("content", [b" " * 25_000, b"   \n" * 9_000, b"\n" * 25_000])
def test_a_file_of_blanks_has_no_rows(content):
    Path("blank.csv").write_bytes(content)
    with pytest.raises(InputError, match="blank.csv"):
        splits_of(Path("blank.csv"))


@st.composite
def dialects(draw):
    """Any dialect that a file shows: a comma is no decimal mark between commas."""
    decimal = draw(st.sampled_from([".", ","]))
    other = {".": ",", ",": "."}[decimal]
    quoted = draw(st.booleans())
    return {
        "delimiter": draw(st.sampled_from([",", ";", "\t", "|"])), "decimal": decimal,
        "thousands": draw(st.sampled_from(["", other, " ", "\u00a0", "'"])),
        "missing": draw(st.sampled_from(["", "NA", "n/a", "null", "-", "?", "#N/A", "<NA>"])),
        "booleans": draw(st.sampled_from([
            ("False", "True"), ("false", "true"), ("FALSE", "TRUE"), ("no", "yes"), ("N", "Y"),
        ])),
        "times": draw(st.sampled_from([
            "%Y-%m-%d", "%d.%m.%Y", "%m/%d/%Y", "%d/%m/%Y", "%Y-%m-%dT%H:%M:%S", "%Y%m%d",
            "%d %b %Y", "%Y/%m/%d", "%B %d, %Y", "%Y-%m-%d %H:%M:%S.%f", "%m/%d/%Y %I:%M %p",
        ])),
        "currency": draw(st.sampled_from(["", " €", " USD"])), "quoted": quoted,
        "end": draw(st.sampled_from(["\n", "\r\n"])), "blank": draw(st.booleans()),
        "padded": draw(st.booleans()) and not quoted,
        "encoding": draw(st.sampled_from(["utf-8", "utf-8-sig", "utf-16", "cp1252"])),
    }  # fmt: skip


def splits_of(path, **options):
    source = Table(data=path, **options)
    return make_splits(source, source.load(lambda sentence: None), 0.2, 0)


def check_same(splits, right):
    assert [type(column) for column in splits.encoder.columns] == [
        type(column) for column in right.encoder.columns
    ]
    assert splits.encoder.target == right.encoder.target
    for part in ("train", "val", "test"):
        for name, array in getattr(right, part).items():
            np.testing.assert_array_equal(getattr(splits, part)[name], array, err_msg=name)


@hypothesis.settings(
    max_examples=40,
    deadline=None,
    derandomize=True,
    suppress_health_check=[hypothesis.HealthCheck.function_scoped_fixture],
)
@hypothesis.given(dialects())
def test_a_table_in_any_dialect_is_the_same(dialect):
    """The same encoder and the same inputs as its clean form; the clean file, asked of the encoder
    of the dialect, too, where its numbers are written in one way."""
    rows = clean_rows()
    right, wanted = clean_splits()
    path = write("table.csv.gz" if dialect["quoted"] else "table.csv", rows, dialect)
    splits = splits_of(path)
    check_same(splits, right)
    asked = splits.encoder.encode(splits.encoder.parse(str(path)))["inputs"]
    np.testing.assert_array_equal(asked, wanted)
    for row in (3, 4, 5):  # alone, in another order of the columns, with one more
        alone = {"more": 7, **dict(reversed(rows[row].items()))}
        one = write("one.csv", [alone], dialect)
        inputs = splits.encoder.encode(splits.encoder.parse(str(one)))["inputs"]
        np.testing.assert_array_equal(inputs, wanted[row : row + 1])
    typed = [{k: v.isoformat() if isinstance(v, datetime) else v for k, v in row.items()}
             for row in rows]  # fmt: skip
    inputs = splits.encoder.encode(splits.encoder.parse(typed))["inputs"]
    np.testing.assert_array_equal(inputs, wanted)


def test_what_each_column_is():
    columns = splits_of(write("clean.csv", clean_rows(), CLEAN)).encoder.columns
    kinds = {column.name: type(column) for column in columns}
    assert kinds == {
        "length": NumberColumn, "count": NumberColumn, "price": NumberColumn, "day": TimeColumn,
        "colour": CategoryColumn, "member": CategoryColumn, "remark": TextColumn,
        "code": CategoryColumn,
    }  # fmt: skip


def test_every_file_and_frame_is_the_same():
    rows = clean_rows()
    right = splits_of(write("clean.csv", rows, CLEAN))
    frame = pd.DataFrame(rows)
    frame.to_parquet("a.parquet")
    frame.to_feather("a.feather")
    frame.astype({"colour": "category"}).to_parquet("b.parquet")
    text = frame.assign(day=frame["day"].dt.strftime("%Y-%m-%d"))
    text.to_json("a.jsonl", orient="records", lines=True)
    book = openpyxl.Workbook()
    for row in (list(rows[0]), *([*row.values()] for row in rows)):
        book.active.append(row)
    book.save("a.xlsx")
    for name in ("a.parquet", "a.feather", "b.parquet", "a.jsonl", "a.xlsx"):
        check_same(splits_of(Path(name)), right)
    encoder = right.encoder
    wanted = encoder.encode(encoder.parse("clean.csv"))["inputs"]
    objects = frame.astype(object)
    objects.loc[0, "length"] = f"{rows[0]['length']}"  # texts beside numbers
    for given in ("a.parquet", "a.xlsx", frame, frame.convert_dtypes(), pl.from_pandas(frame),
                  pl.from_pandas(frame).to_arrow(), objects, text.to_dict("records")):  # fmt: skip
        np.testing.assert_array_equal(encoder.encode(encoder.parse(given))["inputs"], wanted)

    class HubDataset:  # as `datasets` 4 has it
        column_names = list(frame.columns)

        def with_format(self, name):
            assert name == "arrow"
            return pa.table(frame)

    np.testing.assert_array_equal(encoder.encode(encoder.parse(HubDataset()))["inputs"], wanted)
    one = encoder.encode(encoder.parse(frame.iloc[2]))["inputs"]
    np.testing.assert_array_equal(one, wanted[2:3])


def test_values_are_as_in_training(capsys):
    rows = [
        {
            "colour": ("red", "Blue", "blue")[i % 3],
            "member": ("yes", "no")[i % 2],
            "code": ("3", "4", "A", "B")[i % 4],
            "x": i / 7,
            "y": i % 5 + 0.5,
        }
        for i in range(80)
    ]
    encoder = splits_of(write("a.csv", rows, CLEAN)).encoder

    def inputs(**change):
        row = {"colour": "red", "member": "yes", "code": "3", "x": 0.5, **change}
        return encoder.encode(encoder.parse([row]))["inputs"][0]

    right = inputs()
    assert not capsys.readouterr().err
    for change in (
        {"colour": "RED"},
        {"member": True},
        {"member": 1},
        {"member": "Yes"},
        {"code": 3.0},
        {"code": 3},
        {"code": "3.0"},
        {"x": "0.5"},
        {"x": "5e-1"},
    ):
        np.testing.assert_array_equal(inputs(**change), right, err_msg=str(change))
    assert (inputs(member=False) != right).any() and (inputs(colour="Blue") != right).any()
    assert (inputs(colour="blue") != inputs(colour="Blue")).any()  # an exact one wins
    assert not capsys.readouterr().err
    other = inputs(colour="BLUE")  # two levels fit
    np.testing.assert_array_equal(other, inputs(colour="pink"))
    said = capsys.readouterr().err
    assert "1 of 1 rows have a colour that is no level of the training rows (pink)" in said
    with pytest.raises(InputError, match="the list of rows, row 1: the column x has 'half'"):
        inputs(x="half")
    with pytest.raises(InputError, match="the list of rows lacks the column x"):
        encoder.parse([{"colour": "red", "member": True, "code": 3}])
    frame = pd.DataFrame({"Colour": ["red"], "member ": ["yes"], "CODE": ["3"], "X": [0.5]})
    np.testing.assert_array_equal(encoder.encode(encoder.parse(frame))["inputs"][0], right)
    assert "the column Colour is read as colour" in capsys.readouterr().err


ODD = ("#N/A", ".", "-", "<NA>", "#DIV/0!", "n.d.", "inf", "see note", "k. A.", "5 or 6")


def test_one_odd_cell_is_missing():
    rng = np.random.default_rng(0)
    rows = [{f"x{k}": round(float(rng.normal()), 3) for k in range(len(ODD))} for _ in range(150)]
    rows = [{**row, "y": sum(row.values())} for row in rows]
    for k in range(len(ODD)):
        rows[10 * k][f"x{k}"] = ODD[k]
    path = write("a.csv", rows, {**CLEAN, "times": ""})
    encoder = splits_of(path).encoder
    assert [type(column) for column in encoder.columns] == [NumberColumn] * len(ODD)
    about = {row["column"]: row["note"] for row in encoder.columns_table()}
    assert about["x7"] == "no numbers: see note" and about["x1"] == ""
    raw = encoder.raw(encoder.parse(str(path)))
    assert [np.flatnonzero(np.isnan(raw[:, k])).tolist() for k in range(len(ODD))] == [
        [10 * k] for k in range(len(ODD))
    ]
    for k in range(30):  # more of them: another kind of column, which is said
        rows[k]["x9"] = "5 or 6"
    kinds = {c["column"]: c["type"] for c in splits_of(
        write("b.csv", rows, CLEAN)).encoder.columns_table()}  # fmt: skip
    assert kinds["x9"] in ("category", "dropped") and kinds["x8"] == "number"


def test_columns_without_names_and_numbers_as_a_header(capsys):
    Path("a.csv").write_text("a,b,y,\n" + "1,2,3,\n" * 3)
    said = []
    table = read_table(Path("a.csv"), log=said.append)
    assert list(table.columns) == ["a", "b", "y"]
    assert said == ["a.csv: column 4 has no name and no cells: dropped."]
    Path("b.csv").write_text(",a,y\n0,5,1\n1,6,2\n")
    assert list(read_table(Path("b.csv"), log=said.append).columns) == ["column 1", "a", "y"]
    assert said[1:] == ["b.csv: column 1 has no name: it is called 'column 1'."]
    Path("c.csv").write_text("1.5,2,3\n" * 30)
    with pytest.raises(InputError, match="c.csv has numbers in its first line|two columns"):
        Table(data=Path("c.csv")).load(print)
    Path("d.csv").write_text("1.5,2,3\n2.5,3,4\n" * 30)
    with pytest.raises(InputError, match="d.csv has numbers in its first line .1.5, 2, 3.: put a"):
        Table(data=Path("d.csv")).load(print)


def test_the_line_of_a_row_is_that_of_the_file():
    Path("a.csv").write_text('a,b\n\n1,"x\ny"\n\n2,z\n3,"w""\n"\n4,v\n')
    table = read_table(Path("a.csv"))
    assert [table.row_name(i) for i in range(4)] == [f"a.csv, line {n}" for n in (3, 6, 7, 9)]
    Path("b.csv").write_text('a,b\n\n1,"x\ny"\n\n2,z,3\n')
    with pytest.raises(InputError, match="b.csv, line 6 has 3 cells for 2 columns: put numbers"):
        read_table(Path("b.csv"))
    Path("c.csv").write_text('a,b\n1,5" pipe\n2,3\n')  # a quote that is none
    assert read_table(Path("c.csv")).row_name(1) == "c.csv, line 3"
    Path("d.csv").write_text("sep=;\na;b\n1;2,5\n")
    assert list(read_table(Path("d.csv")).columns) == ["a", "b"]
    Path("e.csv").write_bytes(b"a,b\r1,2\r3,4\r")
    assert read_table(Path("e.csv")).row_name(1) == "e.csv, line 3"


def test_good_rows_are_answered_when_one_is_bad():
    rows = [{"a": i / 3, "b": i % 7, "y": i / 3 + i % 7} for i in range(60)]
    encoder = splits_of(write("a.csv", rows, CLEAN)).encoder
    Path("ask.csv").write_text("\na,b\n" + "1.5,2\n" * 29 + "see note,3\n")
    with pytest.raises(InputError, match="ask.csv, line 32: the column a has 'see note'") as error:
        encoder.parse("ask.csv")
    assert len(error.value.examples) == 29 and len(error.value.sentences) == 1
    examples = error.value.examples
    assert examples.names[28] == "ask.csv, line 31"
    assert np.isfinite(encoder.encode(examples)["inputs"]).all()


@pytest.mark.parametrize(
    ("names", "right"),
    [
        (["none", "mild", "severe"], ("mild", "none", "severe")),
        (["NA", "n/a", "null"], ("NA", "n/a", "null")),
        (["1E1", "2E1", "3E2"], ("1E1", "2E1", "3E2")),
        (["1_1", "1_2", "1_10"], ("1_1", "1_10", "1_2")),
        (["0", "1", "0.0", "1.0"], ("0", "1")),
        (["-", "+", "?"], ("+", "-", "?")),
        (["1", "2", "10"], ("1", "2", "10")),
        (["True", "False", "unknown"], ("False", "True", "unknown")),
    ],
)
def test_the_names_of_classes(names, right):
    rows = [{"x": i, "kind": names[i % len(names)]} for i in range(12 * len(names))]
    splits = splits_of(write("a.csv", rows, CLEAN))
    assert splits.class_names == right
    if "1.0" not in names:
        examples = splits.encoder.parse_with_targets("a.csv")
        assert [right[i] for i in examples.target] == [row["kind"] for row in rows]


def test_dates_become_features():
    day = datetime(2020, 2, 28, 6)
    rows = [{"t": day + timedelta(days=i), "y": i + 0.5} for i in range(90)]
    encoder = splits_of(write("a.csv", rows, {**CLEAN, "times": "%d.%m.%Y %H:%M"})).encoder
    (column,) = encoder.columns
    raw = encoder.raw(encoder.parse("a.csv"))
    epoch = datetime(1970, 1, 1)
    for i in (0, 1, 2, 40):
        t = rows[i]["t"]
        right = [(t - epoch) / timedelta(days=1), t.year, t.month, t.weekday(), 0.25]
        np.testing.assert_allclose(raw[i], right)
    inputs = column.encode(raw[:3], np)
    months = inputs[:, column.elapsed.width() + column.year.width() :][:, :12]
    np.testing.assert_array_equal(months.argmax(1), [1, 1, 2])  # 28 and 29 February, 1 March
    assert not math.isnan(inputs.sum())
    assert dataclasses.replace(column) == column


def test_free_text_is_hashed_as_the_words_in_it():
    column = TextColumn("t")
    raw, _ = column.parse(np.array(["good old car", "Car, old: GOOD!", "bad car", ""], object))
    np.testing.assert_array_equal(raw[0], raw[1])
    np.testing.assert_allclose((raw**2).sum(1), [1, 1, 1, 0])
    assert 0 < raw[0] @ raw[2] < 1


@pytest.mark.parametrize("text", [
    'n,   a,     b\n"x, y",  "p", 1\n"z",     "q", 2\n',  # blanks before quotes
    'n a  b\n"x, y"   p 1\n\n z\tq    2 \n',
])  # fmt: skip
def test_cells_that_are_lined_up(text):
    Path("a.csv").write_text(text)
    table = read_table(Path("a.csv"))
    columns = {name: column.to_pylist() for name, column in table.columns.items()}
    assert columns == {"n": ["x, y", "z"], "a": ["p", "q"], "b": ["1", "2"]}
    assert table.row_name(1) == f"a.csv, line {len(text.splitlines())}"


def test_blanks_within_cells_cut_none():
    for text in ("name\nroom 12\nroom 13\nroom 14\n", "a b,c d\n1 2,3 4\n5 6,7 8\n",
                 "the text here\nall of it\nis text only\n",
                 'a,b\n"he said, ""3"" ",x\n'):  # fmt: skip
        Path("a.csv").write_text(text)
        rows = list(csv.reader(io.StringIO(text)))
        table = read_table(Path("a.csv"))
        columns = {name: column.to_pylist() for name, column in table.columns.items()}
        assert columns == {h: [c.strip() for c in cells] for h, *cells in zip(*rows, strict=True)}


def test_lines_above_the_header_and_packed_files_are_named():
    above = "Series: LNS14\nAge: 16 and over\n\n" + "a,b,c\n" + "1,2,3\n" * 9
    Path("a.csv").write_text(above)
    sentence = "^a.csv, line 4 has 3 cells for 1 column: remove the lines above the header"
    with pytest.raises(InputError, match=sentence):
        read_table(Path("a.csv"))
    for pack in (bz2.compress, lzma.compress, gzip.compress):
        Path("b.csv").write_bytes(pack(b"a,b\n1,2\n" * 99))
        with pytest.raises(InputError, match="b.csv .*it is compressed"):
            read_table(Path("b.csv"))


def test_levels_that_are_rare_are_counted_and_a_first_row_may_be_no_header():
    rows = [f"{'ab'[i % 2] if i < 40 else f'rare {i}'},{i % 3},{i % 2}" for i in range(60)]
    Path("a.csv").write_text("kind,x,y\n" + "\n".join(rows))
    source = Table(data=Path("a.csv"))
    splits = make_splits(source, source.load(print), 0.15, 0)
    column = splits.encoder.columns[0]
    assert column.levels == ("a", "b") and column.rare > 10
    assert splits.encoder.columns_table()[0]["note"] == f"a, b; other: {column.rare} rarer"
    said = []
    Path("b.csv").write_text("\n".join(f"place {i},{i % 7},9.{i},{i % 2}" for i in range(3, 60)))
    Table(data=Path("b.csv")).load(said.append)
    assert said[0].startswith("b.csv: its first line is read as the header, though it has the numb")
