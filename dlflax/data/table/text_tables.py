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

TEXT_COLUMNS = [
    "text", "sentence", "review", "sms", "message", "content", "comment", "tweet", "body",
]  # fmt: skip
LABEL_COLUMNS = ["label", "class", "sentiment", "target", "category", "polarity", "rating"]
TABLE = re.compile(r"\.(csv|tsv|jsonl)(\.gz)?$", re.IGNORECASE)


def read_table(path: Path, kind: str, log: Log) -> tuple[list[str], list[str]]:
    """Returns (texts, labels) of a csv, tsv or jsonl file."""
    content = _read(path, log)
    if not content.strip():
        raise InputError(f"{path} is empty: it should have a text and a label column.")
    if kind == "jsonl":
        rows, lines = delimited.read_json_lines(content, path)
        header, columns = list(rows[0]), [[row.get(key) for row in rows] for key in rows[0]]
    else:
        header, columns = _read_csv(content, path, kind)
    names = [name.strip().lower() for name in header]
    text, label = (
        [index for index, name in enumerate(names) if name in known]
        for known in (TEXT_COLUMNS, LABEL_COLUMNS)
    )
    if len(text) == len(label) == 1:
        texts, labels = columns[text[0]], columns[label[0]]
    elif not text and not label and len(header) == 2 and kind != "jsonl":
        # no header: labels are fewer, and repeated; else it is a header of unknown names
        columns = [[name, *column] for name, column in zip(header, columns, strict=True)]
        labels, texts = sorted(columns, key=lambda column: len(set(column)))
        if len(set(labels)) == len(set(texts)) or labels[0] not in labels[1:]:
            raise _unknown_columns(path, header)
    else:
        raise _unknown_columns(path, header)
    if not texts:
        raise InputError(f"{path} has no examples below its header.")
    if kind == "jsonl":
        for name, column in ((header[text[0]], texts), (header[label[0]], labels)):
            if None in column:
                raise InputError(
                    f"{path}, line {lines[column.index(None)]} has no {quote(name)}: every line "
                    "needs a text and a label."
                )
        texts, labels = (
            [value if isinstance(value, str) else json.dumps(value) for value in column]
            for column in (texts, labels)
        )
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


def _read_csv(content: bytes, path: Path, kind: str) -> tuple[list[str], list[list[str]]]:
    """Returns (header, columns) of a csv file, or a tsv file without quoting."""
    delimiter, quote = ("\t", False) if kind == "tsv" else (delimited.sniff_delimiter(content), '"')
    try:
        header, columns, _ = delimited.parse_csv(content, path, delimiter, quote)
    except InputError:  # a ValueError, too
        raise
    except (ValueError, csv.Error, pa.ArrowException) as error:
        raise InputError(f"{path} is not valid {kind}: {' '.join(str(error).split())}.") from None
    return header, [column.to_pylist() for column in columns]


def read_text(path: Path, log: Log) -> str:
    """Returns the text of a file, gzip or not, or raises InputError."""
    return _read(path, log).decode()


def _read(path: Path, log: Log) -> bytes:
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
