"""The contract of an encoder: how examples, as users have them, become arrays of a model.

A data source fits one on its training examples (`Source.encoder`). It is frozen, saved with the run
(`encoder.json`), and everything that reads examples uses it: training, validation, `predict`,
`evaluate`, `serve`, `export`.
"""

import abc
import dataclasses
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa

from dlflax.data.target import Target
from dlflax.errors import InputError
from dlflax.files import escape_controls, read_bytes


class DiskArray:
    """Some rows of an array that lies on disk (`numpy.memmap`): read when they are indexed.

    Has what training asks of an array: shape, dtype, ndim, nbytes, len, and indexing of the first
    axis by an int, a slice or int32 (n,), which gives a NumPy array in memory. change: is applied
    to rows that are read; it keeps their shape and dtype.
    """

    def __init__(self, array, index, change: Callable[[np.ndarray], np.ndarray] = np.asarray):
        self.array, self.index, self.change = array, np.asarray(index), change
        self.shape, self.dtype = (len(self.index), *array.shape[1:]), array.dtype
        self.ndim = len(self.shape)
        self.nbytes = int(np.prod(self.shape, dtype=np.int64)) * self.dtype.itemsize

    def __len__(self) -> int:
        return len(self.index)

    def __getitem__(self, key) -> np.ndarray:
        return self.change(np.asarray(self.array[self.index[key]]))


@dataclasses.dataclass(frozen=True)
class Examples:
    """Examples as they were read: no number of a model yet."""

    columns: Mapping[str, Any]
    """Name -> NumPy array, `DiskArray` or Arrow array (n, ...)."""
    target: Any = None
    """(n, ...), as `Target.encode` takes it; None where it is not known."""
    names: Sequence[str] = ()
    """Names of the examples, for the user: a file, "row 3"."""
    classes: tuple[str, ...] = ()
    """Names of the classes or labels that the target counts, in their order."""
    style: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    """The style of the files, by which an encoder must read others, such as a delimiter."""

    def __post_init__(self):
        object.__setattr__(self, "classes", tuple(map(escape_controls, self.classes)))

    def __len__(self) -> int:
        return len(next(iter(self.columns.values())))

    def take(self, index: Any) -> "Examples":
        """Returns the examples at index, int (n,), bool (n,) or a slice."""
        columns = {name: take_rows(column, index) for name, column in self.columns.items()}
        names: Any = self.names
        if isinstance(names, list | tuple) and len(names):
            names = np.asarray(names, object)[index].tolist()
        elif len(names):
            names = names[index]
        target = None if self.target is None else self.target[index]
        return dataclasses.replace(self, columns=columns, target=target, names=names)


def take_rows(column: Any, index: Any) -> Any:
    """Returns the rows of a column at index; those of a `DiskArray` stay on disk."""
    if isinstance(column, DiskArray):
        return DiskArray(column.array, column.index[index], column.change)
    if isinstance(column, pa.Array) and not isinstance(index, slice):
        return column.filter(index) if index.dtype == bool else column.take(index)
    return column[index]


def join(parts: Sequence[Examples]) -> Examples:
    """Returns the examples of all parts, which have the same columns, one after another."""
    if len(parts) == 1:
        return parts[0]
    columns = {
        name: _concatenate([part.columns[name] for part in parts]) for name in parts[0].columns
    }
    known = all(part.target is not None for part in parts)
    target = np.concatenate([part.target for part in parts]) if known else None
    names = [name for part in parts for name in part.names]
    return dataclasses.replace(parts[0], columns=columns, target=target, names=names)


def _concatenate(columns: Sequence[Any]) -> Any:
    if all(isinstance(column, pa.Array) and column.type == columns[0].type for column in columns):
        return pa.concat_arrays(columns)
    arrays = [np.array(c.tolist(), object) if isinstance(c, pa.Array) else c[:] for c in columns]
    return np.concatenate(arrays)


BASE64 = {"type": "string", "contentEncoding": "base64"}  # JSON Schema of a file


@dataclasses.dataclass(frozen=True)
class Form:
    """The form in which users give examples to a program, a server and its page."""

    noun: str
    """One example: file, text, row."""
    key: str
    """Key of the list of examples in the JSON of a request."""
    schema: Mapping[str, Any]
    """JSON Schema of one example in that list."""
    media: tuple[str, ...] = ()
    """Media types of bodies that are an example, or several, as they are: image/*, text/csv."""
    files: bool = True
    """True if examples are named by paths on the command line, else they are given themselves."""
    widget: str = "file"
    """Widget of the server's page: image, text, row, series, array, or file for any other."""
    upload: str = "file"
    """A file that is sent, in messages: picture, table."""
    together: bool = False
    """True if the rows that are given are one example, the steps of a series, and may be none."""
    page: str = "try it on a page"
    """Next step of a run: what its page is for."""
    experiment: tuple[str, str] | None = None
    """The shipped experiment that takes such data of the user's own, and what it reads."""


