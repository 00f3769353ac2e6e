"""The contract of an encoder, which turns raw examples into arrays for a model.

A data source fits an encoder on its training examples (`Source.encoder`). The encoder is frozen and
saved with the run (`encoder.json`); training, `predict`, `evaluate`, `serve` and `export` use it.
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
    """Rows of an array on disk (`numpy.memmap`), which are read when they are indexed, by an int, a
    slice or int32 (n,). change: a function of rows, which keeps their shape and dtype."""

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
    """Raw examples, before they are encoded."""

    columns: Mapping[str, Any]
    """Name -> NumPy array, `DiskArray` or Arrow array (n, ...)."""
    target: Any = None
    """(n, ...), the input of `Target.encode`; None if it is not known."""
    names: Sequence[str] = ()
    """Names of the examples, for the user: a file, "row 3"."""
    classes: tuple[str, ...] = ()
    """Names of classes or labels, by number."""
    style: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    """Properties of the training files by which an encoder reads others, such as a delimiter."""

    def __post_init__(self):
        object.__setattr__(self, "classes", tuple(map(escape_controls, self.classes)))

    def __len__(self) -> int:
        return len(next(iter(self.columns.values())))

    def take(self, index: Any) -> "Examples":
        """Returns the examples at index, int (n,), bool (n,) or a slice."""
        columns = {name: take_rows(column, index) for name, column in self.columns.items()}
        names: Any = self.names
        if len(names):
            is_list = isinstance(names, list | tuple)
            names = np.asarray(names, object)[index].tolist() if is_list else names[index]
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
    """Concatenates examples with the same columns."""
    if len(parts) == 1:
        return parts[0]
    columns = {
        name: _concatenate([part.columns[name] for part in parts]) for name in parts[0].columns
    }
    targets = [part.target for part in parts]
    target = None if any(t is None for t in targets) else np.concatenate(targets)
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
    """The form of a user's examples, for the command line, a server and its page."""

    noun: str
    """One example: file, text, row."""
    key: str
    """Key of the list of examples in the JSON of a request."""
    schema: Mapping[str, Any]
    """JSON Schema of one example in that list."""
    media: tuple[str, ...] = ()
    """Media types of request bodies that are examples themselves: image/*, text/csv."""
    files: bool = True
    """True if arguments of the command line are paths of examples, else they are examples."""
    widget: str = "file"
    """Widget of the server's page: image, text, row, series, array, or file for any other."""
    upload: str = "file"
    """Noun for an uploaded file, in messages: image, table."""
    together: bool = False
    """True if all rows are one example, the steps of a series; there may be no rows."""
    page: str = "try it on a page"
    """Purpose of the server's page, for the next steps of a run."""
    experiment: tuple[str, str] | None = None
    """The shipped experiment for a user's own data of this form, and a noun for the data."""


@dataclasses.dataclass(frozen=True)
class Upload:
    """The bytes of an uploaded file."""

    content: bytes
    name: str = "the file"
    """Name for messages, with the file's ending."""


@dataclasses.dataclass
class Limits:
    """Limits of one request, which `Encoder.parse` checks before its work."""

    rows: int = 256
    steps: int = 20_000
    """Rows of a series."""
    characters: int = 4_000_000
    pixels: int = 25_000_000
    """Pixels of one image."""
    pixels_in_all: int = 100_000_000
    counted: int = 0
    """Pixels so far."""

    def count_pixels(self, name: Any, count: int) -> None:
        """Adds the pixels of an image. Raises TooMuch beyond a limit."""
        if count > self.pixels:
            raise TooMuch(
                f"{name} is too large: send one of at most {self.pixels / 1e6:g} million pixels."
            )
        self.counted += count
        if self.counted > self.pixels_in_all:
            raise TooMuch(
                f"the images of a request may have {self.pixels_in_all / 1e6:g} million pixels: "
                "send fewer or smaller images."
            )


class TooMuch(InputError):
    """A request beyond its `Limits`."""


class RowsRefused(InputError):
    """Invalid rows: a sentence for each of them, and the valid examples."""

    def __init__(self, sentences: list[str], examples: Examples):
        more = f" In all, {len(sentences)} rows are refused." if len(sentences) > 1 else ""
        super().__init__(sentences[0] + more)
        self.sentences, self.examples = sentences, examples


def note(sentence: str) -> None:
    """Prints to stderr, as stdout has the predictions."""
    print(sentence, file=sys.stderr)


@dataclasses.dataclass(frozen=True)
class Spec:
    """Input signature of an exported model: a raw array."""

    shape: tuple[int, ...]
    """Shape of an example."""
    dtype: str
    meaning: str
    """One line for the user."""


@dataclasses.dataclass(frozen=True)
class Plain:
    """Examples for baselines: rows or texts."""

    rows: np.ndarray | None = None
    """float64 (n, columns), NaN where a value is missing."""
    categories: tuple[bool, ...] = ()
    """True for columns of level numbers."""
    texts: Sequence[str] | None = None


