"""The inputs in a request's body, within limits that are checked before the work."""

import base64
import binascii
import contextlib
import csv
import functools
import io
import itertools
import json
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np

from dlflax.data import csv_files
from dlflax.errors import InputError
from dlflax.run.predict import Predictor

MOST_INPUTS = 256  # of one request
MOST_STEPS = 20_000  # rows of a series, whose last are looked at
MOST_CHARACTERS = 4_000_000  # of all texts of a request
MOST_PIXELS = 25_000_000  # that are decoded of a picture: less than predict takes
MOST_PIXELS_IN_ALL = 4 * MOST_PIXELS  # of all pictures of a request
KEYS = {
    "picture": "pictures", "text": "texts", "table": "rows", "series": "rows", "array": "inputs",
}  # fmt: skip

Inputs = tuple[list[str], str, dict[str, np.ndarray]]  # (names, kind, batch), as `Source.read`


class Refused(Exception):
    """A request that gets no answer: a status of HTTP, 4xx or 503, and one sentence."""

    def __init__(self, status: int, sentence: str):
        super().__init__(sentence)
        self.status, self.sentence = status, sentence


def parts_of(predictor: Predictor, content_type: str, body: bytes) -> list[Callable[[], Inputs]]:
    """Returns functions for `read_part`, each for some inputs of a request: JSON with the key that
    is in KEYS, or the bytes of a picture, a CSV file or a text. Refused for anything else, and for
    too much by what can be counted without the work."""
    kind, media = predictor.kind, content_type.partition(";")[0].strip().lower()
    with _refuse_bad_inputs():
        if media == "application/json":
            return _of_json(predictor, _json(body, KEYS[kind], most_inputs(kind)))
        if kind == "picture" and (media.startswith("image/") or media in _BYTES):
            return _of_pictures(predictor, [("the picture", body)])
        if kind in ("table", "series") and media == "text/csv":
            _check_rows(body, most_inputs(kind), predictor.data.get("delimiter", ","))
            return [functools.partial(_of_file, predictor, "the table.csv", body)]
        if kind == "text" and media == "text/plain":
            return _of_texts(predictor, [body.decode("utf-8")])
    other = {"picture": "image/png", "text": "text/plain"}.get(kind, "text/csv")
    other = "" if kind == "array" else f", or {other}"
    raise Refused(415, f"this model takes application/json{other}: see /openapi.json.")


_BYTES = ("", "application/octet-stream", "application/x-www-form-urlencoded")  # curl's, unasked


def read_part(part: Callable[[], Inputs]) -> Inputs:
    """Calls one of `parts_of`. Refused where its inputs cannot be used."""
    with _refuse_bad_inputs():
        names, kind, batch = part()
        for array in batch.values():
            if array.dtype.kind == "f" and np.isinf(array.astype(np.float32)).any():
                raise Refused(422, "an input is infinite, or too large for float32.")
    return names, kind, batch


@contextlib.contextmanager
def _refuse_bad_inputs():
    try:
        with np.errstate(all="ignore"):  # `read_part` looks at what came out
            yield
    except InputError as error:
        raise Refused(422, str(error)) from error
    except UnicodeDecodeError:
        raise Refused(422, "the text is not UTF-8.") from None


def join(some: list[Inputs]) -> Inputs:
    """All of them as one."""
    _, kind, first = some[0]
    batch = {key: np.concatenate([batch[key] for _, _, batch in some]) for key in first}
    return [name for names, _, _ in some for name in names], kind, batch


def most_inputs(kind: str) -> int:
    """The most inputs, or rows, that a request may have."""
    return MOST_STEPS if kind == "series" else MOST_INPUTS


def _json(body: bytes, key: str, most: int) -> list:
    """The list under the one key that the model takes."""
    try:
        value = json.loads(body)
    except (ValueError, RecursionError):
        raise Refused(400, "the body is not JSON.") from None
    if not isinstance(value, dict) or set(value) != {key} or not isinstance(value[key], list):
        raise Refused(422, f'send {{"{key}": [...]}}.')
    if len(value[key]) > most:
        raise Refused(413, f"a request may have {most:,} {key}.")
    if not value[key] and key != "rows":
        raise Refused(422, f"{key} is empty: send one or more.")
    return value[key]