@dataclasses.dataclass(frozen=True)
class Upload:
    """The bytes of a file that a user sends."""

    content: bytes
    media: str = ""
    """Media type, as image/png."""
    name: str = "the file"
    """For messages, and with the ending of a file's name."""


@dataclasses.dataclass
class Limits:
    """The most that `Encoder.parse` may be given of one request. It looks before it works, and
    raises TooMuch."""

    rows: int = 256
    """Examples."""
    steps: int = 20_000
    """Rows of a series."""
    characters: int = 4_000_000
    pixels: int = 25_000_000
    """Pixels of one image."""
    pixels_in_all: int = 100_000_000
    """Pixels of all images."""
    counted: int = 0
    """Pixels so far."""

    def count_pixels(self, name: Any, count: int) -> None:
        """Counts the pixels of an image. Raises TooMuch for too many."""
        if count > self.pixels:
            most = f"{self.pixels / 1e6:g} million pixels"
            raise TooMuch(f"{name} is too large: send one of at most {most}.")
        self.counted += count
        if self.counted > self.pixels_in_all:
            raise TooMuch(
                f"the pictures of a request may have {self.pixels_in_all / 1e6:g} million pixels: "
                "send fewer, or smaller ones."
            )


class TooMuch(InputError):
    """More than `Limits` allow."""


class RowsRefused(InputError):
    """Some of the rows that are given cannot be used."""

    def __init__(self, sentences: list[str], examples: Examples):
        more = len(sentences) - 1
        super().__init__(sentences[0] + (f" In all, {more + 1} rows are refused." if more else ""))
        self.sentences, self.examples = sentences, examples
        """One for each row; the other rows."""


def note(sentence: str) -> None:
    """Prints to stderr: notes while predicting are no part of the answers."""
    print(sentence, file=sys.stderr)


@dataclasses.dataclass(frozen=True)
class Spec:
    """The raw array that an exported model is given."""

    shape: tuple[int, ...]
    """The shape of an example."""
    dtype: str
    meaning: str
    """One line for the user."""


@dataclasses.dataclass(frozen=True)
class Plain:
    """Examples for reference models, such as scikit-learn's: rows or texts."""

    rows: np.ndarray | None = None
    """float64 (n, columns), NaN where a value is missing."""
    categories: tuple[bool, ...] = ()
    """True for the columns whose numbers are those of categories."""
    texts: Sequence[str] | None = None


