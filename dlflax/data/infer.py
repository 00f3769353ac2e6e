"""Inference of a data source from a user's data: a path, a data frame, arrays, texts or a series.

Data in memory become a file of the run folder, so that a resumed run reads the same examples by the
code that reads a user's file. Images in memory stay `Arrays`: as files they would be decoded anew.
"""

import dataclasses
import io
import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from dlflax.data.arrays import Arrays
from dlflax.data.dataset import Source
from dlflax.data.encoder import is_frame, is_series
from dlflax.data.image.folder import ImageFolder
from dlflax.data.order import hold_out
from dlflax.data.series import Series
from dlflax.data.table import Table, delimited, number_formats, target_type
from dlflax.data.table.raw_table import RawTable, as_column, as_texts, is_text, read_table
from dlflax.data.table.source import MIN_CLASS_ROWS, MIN_WORDS
from dlflax.data.table.text_tables import LABEL_COLUMNS, TABLE, TEXT_COLUMNS
from dlflax.data.text import Text
from dlflax.errors import InputError

TASKS = {"auto": "auto", "classification": "classes", "regression": "number", "forecast": ""}
KNOWN = (
    "a data frame, arrays X and y, a path to a file or a folder, texts and their labels, or a "
    "series"
)
TEST_SHARE = 0.2
Log = Callable[[str], None]


class Inferred(NamedTuple):
    """A data source, and the file that it reads, if the data are in memory."""

    source: Source
    """Its `data` is the path of `file`, once that is written."""
    file: str = ""
    """Name of the file: data.parquet."""
    content: bytes = b""


def infer_source(data: Any, target: Any = None, task: str = "auto", log: Log = print) -> Inferred:
    """Returns the source of a user's data. target: a column's name, or a value for each example.

    task: classification, regression or forecast, else auto, which infers it from the target. Raises
    InputError for data of no kind that can be inferred, and for targets that do not fit."""
    if task not in TASKS:
        raise InputError(f"task {task!r} must be one of {', '.join(TASKS)}.")
    if isinstance(data, str | Path):
        return _from_path(Path(data).expanduser(), target, task)
    if isinstance(data, Mapping):
        table = _table_of({str(name): _as_list(values) for name, values in data.items()})
        return _from_table(table, target, task, log)
    is_rows = isinstance(data, Sequence) and len(data) and isinstance(data[0], Mapping)
    if is_rows or is_frame(data) and not _is_arrow_column(data):
        return _from_table(_read_frame(data, task, log), target, task, log)
    column = _column(data)
    if column is not None:
        return _from_column(data, column, target, task, log)
    return _from_array(data, target, task, log)


def _from_path(path: Path, target: Any, task: str) -> Inferred:
    if target is not None and not isinstance(target, str):
        raise InputError(f"{path}: target must be the name of a column, not {target!r:.40}.")
    if not path.exists():
        raise InputError(f"{path} does not exist: give {KNOWN}.")
    if path.is_dir():
        return Inferred(_folder_source(path, target, task))
    if task == "forecast":
        return Inferred(Series(data=path, target=target))
    if task != "regression" and _is_text_file(path, target):
        return Inferred(Text(data=path))
    return Inferred(Table(data=path, target=target or "", target_type=TASKS[task]))


def _folder_source(path: Path, target: str | None, task: str) -> Source:
    is_text = any(path.glob("*.txt")) or any(path.glob("*/*.txt"))
    if task == "forecast" or is_text and (target is not None or task == "regression"):
        raise InputError(
            f"{path} is a folder, whose examples are of classes: give no target, and no other task."
        )
    if is_text:
        return Text(data=path)
    columns = () if target is None else (target,)  # of labels_csv
    kind = "auto" if task == "classification" else TASKS[task]
    return ImageFolder(dataset="", data=path, target=columns, target_type=kind)


def _is_text_file(path: Path, target: str | None) -> bool:
    """True for a file with a column of texts and one of labels, by their names alone."""
    if not (match := TABLE.search(path.name)) or match[2]:
        return False
    with open(path, "rb") as file:
        start = file.read(delimited.SNIFF_BYTES).removeprefix(b"\xef\xbb\xbf")
    line = start.decode(errors="ignore").partition("\n")[0]
    names = re.findall(r'"(\w+)":', line) if match[1].lower() == "jsonl" else re.split(
        f"[{delimited.DELIMITERS}]", line
    )  # fmt: skip
    names = [name.strip(' "\r').lower() for name in names]
    return (
        len(names) == 2
        and sum(name in TEXT_COLUMNS for name in names) == 1
        and sum(name in LABEL_COLUMNS for name in names) == 1
        and (target is None or target.lower() in LABEL_COLUMNS)
    )


def _read_frame(data: Any, task: str, log: Log) -> RawTable:
    if task == "forecast" and hasattr(data, "iloc"):
        data = _times_as_column(data)
    return read_table(data, log=log)


