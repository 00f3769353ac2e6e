"""Data sets prepared by TensorFlow Datasets, or downloaded; tests of the network.

requests and tensorflow_datasets are imported only where they are needed.
"""

import contextlib
import importlib.util
import os
import threading
import urllib.parse
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from dlflax.errors import InputError
from dlflax.files import cache_folder

NETWORK_SECONDS = 4.0


def tfds_folders() -> tuple[Path, Path]:
    """Returns TFDS's folder of prepared data sets ($TFDS_DATA_DIR or ~/tensorflow_datasets).

    The second folder, in the cache, is for a download if the first has an unreadable data set.
    """
    default = os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets"
    return Path(default).expanduser(), cache_folder() / "tfds"


def load_or_download(
    name: str,
    url: str | None,
    read: Callable[[Path], Any],
    log: Callable[[str], None],
    find: Callable[[Path, str], Path | None] | None = None,
    folders: tuple[Path, Path] | None = None,
) -> Any | None:
    """Returns `read` of a TFDS folder, prepared already or downloaded, or logs why not. url: the
    first file to download; without, an unreadable folder raises InputError. find: as `find_tfds`.
    """
    find, folders = find or find_tfds, folders or tfds_folders()
    for folder in folders:
        if prepared := find(folder, name):
            try:
                return read(prepared)
            except InputError as error:
                if url is None:
                    raise
                log(str(error))
    if url is None:
        return None
    folder = next((folder for folder in folders if not find(folder, name)), None)
    if reason := network_error(url):
        log(f"{name} cannot be downloaded: {reason}.")
    elif folder:
        try:
            from dlflax.data import builders

            return read(builders.download(name, folder))
        except Exception as error:  # TFDS, requests and the file system raise dozens of types
            log(f"{name} could not be downloaded: {first_line(error)}")
    return None


def find_tfds(root: Path, name: str) -> Path | None:
    """Returns the newest version of `name` that TFDS has prepared below `root`."""
    versions = {}
    for info in (root / name).glob("*/dataset_info.json"):
        numbers = info.parent.name.split(".")
        if all(number.isdecimal() for number in numbers):
            versions[tuple(map(int, numbers))] = info.parent
    return versions[max(versions)] if versions else None


@contextlib.contextmanager
def open_builder(folder: Path, kind: str) -> Iterator[Any]:
    """Yields the builder of a prepared data set, and turns any error of TFDS into InputError.
    kind: the examples, for the message."""
    import tensorflow_datasets as tfds

    try:
        yield tfds.builder_from_directory(folder)
    except InputError:
        raise
    except Exception as error:  # a damaged folder can raise anything from TFDS
        reason = f"cannot be read as labelled {kind} ({first_line(error)})"
        advice = "prepare it again, or pass --data"
        raise InputError(f"The TFDS data set in {folder} {reason}: {advice}.") from None


def prepared_examples(builder, split: str, description: str, decoders=None):
    """Returns the examples of a split of a TFDS builder, dicts of NumPy arrays, indexable if they
    are in array_record. InputError without TensorFlow for other formats. description: for the
    message."""
    if builder.info.file_format.value == "array_record":
        return builder.as_data_source(split, decoders=decoders)
    if importlib.util.find_spec("tensorflow"):
        import tensorflow_datasets as tfds

        return tfds.as_numpy(builder.as_dataset(split=split, decoders=decoders))
    file_format = f"{builder.info.file_format.value} format, which only TensorFlow reads"
    raise InputError(
        f'{description} is in {file_format}: pip install "dlflax[tf]", or prepare it with '
        'file_format="array_record".'
    )


def first_line(error: Exception) -> str:
    """Returns the first line of an error's message, at most 300 characters."""
    text = str(error).strip() or type(error).__name__
    return text.splitlines()[0][:300]


def is_offline() -> bool:
    """True if $DLFLAX_OFFLINE forbids the network."""
    return os.environ.get("DLFLAX_OFFLINE", "0") not in ("", "0")


def network_error(url: str, seconds: float = NETWORK_SECONDS) -> str | None:
    """Returns the reason that `url` cannot be downloaded, or None, within `seconds`."""
    if is_offline():
        return "DLFLAX_OFFLINE is set"
    import requests  # as TFDS does, for the same proxies and certificates

    host = urllib.parse.urlsplit(url).hostname
    reason = f"no network, {host} did not answer in {seconds:.0f} s"

    def request():
        nonlocal reason
        try:
            response = requests.head(url, timeout=seconds, allow_redirects=True)
            reason = None if response.ok else f"{host} answered HTTP {response.status_code}"
        except OSError as error:
            reason = f"no network, {host} cannot be reached ({type(error).__name__})"

    # A request, because a firewall may accept any connection and TFDS then retries for minutes;
    # in a thread, because DNS has no timeout.
    thread = threading.Thread(target=request, daemon=True)
    thread.start()
    thread.join(seconds)
    return reason
