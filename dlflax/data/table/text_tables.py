"""Reader of .csv, .tsv and .jsonl files with a text and a label column."""

import csv
import json
import re
from pathlib import Path

import pyarrow as pa

from dlflax.data import idx
from dlflax.data.table import delimited
from dlflax.data.table.delimited import Log
from dlflax.errors import InputError
from dlflax.files import pluralize

TEXT_COLUMNS = [
    "text", "sentence", "review", "sms", "message", "content", "comment", "tweet", "body",
]  # fmt: skip
LABEL_COLUMNS = ["label", "class", "sentiment", "target", "category", "polarity", "rating"]
TABLE = re.compile(r"\.(csv|tsv|jsonl)(\.gz)?$", re.IGNORECASE)


def read_table(path: Path, kind: str, log: Log) -> tuple[list[str], list[str]]:
    """Returns (texts, labels) of a csv, tsv or jsonl file."""
    content = _read(path, log)
    if not content or content.isspace():
        raise InputError(f"{path} is empty: it should have a text and a label column.")
    read = _json_columns if kind == "jsonl" else _csv_columns
    header, columns, lines = read(path, content, kind)
    text_columns, label_columns = (
        [index for index, name in enumerate(header) if name.strip().lower() in names]
        for names in (TEXT_COLUMNS, LABEL_COLUMNS)
    )
    if len(text_columns) == len(label_columns) == 1:
        indices = text_columns[0], label_columns[0]
        columns = [columns[index] for index in indices]
        for index, column in zip(indices, columns, strict=True):
            if None in column:
                line = lines[column.index(None)]
                raise InputError(
                    f"{path}, line {line} has no {quote(header[index])}: every line needs a text "
                    "and a label."
                )
    elif not text_columns and not label_columns and len(header) == 2 and kind != "jsonl":
        columns = [[name, *column] for name, column in zip(header, columns, strict=True)]
    else:
        raise _unknown_columns(path, header)

    texts, labels = columns
    if not label_columns:
        distinct = [len(set(column)) for column in columns]
        if distinct[0] < distinct[1]:
            texts, labels = labels, texts
        # A unique first label is a header with unknown names.
        if distinct[0] == distinct[1] or labels[0] not in set(labels[1:]):
            raise _unknown_columns(path, header)
    if not texts:
        raise InputError(f"{path} has no examples below its header.")
    labels = [label.strip() for label in labels]
    if "" in labels:
        text = quote(texts[labels.index("")])
        raise InputError(f"{path} has an empty label for the text {text}: every text needs one.")
    return texts, labels


def _unknown_columns(path: Path, names: list[str]) -> InputError:
    return InputError(
        f"{path} has the columns {quote_all(names)}, of which text and label cannot be inferred: "
        f"name one of them {', '.join(TEXT_COLUMNS)} and one {', '.join(LABEL_COLUMNS)}."
    )


def _csv_columns(path: Path, content: bytes, kind: str) -> tuple[list, list[list], list[int]]:
    """Returns (the header, the columns, the line of each row)."""
    tab = kind == "tsv"  # without quoting
    start = content[: delimited.SNIFF_BYTES].decode(errors="ignore")
    mark = "\t" if tab else delimited.sniff_delimiter(start)
    quoting = csv.QUOTE_NONE if tab else csv.QUOTE_MINIMAL
    try:
        header = delimited.read_header(content, mark, quoting=quoting)
        table, ragged = delimited.parse_csv(content, mark, len(header), quote=not tab and '"')
    except csv.Error as error:
        raise InputError(f"{path}, {error}.") from None
    except (ValueError, pa.ArrowException) as error:
        raise InputError(f"{path} is not valid {kind}: {' '.join(str(error).split())}.") from None
    lines = delimited.line_numbers(content, len(table) + len(ragged), quoted=not tab)
    if ragged:
        (row, cells), *_ = ragged
        raise InputError(
            f"{path}, line {lines[row]} has {pluralize(cells, 'cells')} instead of {len(header)}."
        )
    return header, [column.to_pylist()[1:] for column in table.columns], lines[1:].tolist()


def _json_columns(path: Path, content: bytes, kind: str) -> tuple[list, list[list], list[int]]:
    """Returns (the keys of the first object, their values by key, the line of each object)."""
    rows, lines = delimited.read_json_lines(content, path)
    values = ([row.get(key) for row in rows] for key in rows[0])
    return list(rows[0]), [
        [v if v is None or isinstance(v, str) else json.dumps(v) for v in column]
        for column in values
    ], lines  # fmt: skip


def read_text(path: Path, log: Log) -> str:
    """Returns the text of a file, gzip or not, or raises InputError."""
    return _read(path, log).decode()


def _read(path: Path, log: Log) -> bytes:
    """Returns a file's content in UTF-8."""
    try:
        return delimited.to_utf8(idx.read_bytes(path), path, log)
    except ValueError as error:
        raise InputError(f"{path}: {error}.") from None


def quote(text: str) -> str:
    """Returns the repr of up to 60 characters."""
    return repr(text if len(text) <= 60 else f"{text[:60]}...")


def quote_all(names) -> str:
    """Quotes up to eight names."""
    names = list(names)
    return ", ".join(map(quote, names[:8])) + (f" and {len(names) - 8} more" * (len(names) > 8))