def _of_json(predictor, values: list) -> list[Callable[[], Inputs]]:
    kind = predictor.kind
    if kind in ("table", "series"):
        return [functools.partial(_of_rows, predictor, values)]
    if kind == "array":
        return [functools.partial(_of_array, predictor, values)]
    if not all(isinstance(each, str) for each in values):
        raise Refused(422, f"{KEYS[kind]} must be strings.")
    if kind == "text":
        return _of_texts(predictor, values)
    try:
        content = [base64.b64decode(each, validate=True) for each in values]
    except (binascii.Error, ValueError):
        raise Refused(422, "pictures must be files in base64.") from None
    return _of_pictures(predictor, [(f"picture {i}", c) for i, c in enumerate(content, 1)])


def _of_array(predictor, values: list) -> Inputs:
    try:
        array = np.asarray(values)
    except ValueError:
        raise Refused(422, "inputs must be an array of numbers.") from None
    array = predictor.checked_array(array)
    if len(array) > MOST_INPUTS:
        raise Refused(413, f"a request may have {MOST_INPUTS} inputs.")
    return [str(i) for i in range(len(array))], "row", {"inputs": array}


def _of_texts(predictor, texts: list[str]) -> list[Callable[[], Inputs]]:
    if sum(map(len, texts)) > MOST_CHARACTERS:
        raise Refused(413, f"the texts of a request may have {MOST_CHARACTERS:,} characters.")
    data = predictor.config.data
    return [functools.partial(data.read, texts, predictor.data, predictor.folder)]


def _of_pictures(predictor, files: list[tuple[str, bytes]]) -> list[Callable[[], Inputs]]:
    """A part for each, so that the pictures of one request do not keep those of others waiting."""
    from dlflax.data import picture

    info, most, in_all = predictor.data, f"{MOST_PIXELS / 1e6:g} million pixels", 0
    for name, content in files:
        try:
            pixels = picture.count_pixels(
                io.BytesIO(content), Path(name), tuple(info["input_shape"]),
                bool(info.get("light_on_dark")),
            )  # fmt: skip
        except picture.PictureError as error:
            if error.kind != "too large":
                raise
            pixels = MOST_PIXELS + 1
        in_all += pixels
        if pixels > MOST_PIXELS:
            raise Refused(413, f"{name} is too large: send one of at most {most}.")
        if in_all > MOST_PIXELS_IN_ALL:
            raise Refused(
                413, f"the pictures of a request may have {MOST_PIXELS_IN_ALL / 1e6:g} million "
                "pixels: send fewer, or smaller ones.",
            )  # fmt: skip
    return [functools.partial(_of_file, predictor, name, content) for name, content in files]


def _check_rows(body: bytes, most: int, usual: str) -> None:
    """Refused for a CSV file of more rows than that, none of which is kept."""
    delimiter = csv_files.delimiter(body.decode("utf-8-sig"), usual)
    lines = io.TextIOWrapper(io.BytesIO(body), "utf-8-sig", newline="")
    rows = (row for row in csv.reader(lines, delimiter=delimiter) if row)
    with contextlib.suppress(csv.Error):  # said by the data source
        if sum(1 for _ in itertools.islice(rows, most + 2)) > most + 1:  # 1: the header
            raise Refused(413, f"a request may have {most:,} rows.")


def _of_rows(predictor, rows: list):
    """Rows {column: value} as a CSV file; none of them, for a series, are the run's own."""
    if not rows:
        if predictor.kind == "series":
            return predictor.config.data.read([], predictor.data, predictor.folder)
        raise Refused(422, "rows is empty: send one or more.")
    if not all(isinstance(row, dict) and set(row) == set(rows[0]) for row in rows):
        raise Refused(422, 'send rows as {"column": value, ...}, all with the same columns.')
    header = list(rows[0])
    cells = [[row[name] for name in header] for row in rows]
    if any(not isinstance(cell, str | int | float | None) for row in cells for cell in row):
        raise Refused(422, "the values in rows must be numbers, strings or null.")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "rows.csv"
        csv_files.write(path, header, cells, predictor.data)
        return _read(predictor, path, "the rows")


def _of_file(predictor, name: str, content: bytes) -> Inputs:
    """By the code that `predict` reads files with."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"0{Path(name).suffix}"
        path.write_bytes(content)
        return _read(predictor, path, name)


def _read(predictor, path: Path, name: str) -> Inputs:
    """What the source reads of a file, by the name that the user knows."""
    source = predictor.config.data
    try:
        names, kind, batch = source.read([str(path)], predictor.data, predictor.folder)
    except InputError as error:
        raise InputError(str(error).replace(str(path), name)) from error
    if len(names) > MOST_INPUTS:
        raise Refused(413, f"a request may have {MOST_INPUTS} rows.")
    return [each.replace(str(path), name) for each in names], kind, batch