def _times_as_column(data: Any) -> Any:
    """Returns a pandas frame whose index, if it has times, is its column "time"."""
    kind = type(data.index).__name__
    if kind not in ("DatetimeIndex", "PeriodIndex"):
        return data
    times = data.index.astype(str) if kind == "PeriodIndex" else data.index
    name = "time" if data.index.name is None else data.index.name
    return data.reset_index(drop=True).assign(**{str(name): times})


def _from_table(table: RawTable, target: Any, task: str, log: Log) -> Inferred:
    if target is not None and not isinstance(target, str | int):
        table, target = _add_target(table, target)
    if target is not None and str(target) not in table.columns:
        raise InputError(
            f"target {target!r} is no column of {table.place}, which has "
            f"{', '.join(table.columns)!s:.200}."
        )
    target = None if target is None else str(target)
    if task == "forecast":
        return Inferred(Series(target=target), "data.parquet", _parquet(table))
    if len(table.columns) < 2:
        raise InputError(
            f"{table.place} has one column, {next(iter(table.columns))}: give a target too, or "
            "task='forecast' for a series."
        )
    target = target or list(table.columns)[-1]
    inputs = [name for name in table.columns if name != target]
    if task != "regression" and len(inputs) == 1 and _has_sentences(table.columns[inputs[0]]):
        return _from_texts(table.columns[inputs[0]], table.columns[target], log)
    source = Table(target=target, target_type=TASKS[task])
    return Inferred(source, "data.parquet", _parquet(table))


def _add_target(table: RawTable, target: Any) -> tuple[RawTable, str]:
    """Returns (the table with one more column, its name)."""
    values = _target_values(target, len(table))
    name = getattr(target, "name", None)
    name = str(name) if name is not None and str(name) not in table.columns else "target"
    while name in table.columns:
        name += "_"
    return dataclasses.replace(table, columns={**table.columns, name: values}), name


def _has_sentences(column: Any) -> bool:
    """True for texts of several words, most of which occur once."""
    if not is_text(column):
        return False
    texts = column.drop_null()
    if not len(texts) or len(texts.unique()) < len(texts) / 2:
        return False
    words = pc.list_value_length(pc.utf8_split_whitespace(texts))
    return pc.mean(words).as_py() >= MIN_WORDS


def _from_texts(texts: Any, labels: Any, log: Log) -> Inferred:
    """Returns a source of texts and their labels. Drops examples without one of them."""
    rows = list(zip(as_texts(texts).to_pylist(), as_texts(labels).to_pylist(), strict=True))
    full = [(text, label) for text, label in rows if text and label]
    if not full:
        raise InputError("the texts have no labels: give a label for each text.")
    if len(full) < len(rows):
        log(f"{len(rows) - len(full):,} of {len(rows):,} texts have no text or no label: dropped.")
    lines = [json.dumps({"text": text, "label": label}) for text, label in full]
    return Inferred(Text(), "data.jsonl", ("\n".join(lines) + "\n").encode())


def _from_column(data: Any, column: Any, target: Any, task: str, log: Log) -> Inferred:
    """Returns a source of one column: texts, which need targets, or a series, which needs none."""
    if not len(column):
        raise InputError(f"the data are empty: give {KNOWN}.")
    if is_text(column):
        if Path(column[0].as_py() or "").suffix and Path(column[0].as_py()).is_file():
            raise InputError(
                f"{column[0].as_py()} is a file: give the path of its folder, with a folder for "
                "each class, not a list of files."
            )
        if target is None or task in ("regression", "forecast"):
            raise InputError(
                "texts need a label each, and task='classification': give fit(texts, labels)."
            )
        return _from_texts(column, _target_values(target, len(column)), log)
    if target is not None or task not in ("auto", "forecast"):
        raise InputError(
            f"the inputs are one column of {len(column):,} values: give X as (n, columns) with a "
            "target, or a series without one."
        )
    columns = {"value": column}
    if is_series(data):
        name = str(data.name) if data.name is not None else "value"
        frame = _times_as_column(data.to_frame(name))
        columns = {str(n): as_column(frame[n].tolist()) for n in frame.columns}
        return Inferred(Series(target=name), "data.parquet", _parquet(_table_of(columns)))
    return Inferred(Series(target="value"), "data.parquet", _parquet(_table_of(columns)))


def _from_array(data: Any, target: Any, task: str, log: Log) -> Inferred:
    """Returns a source of an array (n, columns), or of images (n, h, w) or (n, h, w, c)."""
    try:
        array = np.asarray(data)
    except Exception as error:  # rows of several lengths, a tensor on a device
        raise InputError(f"a {type(data).__name__} is no array: give {KNOWN}.") from error
    if array.ndim not in (2, 3, 4) or not array.size or array.dtype.kind not in "fiubOUS":
        raise InputError(
            f"a {type(data).__name__} of {array.dtype} in shape {array.shape} is no data that fit "
            f"takes: give {KNOWN}."
        )
    if target is None or isinstance(target, str) or task == "forecast":
        raise InputError(
            f"an array of shape {array.shape} needs a target for each of its {len(array):,} rows: "
            "give fit(X, y)."
        )
    if array.ndim > 2:
        return Inferred(_image_arrays(array, target, task, log))
    columns = {f"x{i}": _as_list(array[:, i]) for i in range(array.shape[1])}
    return _from_table(_table_of(columns), _target_values(target, len(array)), task, log)


