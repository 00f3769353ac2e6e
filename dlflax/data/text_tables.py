"""A .csv, .tsv or .jsonl file with a text and a label column."""

import csv
import json
import re
from pathlib import Path

import pyarrow as pa

from dlflax.data import idx
from dlflax.data.delimited import (
    SNIFF_BYTES,
    Log,
    line_numbers,
    parse_csv,
    read_header,
    read_json_lines,
    sniff_delimiter,
    to_utf8,
)
from dlflax.errors import InputError

TEXT_COLUMNS = [
    "text", "sentence", "review", "sms", "message", "content", "comment", "tweet", "body",
]  # fmt: skip
LABEL_COLUMNS = ["label", "class", "sentiment", "target", "category", "polarity", "rating"]
TABLE = re.compile(r"\.(csv|tsv|jsonl)(\.gz)?$", re.IGNORECASE)


def read_table(path: Path, kind: str, log: Log) -> tuple[list[str], list[str]]:
    """Returns (texts, labels) of a file of this kind: csv, tsv or jsonl."""
    content = _read(path, log)
    read = _json_columns if kind == "jsonl" else _csv_columns
    first, columns, lines = read(path, content, kind)
    lowered = [name.strip().lower() for name in first]
    text_columns, label_columns = (
        [index for index, name in enumerate(lowered) if name in names]
        for names in (TEXT_COLUMNS, LABEL_COLUMNS)
    )
    if len(text_columns) == len(label_columns) == 1:
        places = text_columns[0], label_columns[0]
        columns = [columns[place] for place in places]
        for place, column in zip(places, columns, strict=True):
            if None in column:
                raise InputError(
                    f"{path}, line {lines[column.index(None)]} has no {shown(first[place])}: every "
                    "line needs a text and a label."
                )
    elif not text_columns and not label_columns and len(first) == 2 and kind != "jsonl":
        columns = [[name, *column] for name, column in zip(first, columns, strict=True)]
    else:
        raise _unknown_columns(path, first)

    texts, labels = columns
    if not label_columns:
        distinct = [len(set(column)) for column in columns]
        if distinct[0] < distinct[1]:
            texts, labels = labels, texts
        # A first cell of its own among the labels is a heading in words of its own.
        if distinct[0] == distinct[1] or labels[0] not in set(labels[1:]):
            raise _unknown_columns(path, first)
    if not texts:
        raise InputError(f"{path} has no examples below its header.")
    labels = [label.strip() for label in labels]
    if "" in labels:
        raise InputError(
            f"{path} has an empty label for the text {shown(texts[labels.index('')])}: every text "
            "needs one."
        )
    return texts, labels


def _unknown_columns(path: Path, names: list[str]) -> InputError:
    return InputError(
        f"{path} has the columns {listed(names)}, and which is the text and which the label is "
        f"not clear: call one of them {', '.join(TEXT_COLUMNS)} and one "
        f"{', '.join(LABEL_COLUMNS)}."
    )


def _csv_columns(path: Path, content: bytes, kind: str):
    """Returns (the first row, the others by column, their lines)."""
    # in a .tsv a quotation mark is one
    tab = kind == "tsv"
    mark = "\t" if tab else sniff_delimiter(content[:SNIFF_BYTES].decode(errors="ignore"))
    try:
        first = read_header(content, mark, quoting=csv.QUOTE_NONE if tab else csv.QUOTE_MINIMAL)
        table, ragged = parse_csv(content, mark, len(first), quote=False if tab else '"')
    except csv.Error as error:
        raise InputError(f"{path}, {error}.") from None
    except (ValueError, pa.ArrowException) as error:
        if not content.strip():
            raise InputError(
                f"{path} is empty: it should have a text and a label column."
            ) from None
        raise InputError(f"{path} is not valid {kind}: {' '.join(str(error).split())}.") from None
    lines = line_numbers(content, len(table) + len(ragged), quoted=not tab)
    if ragged:
        row, cells = ragged[0]
        raise InputError(
            f"{path}, line {lines[row]} has {_columns(cells)}, but the first line has "
            f"{_columns(len(first))}."
        )
    return first, [column.to_pylist()[1:] for column in table.columns], lines[1:].tolist()


def _json_columns(path: Path, content: bytes, kind: str):
    """As `_csv_columns`: the keys of the first object, and the values of these in each."""
    rows, lines = read_json_lines(content, path)
    if not rows:
        raise InputError(f"{path} is empty: it should have a text and a label column.")
    keys = list(rows[0])
    values = [[row.get(key) for row in rows] for key in keys]
    return keys, [
        [v if v is None or isinstance(v, str) else json.dumps(v) for v in column]
        for column in values
    ], lines  # fmt: skip


def read_text(path: Path, log: Log) -> str:
    """Returns a file of text, maybe gzipped. Raises InputError for what is none."""
    return _read(path, log).decode()


def _read(path: Path, log: Log) -> bytes:
    """The file in UTF-8."""
    try:
        return to_utf8(idx.read_bytes(path), path, log)
    except ValueError as error:
        raise InputError(f"{path}: {error}.") from None


def _columns(count: int) -> str:
    return f"{count} column{'s' * (count != 1)}"


def shown(text: str) -> str:
    return repr(text if len(text) <= 60 else f"{text[:60]}...")


def listed(names) -> str:
    names = list(names)
    return ", ".join(map(shown, names[:8])) + (f" and {len(names) - 8} more" * (len(names) > 8))