class Encoder(abc.ABC):
    """Turns examples into arrays. A frozen dataclass, whose fields are saved as JSON.

    A field that is large has `metadata={"file": "tokenizer.json"}`, is text, and is saved in that
    file. A field must not be named like a method, or like another attribute of this class but
    `target`.
    """

    form: ClassVar[Form]
    target: Target
    """A field of every encoder."""

    def __new__(cls, *args, **fields):
        """Raises InputError for a class with a field that hides a method, or without a target."""
        names = [field.name for field in dataclasses.fields(cls)]
        if hidden := [name for name in names if name in METHODS]:
            raise InputError(
                f"{cls.__name__} has a field named {hidden[0]}, as a method of every encoder is: "
                "give it another name."
            )
        if "target" not in names:
            raise InputError(f"{cls.__name__} needs a field named target, as every encoder has.")
        return super().__new__(cls)

    @abc.abstractmethod
    def parse(self, given: Any, limits: Limits | None = None) -> Examples:
        """Returns the examples that a user gives, one or more, without targets.

        given: a str (a path, or the text itself), an `Upload`, a list of rows {column: value}, a
        NumPy array of one example or several, or a data frame; None for what the run itself has,
        such as its series. Raises InputError for what cannot be used, or is none of these.
        """

    def parse_with_targets(self, given: Any) -> Examples:
        """Returns all examples that a user gives to be evaluated, with their targets. given: a Path
        to a file or folder as the run was trained with, or a data frame. Raises InputError for
        anything else, and for data that have no targets."""
        raise InputError(
            f"evaluate reads no targets from {given!s:.100}: give an array and its targets."
        )

    def measure(self, upload: Upload, limits: Limits) -> None:
        """Counts what it would cost to parse an upload, by its header alone. Raises TooMuch."""
        return None

    def raw(self, examples: Examples) -> Any:
        """Returns the array (n, *shape) with which the host's work ends, such as decoded pixels or
        tokens; default: the column "inputs"."""
        return examples.columns["inputs"]

    @abc.abstractmethod
    def spec(self) -> Spec:
        """Returns shape, dtype and meaning of one example of `raw`."""

    def batch(self, raw: Any, xp: Any = np) -> dict[str, Any]:
        """Returns the arrays (n, ...) of a batch, "inputs" among them, of a raw array. xp: numpy,
        or jax.numpy where it is traced, as in an exported model."""
        return {"inputs": raw}

    def encode(self, examples: Examples) -> dict[str, Any]:
        """Returns what training takes: `batch`, and "targets" where they are known."""
        arrays = self.batch(self.raw(examples))
        if examples.target is not None:
            arrays["targets"] = self.target.encode(examples.target)
        return arrays

    def model_fields(self) -> dict[str, Any]:
        """Returns fields that a model must have, such as the vocabulary of texts."""
        return {}

    def describe(self) -> str:
        """Returns examples in words: "grey images of 28 x 28 pixels"."""
        return f"examples of shape {' x '.join(map(str, self.spec().shape)) or 'one number'}"

    def plain(self, examples: Examples) -> Plain | None:
        """Returns the examples for reference models; None where these read the inputs."""
        return None

    def image(self, inputs: Any, index: int) -> np.ndarray | None:
        """Returns an example of inputs (n, ...) to be drawn, uint8 (h, w, 1 or 3); None where
        examples are no images."""
        return None

    def groups(self) -> dict[str, slice]:
        """Returns the places in the inputs of each column of a table, for its importance."""
        return {}

    def columns_table(self) -> list[dict[str, Any]]:
        """Returns what is read of each column of a table, a row of cells for each; [] where
        examples have none."""
        return []

    def outlook(self) -> Mapping[str, Any]:
        """Returns JSON values that the widget of a server's page shows: columns, a series."""
        return {}


METHODS = {name for name in vars(Encoder) if not name.startswith("_")} - {"target"}


def as_path(given: Any) -> Path | None:
    """Returns the path that a str or Path names, None for anything else."""
    return Path(given) if isinstance(given, str | Path) else None


def as_upload(given: Any) -> Upload:
    """Returns the file that a str or Path names, or that is sent. Raises InputError for anything
    else, and for a file that cannot be read."""
    if isinstance(given, Upload):
        return given
    if as_path(given) is None or not Path(given).is_file():
        what = "nothing was given" if given is None else f"{given!s:.200} is no file"
        raise InputError(f"{what}: name one or more files after the run folder.")
    return Upload(read_bytes(Path(given)), "", str(given))


def is_frame(given: Any) -> bool:
    """True if it is a data frame: of pandas, with Arrow's interface, or a Hugging Face data set."""
    arrow = _has(given, "__arrow_c_stream__") and not is_series(given)
    return arrow or _has(given, "columns", "iloc") or is_hub_dataset(given)


def is_hub_dataset(given: Any) -> bool:
    """True if it is a `datasets.Dataset` of Hugging Face, which has Arrow's tables inside."""
    return _has(given, "with_format", "column_names")


def unpack_hub(given: Any) -> Any:
    """Returns Arrow's table of a Hugging Face data set, anything else as it is."""
    return given.with_format("arrow")[:] if is_hub_dataset(given) else given


def is_series(given: Any) -> bool:
    """True if it is a column, or a row, of a data frame."""
    return _has(given, "index", "iloc") and not _has(given, "columns")


def _has(given: Any, *names: str) -> bool:
    known = isinstance(given, np.ndarray | Mapping | Sequence | Path)
    return not known and set(names) <= set(dir(given))


def column_values(given: Any) -> Any:
    """Returns the values of a column or of a data frame of one, texts or paths, as a list; anything
    else as it is. Raises InputError for other values, and for several columns."""
    given = unpack_hub(given)
    if is_frame(given) and _has(given, "columns"):
        if len(given.columns) != 1:
            raise InputError(
                f"this model takes no data frame of {len(given.columns)} columns: give the column "
                "of texts or paths."
            )
        given = given.iloc[:, 0] if _has(given, "iloc") else pa.table(given).column(0)
    if not is_series(given) and not _has(given, "__arrow_c_stream__"):
        return given
    values = given.tolist() if is_series(given) else pa.chunked_array(given).to_pylist()
    if not all(isinstance(value, str | Path) for value in values):
        raise InputError("a column of texts or paths has other values, such as missing ones.")
    return values
