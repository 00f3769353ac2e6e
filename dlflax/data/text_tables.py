"""A .csv, .tsv or .jsonl file with a text and a label column."""

import csv
import io
import json
import re
from collections.abc import Iterator
from pathlib import Path

from dlflax.data import csv_files, idx
from dlflax.data.download import first_line
from dlflax.errors import InputError

TEXT_COLUMNS = [
    "text", "sentence", "review", "sms", "message", "content", "comment", "tweet", "body",
]  # fmt: skip
LABEL_COLUMNS = ["label", "class", "sentiment", "target", "category", "polarity", "rating"]
TABLE = re.compile(r"\.(csv|tsv|jsonl)(\.gz)?$", re.IGNORECASE)


def read_table(path: Path, kind: str) -> tuple[list[str], list[str]]:
    """(texts, labels) of a file of this kind: csv, tsv or jsonl."""
    content = read_text(path)
    rows = _json_rows(path, content) if kind == "jsonl" else _csv_rows(path, content, kind)
    line, first = next(rows, (0, None))
    if first is None:
        raise InputError(f"{path} is empty: it should have a text and a label column.")
    lowered = [name.strip().lower() for name in first]
    text_columns, label_columns = (
        [index for index, name in enumerate(lowered) if name in names]
        for names in (TEXT_COLUMNS, LABEL_COLUMNS)
    )
    columns = [[], []]
    if len(text_columns) == len(label_columns) == 1:
        chosen = text_columns[0], label_columns[0]
    elif not text_columns and not label_columns and len(first) == 2 and kind != "jsonl":
        chosen = 0, 1
        columns = [[cell] for cell in first]
    else:
        raise _unknown_columns(path, first)
    for line, row in rows:
        if len(row) != len(first):
            raise InputError(
                f"{path}, line {line} has {_columns(len(row))}, but the first line has "
                f"{_columns(len(first))}."
            )
        for column, index in zip(columns, chosen, strict=True):
            if row[index] is None:
                raise InputError(
                    f"{path}, line {line} has no {shown(first[index])}: every line needs a text "
                    "and a label."
                )
            column.append(row[index])

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


def _csv_rows(path: Path, content: str, kind: str) -> Iterator[tuple[int, list[str]]]:
    """(line, cells) of each row that is not blank."""
    # In a .tsv a quotation mark is one.
    settings = (
        {"delimiter": "\t", "quoting": csv.QUOTE_NONE}
        if kind == "tsv"
        else {"delimiter": csv_files.delimiter(content)}
    )
    reader = csv.reader(io.StringIO(content, newline=""), strict=True, **settings)

    def next_row():
        # the limit is the whole process's: nobody else may see it raised, as between two rows
        limit = csv.field_size_limit(2**31 - 1)
        try:
            return next(reader, None)
        except csv.Error as error:
            raise InputError(
                f"{path}, line {reader.line_num} is not valid {kind}: {error}."
            ) from None
        finally:
            csv.field_size_limit(limit)

    while (row := next_row()) is not None:
        if row:
            yield reader.line_num, row


def _json_rows(path: Path, content: str) -> Iterator[tuple[int, list[str | None]]]:
    """As `_csv_rows`: the keys of the first object, and then the values of these in each."""
    keys = None
    for number, line in enumerate(io.StringIO(content, newline="\n"), 1):
        if not line.strip():
            continue
        try:
            values = json.loads(line)
            if not isinstance(values, dict):
                raise ValueError("it is not an object")
            if "\\u" in line:
                json.dumps(values, ensure_ascii=False).encode()  # half a character: ValueError
        except (ValueError, RecursionError) as error:
            raise InputError(
                f"{path}, line {number} is not a JSON object in valid Unicode "
                f"({first_line(error)})."
            ) from None
        if keys is None:
            keys = list(values)
            yield number, keys
        row = (values.get(key) for key in keys)
        yield (
            number,
            [
                value if value is None or isinstance(value, str) else json.dumps(value)
                for value in row
            ],
        )


def read_text(path: Path) -> str:
    try:
        return idx.read_bytes(path).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        raise InputError(
            f"{path}, line {line} has the byte {error.object[error.start]:02x}, which is not "
            "UTF-8: save the file as UTF-8."
        ) from None


def _columns(count: int) -> str:
    return f"{count} column{'s' * (count != 1)}"


def shown(text: str) -> str:
    return repr(text if len(text) <= 60 else f"{text[:60]}...")


def listed(names) -> str:
    names = list(names)
    return ", ".join(map(shown, names[:8])) + (f" and {len(names) - 8} more" * (len(names) > 8))