class Encoder(abc.ABC):
    """Turns examples into arrays. A frozen dataclass, whose fields are saved as JSON; a large field
    is text with `metadata={"file": "tokenizer.json"}`, the file that it is saved in."""

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
        """Returns a user's examples, one or more, without targets.

        given: a str (a path, or a text), an `Upload`, a list of rows {column: value}, a NumPy array
        of one example or several, or a data frame; None for data saved in the run. Raises
        InputError for anything else, and for invalid examples."""

    def parse_with_targets(self, given: Any) -> Examples:
        """Returns a user's examples with their targets, for evaluation. given: the Path of a file
        or folder in the form of the training data, or a data frame. Raises InputError for anything
        else, and for data without targets."""
        raise InputError(
            f"evaluate reads no targets from {given!s:.100}: give an array and its targets."
        )

    def measure(self, upload: Upload, limits: Limits) -> None:
        """Raises TooMuch for an upload whose header shows that it exceeds the limits."""
        return None

    def raw(self, examples: Examples) -> Any:
        """Returns the array (n, *shape) that `batch` encodes, such as decoded pixels or tokens;
        default: the column "inputs"."""
        return examples.columns["inputs"]

    @abc.abstractmethod
    def spec(self) -> Spec:
        """Returns shape, dtype and meaning of one example of `raw`."""

    def batch(self, raw: Any, xp: Any = np) -> dict[str, Any]:
        """Returns the arrays (n, ...) of a batch, "inputs" among them, of a raw array. xp: numpy,
        or jax.numpy for a traced array, as in an exported model."""
        return {"inputs": raw}

    def encode(self, examples: Examples) -> dict[str, Any]:
        """Returns the arrays for training: `batch`, and "targets" if they are known."""
        arrays = self.batch(self.raw(examples))
        if examples.target is not None:
            arrays["targets"] = self.target.encode(examples.target)
        return arrays

    def model_fields(self) -> dict[str, Any]:
        """Returns fields that a model must have, such as the vocabulary size of texts."""
        return {}

    def describe(self) -> str:
        """Returns the kind of examples: "grey images of 28 x 28 pixels"."""
        return f"examples of shape {' x '.join(map(str, self.spec().shape)) or 'one number'}"

    def plain(self, examples: Examples) -> Plain | None:
        """Returns the examples for baselines; None if these use the inputs."""
        return None

    def image(self, inputs: Any, index: int) -> np.ndarray | None:
        """Returns an image of inputs (n, ...) for a figure, uint8 (h, w, 1 or 3); None if examples
        are no images."""
        return None

    def groups(self) -> dict[str, slice]:
        """Returns the indices in the inputs of each column of a table, for its importance."""
        return {}

    def columns_table(self) -> list[dict[str, Any]]:
        """Returns the rows of columns.csv, one for each column of a table; [] for other data."""
        return []

    def outlook(self) -> Mapping[str, Any]:
        """Returns JSON values for the widget of a server's page: columns, a series."""
        return {}


METHODS = {name for name in vars(Encoder) if not name.startswith("_")} - {"target"}
HUB_DATASET = "with_format", "column_names"  # attributes of Hugging Face's `datasets.Dataset`


def as_path(given: Any) -> Path | None:
    """Returns a str or Path as a Path, None for anything else."""
    return Path(given) if isinstance(given, str | Path) else None


def as_upload(given: Any) -> Upload:
    """Returns an Upload of a path (str or Path), or the Upload itself. Raises InputError for
    anything else, and for a file that cannot be read."""
    if isinstance(given, Upload):
        return given
    if as_path(given) is None or not Path(given).is_file():
        problem = "nothing was given" if given is None else f"{given!s:.200} is no file"
        raise InputError(f"{problem}: name one or more files after the run folder.")
    return Upload(read_bytes(Path(given)), str(given))


def is_frame(given: Any) -> bool:
    """True for a data frame of pandas, one with Arrow's interface, or a Hugging Face data set."""
    if is_series(given):
        return False
    interfaces = ("__arrow_c_stream__",), ("columns", "iloc"), HUB_DATASET
    return any(_has(given, *names) for names in interfaces)


def unpack_hub(given: Any) -> Any:
    """Returns the Arrow table of a Hugging Face data set, anything else unchanged."""
    return given.with_format("arrow")[:] if _has(given, *HUB_DATASET) else given


def is_series(given: Any) -> bool:
    """True for a column, or a row, of a pandas data frame."""
    return _has(given, "index", "iloc") and not _has(given, "columns")


def _has(given: Any, *names: str) -> bool:
    is_common = isinstance(given, np.ndarray | Mapping | Sequence | Path)
    return not is_common and set(names) <= set(dir(given))


def column_values(given: Any) -> Any:
    """Returns a column, or a data frame with one, as a list of texts or paths; anything else
    unchanged. Raises InputError for other values, and for several columns."""
    given = unpack_hub(given)
    if is_frame(given) and _has(given, "columns"):
        if len(given.columns) != 1:
            raise InputError(
                f"this model takes no data frame of {len(given.columns)} columns: give the column "
                "of texts or paths."
            )
        given = given.iloc[:, 0] if _has(given, "iloc") else pa.table(given).column(0)
    if is_series(given):
        values = given.tolist()
    elif _has(given, "__arrow_c_stream__"):
        values = pa.chunked_array(given).to_pylist()
    else:
        return given
    if not all(isinstance(value, str | Path) for value in values):
        raise InputError("a column of texts or paths has other values, such as missing ones.")
    return values
