"""Examples in the body of a request, within limits that are checked before parsing."""

import base64
import binascii
import contextlib
import dataclasses
import fnmatch
import functools
import json
from collections.abc import Callable

import numpy as np
from starlette.exceptions import HTTPException

from dlflax.data import Encoder, Examples, Form, Limits, TooMuch, Upload
from dlflax.errors import InputError

LIMITS = Limits()  # of one request
_BYTES = ("", "application/octet-stream", "application/x-www-form-urlencoded")  # curl's defaults


class Refused(HTTPException):
    """Refusal of a request: an HTTP status, 4xx or 503, and one sentence."""


@contextlib.contextmanager
def _translate_errors():
    """Raises the errors of an encoder as Refused."""
    try:
        yield
    except TooMuch as error:
        raise Refused(413, str(error)) from error
    except UnicodeDecodeError:
        raise Refused(422, "the text is not UTF-8.") from None
    except InputError as error:
        raise Refused(422, str(error)) from error


def takes_base64(form: Form) -> bool:
    """True if an example in JSON is a file in base64."""
    return form.schema.get("contentEncoding") == "base64"


@_translate_errors()
def split_request(encoder: Encoder, content_type: str, body: bytes) -> list[Callable[[], Examples]]:
    """Returns functions for `read_part`, each for some examples of a request. Its body is JSON with
    the key of the encoder's form, or bytes of one of its media types. Raises Refused for other
    bodies, and for sizes over the limits."""
    form, media = encoder.form, content_type.partition(";")[0].strip().lower()
    limits, is_base64 = dataclasses.replace(LIMITS), takes_base64(form)
    if media == "application/json":
        values = _json(body, form, most_inputs(encoder))
        if not is_base64:
            return [functools.partial(encoder.parse, _check(form, values), limits)]
        # one part for each file, so that other requests need not wait for all files
        uploads = [_upload(value, f"{form.upload} {i}") for i, value in enumerate(values, 1)]
    elif is_base64 and media in _BYTES or any(fnmatch.fnmatch(media, m) for m in form.media):
        ending = {"text/csv": ".csv"}.get(media, "")
        uploads = [Upload(bytes(body), f"the {form.upload}{ending}")]
    else:
        others = ", ".join(pattern.replace("image/*", "image/png") for pattern in form.media)
        others = f", or {others}" if others else ""
        raise Refused(415, f"this model takes application/json{others}: see /openapi.json.")
    for upload in uploads:
        encoder.measure(upload, limits)
    return [functools.partial(encoder.parse, upload, limits) for upload in uploads]


@_translate_errors()
def read_part(encoder: Encoder, part: Callable[[], Examples]) -> Examples:
    """Returns the examples of a part of `split_request`. Raises Refused for unusable ones."""
    with np.errstate(all="ignore"):  # infinity is checked below
        examples = part()
        if len(examples) > LIMITS.rows:
            raise Refused(413, f"a request may have {LIMITS.rows} {encoder.form.key}.")
        for array in encoder.batch(encoder.raw(examples)).values():
            if array.dtype.kind == "f" and np.isinf(array.astype(np.float32)).any():
                raise Refused(422, "an input is infinite, or too large for float32.")
    return examples


def most_inputs(encoder: Encoder) -> int:
    """Returns the most examples, or rows of a series, that a request may have."""
    return LIMITS.steps if encoder.form.together else LIMITS.rows


def _json(body: bytes, form: Form, most: int) -> list:
    """Returns the list under the one key that the model takes."""
    key = form.key
    try:
        value = json.loads(body)
    except (ValueError, RecursionError):
        raise Refused(400, "the body is not JSON.") from None
    if not isinstance(value, dict) or set(value) != {key} or not isinstance(value[key], list):
        raise Refused(422, f'send {{"{key}": [...]}}.')
    if len(value[key]) > most:
        raise Refused(413, f"a request may have {most:,} {key}.")
    if not value[key] and not form.together:
        raise Refused(422, f"{key} is empty: send one or more.")
    return value[key]


def _check(form: Form, values: list) -> list:
    """Returns the values, checked against the form's schema."""
    kind = form.schema.get("type")
    if kind == "string" and not all(isinstance(value, str) for value in values):
        raise Refused(422, f"{form.key} must be strings.")
    if kind == "object":
        if not all(isinstance(row, dict) for row in values):
            raise Refused(422, 'send rows as {"column": value, ...}, all with the same columns.')
        cells = [cell for row in values for cell in row.values()]
        if not all(isinstance(cell, str | int | float | None) for cell in cells):
            raise Refused(422, "the values in rows must be numbers, strings or null.")
    return values


def _upload(value, name: str) -> Upload:
    if not isinstance(value, str):
        raise Refused(422, f"{name} must be a string: the file in base64.")
    try:
        return Upload(base64.b64decode(value, validate=True), name)
    except (binascii.Error, ValueError):
        raise Refused(422, f"{name} must be a file in base64.") from None
