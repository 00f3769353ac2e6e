"""What the body of a request holds, as the model wants it."""

import base64
import binascii
import csv
import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from dlflax.errors import InputError
from dlflax.run.predict import Predictor

MOST_INPUTS = 256  # of one request
KEYS = {
    "picture": "pictures", "text": "texts", "table": "rows", "series": "rows", "array": "inputs",
}  # fmt: skip


class Refused(Exception):
    """A request that gets no answer: a status of HTTP, 4xx, and one sentence."""

    def __init__(self, status: int, sentence: str):
        super().__init__(sentence)
        self.status, self.sentence = status, sentence


def inputs_of(predictor: Predictor, content_type: str, body: bytes):
    """(names, what one is, batch), as `Source.read` gives them, of a request: JSON with the key
    that is in KEYS, or the bytes of a picture, a CSV file or a text. Refused for anything else."""
    kind, media = predictor.kind, content_type.partition(";")[0].strip().lower()
    try:
        if media == "application/json":
            return _of_json(predictor, _json(body, KEYS[kind]))
        if kind == "picture" and (media.startswith("image/") or media in _BYTES):
            return _of_files(predictor, [("the picture", body)])
        if kind in ("table", "series") and media == "text/csv":
            return _of_files(predictor, [("the table.csv", body)])
        if kind == "text" and media == "text/plain":
            return _of_texts(predictor, [body.decode("utf-8")])
    except InputError as error:
        raise Refused(422, str(error)) from error
    except UnicodeDecodeError:
        raise Refused(422, "the text is not UTF-8.") from None
    other = {"picture": "image/png", "text": "text/plain"}.get(kind, "text/csv")
    other = "" if kind == "array" else f", or {other}"
    raise Refused(415, f"this model takes application/json{other}: see /openapi.json.")


_BYTES = ("", "application/octet-stream", "application/x-www-form-urlencoded")  # curl's, unasked


def _json(body: bytes, key: str) -> list:
    """The list under the one key that the model takes."""
    try:
        value = json.loads(body)
    except (ValueError, RecursionError):
        raise Refused(400, "the body is not JSON.") from None
    if not isinstance(value, dict) or set(value) != {key} or not isinstance(value[key], list):
        raise Refused(422, f'send {{"{key}": [...]}}.')
    if len(value[key]) > MOST_INPUTS:
        raise Refused(413, f"a request may have {MOST_INPUTS} {key}.")
    if not value[key] and key != "rows":
        raise Refused(422, f"{key} is empty: send one or more.")
    return value[key]


def _of_json(predictor, values: list):
    kind = predictor.kind
    if kind in ("table", "series"):
        return _of_rows(predictor, values)
    if kind == "array":
        try:
            array = np.asarray(values, np.float64)
        except (ValueError, TypeError, OverflowError):
            raise Refused(422, "inputs must be an array of numbers.") from None
        array = predictor.checked_array(array).astype(predictor.dtype)
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            raise Refused(422, "inputs have a number that is NaN or infinite.")
        if len(array) > MOST_INPUTS:
            raise Refused(413, f"a request may have {MOST_INPUTS} inputs.")
        return [str(i) for i in range(len(array))], "row", {"inputs": array}
    if not all(isinstance(each, str) for each in values):
        raise Refused(422, f"{KEYS[kind]} must be strings.")
    if kind == "text":
        return _of_texts(predictor, values)
    try:
        content = [base64.b64decode(each, validate=True) for each in values]
    except (binascii.Error, ValueError):
        raise Refused(422, "pictures must be files in base64.") from None
    return _of_files(predictor, [(f"picture {i}", c) for i, c in enumerate(content, 1)])


def _of_texts(predictor, texts: list[str]):
    return predictor.config.data.read(texts, predictor.data, predictor.folder)


def _of_rows(predictor, rows: list):
    """Rows {column: value} as a CSV file; none of them, for a series, are the run's own."""
    if not rows:
        if predictor.kind == "series":
            return predictor.config.data.read([], predictor.data, predictor.folder)
        raise Refused(422, "rows is empty: send one or more.")
    if not all(isinstance(row, dict) and set(row) == set(rows[0]) for row in rows):
        raise Refused(422, 'send rows as {"column": value, ...}, all with the same columns.')
    cells: list[list[Any]] = [list(rows[0])]
    for row in rows:
        cells.append(["" if row[name] is None else row[name] for name in rows[0]])
    if any(not isinstance(cell, str | int | float) for row in cells for cell in row):
        raise Refused(422, "the values in rows must be numbers, strings or null.")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "rows.csv"
        with open(path, "w", newline="", encoding="utf-8", errors="replace") as file:
            csv.writer(file).writerows(cells)
        return _read(predictor, [path], ["the rows"])


def _of_files(predictor, files: list[tuple[str, bytes]]):
    """By the code that `predict` reads files with."""
    with tempfile.TemporaryDirectory() as folder:
        paths = [Path(folder) / f"{i}{Path(name).suffix}" for i, (name, _) in enumerate(files)]
        for path, (_, content) in zip(paths, files, strict=True):
            path.write_bytes(content)
        return _read(predictor, paths, [name for name, _ in files])


def _read(predictor, paths: list[Path], names: list[str]):
    """What the source reads of them, by the names that the user knows."""
    try:
        found, kind, batch = predictor.config.data.read(
            [str(path) for path in paths], predictor.data, predictor.folder
        )
    except InputError as error:
        raise InputError(_renamed(str(error), paths, names)) from error
    if len(found) > MOST_INPUTS:
        raise Refused(413, f"a request may have {MOST_INPUTS} rows.")
    return [_renamed(each, paths, names) for each in found], kind, batch


def _renamed(sentence: str, paths, names) -> str:
    for path, name in zip(paths, names, strict=True):
        sentence = sentence.replace(str(path), name)
    return sentence