def _image_arrays(images: np.ndarray, target: Any, task: str, log: Log) -> Arrays:
    """Returns images and their targets as `Arrays`. A fifth of the images are the test split."""
    images = _as_bytes(images[..., None] if images.ndim == 3 else images)
    cells = _table_of({"target": _target_values(target, len(images))})
    formats = number_formats.infer_formats(cells, ("target",), log=log)
    form = formats["target"]
    values = target_type.infer_numbers(cells, "target", TASKS[task], log, form, MIN_CLASS_ROWS)
    if values is None:
        texts = target_type.normalize_classes(cells.columns["target"])
        images, texts = images[texts != ""], texts[texts != ""]
        names, targets, keep = target_type.encode_classes(texts, MIN_CLASS_ROWS, "images", log)
    else:
        names, keep, targets = (), ~np.isnan(values), np.float32(values[~np.isnan(values)])
    images = images[keep]
    if len(images) < 10:
        raise InputError(f"there are {len(images)} images with a target: give 10 or more.")
    in_test = hold_out(targets, TEST_SHARE, 0, 3, left=2)
    train, test = (
        {"inputs": images[rows], "targets": targets[rows]} for rows in (~in_test, in_test)
    )
    return Arrays(train, test, class_names=names, name="images")


def _as_bytes(images: np.ndarray) -> np.ndarray:
    """Returns images as uint8. Raises InputError for others than gray or RGB ones in 0..255 or,
    floats, in 0..1, as `predict` takes them."""
    if images.shape[-1] not in (1, 3):
        raise InputError(
            f"images of shape {images.shape} must be (n, h, w), or (n, h, w, c) with 1 or 3 "
            "channels."
        )
    white = 1 if images.dtype.kind == "f" else 255
    if images.dtype.kind not in "fiu" or not ((images >= 0) & (images <= white)).all():
        raise InputError(
            f"images of {images.dtype} must have pixels from 0 to 255 as integers, or from 0 to 1 "
            "as floats."
        )
    return np.round(images * 255).astype(np.uint8) if white == 1 else images.astype(np.uint8)


def _target_values(target: Any, count: int) -> Any:
    """Returns the values of a target as a column. Raises InputError for another number of them."""
    if is_frame(target) and not _is_arrow_column(target):
        table = read_table(target)
        column = next(iter(table.columns.values())) if len(table.columns) == 1 else None
    else:
        values = np.asarray(target) if hasattr(target, "__array__") else target
        is_flat = isinstance(values, np.ndarray) and values.ndim == 2 and values.shape[1] == 1
        column = _column(values[:, 0] if is_flat else target)
    if column is None:
        raise InputError(f"a target of {type(target).__name__} must have one value per example.")
    if len(column) != count:
        raise InputError(f"there are {count:,} inputs, but {len(column):,} targets.")
    return column


def _column(data: Any) -> Any:
    """Returns one column of values as Arrow array, or object (n,) where they have several types;
    None for data of another shape."""
    if is_series(data):
        return as_column(data.tolist())
    if _is_arrow_column(data):
        return as_column(pa.chunked_array(data).to_pylist() if hasattr(
            data, "__arrow_c_stream__") else pa.array(data).to_pylist())  # fmt: skip
    if isinstance(data, Sequence) and not isinstance(data, str | bytes):
        is_scalar = all(v is None or np.ndim(v) == 0 and not isinstance(v, Mapping) for v in data)
        return as_column(list(data)) if is_scalar else None
    if getattr(data, "ndim", None) == 1 and hasattr(data, "__array__"):
        return as_column(_as_list(np.asarray(data)))
    return None


def _is_arrow_column(data: Any) -> bool:
    """True for an array of Arrow, polars and the like."""
    names = set(dir(data))
    has_arrow = bool({"__arrow_c_stream__", "__arrow_c_array__"} & names)
    return has_arrow and not {"columns", "column_names", "schema"} & names


def _as_list(values: Any) -> Any:
    """Returns values as Python's or NumPy's, for `as_column`."""
    if isinstance(values, np.ndarray):
        return [v.decode(errors="replace") if isinstance(v, bytes) else v for v in values.tolist()]
    return list(values) if isinstance(values, Iterable) else [values]


def _table_of(columns: Mapping[str, Any]) -> RawTable:
    arrays = {
        name: values if isinstance(values, pa.Array | np.ndarray) else as_column(values)
        for name, values in columns.items()
    }
    table = RawTable(arrays, "the data")
    if len({len(array) for array in arrays.values()}) > 1 or not len(table):
        raise InputError("the columns must have the same number of values, one or more.")
    return table


def _parquet(table: RawTable) -> bytes:
    """Returns the table as a Parquet file."""
    from pyarrow import parquet

    columns = {
        name: column if isinstance(column, pa.Array) and "view" not in str(column.type)
        else as_texts(column)
        for name, column in table.columns.items()
    }  # fmt: skip
    file = io.BytesIO()
    parquet.write_table(pa.table(columns), file)
    return file.getvalue()
