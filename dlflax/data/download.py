"""The network, and what TensorFlow Datasets has prepared: prepared, else downloaded, else a reason.

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
    """Where data sets that TFDS has prepared are looked for: its own folder ($TFDS_DATA_DIR or
    ~/tensorflow_datasets), and one in the cache, for downloads when the first holds a set that
    cannot be read here."""
    default = os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets"
    return Path(default).expanduser(), cache_folder() / "tfds"


def prepared_or_downloaded(
    name: str,
    url: str | None,
    read: Callable[[Path], Any],
    log: Callable[[str], None],
    find: Callable[[Path, str], Path | None] | None = None,
    folders: tuple[Path, Path] | None = None,
) -> Any | None:
    """What `read` makes of the TFDS folder of `name`: of one that is prepared, else of a download
    by our own builder; None where neither is to be had, for which `log` gets the reasons.

    url: what a download begins with; None for a set that cannot be downloaded, whose unreadable
    folder is then an InputError. find(folder, name) gives the prepared set, if there is one.
    """
    find, folders = find or prepared, folders or tfds_folders()
    for folder in folders:
        if found := find(folder, name):
            try:
                return read(found)
            except InputError as error:
                if url is None:
                    raise
                log(str(error))
    if url is None:
        return None
    free = [folder for folder in folders if not find(folder, name)]
    if reason := unreachable(url):
        log(f"{name} cannot be downloaded: {reason}.")
    elif free:
        try:
            from dlflax.data import builders

            return read(builders.download(name, free[0]))
        except Exception as error:  # TFDS, requests and the file system raise dozens of types
            log(f"{name} could not be downloaded: {first_line(error)}")
    return None


def prepared(root: Path, name: str) -> Path | None:
    """The newest version of `name` that TFDS has prepared below `root`."""
    versions = {}
    for info in (root / name).glob("*/dataset_info.json"):
        numbers = info.parent.name.split(".")
        if all(number.isdecimal() for number in numbers):
            versions[tuple(map(int, numbers))] = info.parent
    return versions[max(versions)] if versions else None


@contextlib.contextmanager
def builder_of(folder: Path, what: str) -> Iterator[Any]:
    """Gives the builder of a prepared data set, of labelled examples, `what` they should be. Raises
    InputError where these cannot be read."""
    import tensorflow_datasets as tfds

    try:
        yield tfds.builder_from_directory(folder)
    except InputError:
        raise
    except Exception as error:  # a damaged folder can raise anything from TFDS
        raise InputError(
            f"The TFDS data set in {folder} cannot be read as labelled {what} "
            f"({first_line(error)}): prepare it again, or pass --data-dir."
        ) from None


def prepared_examples(builder, split: str, place: str, decoders=None):
    """The examples of a split of a TFDS builder, dicts of NumPy arrays, by number where they are in
    array_record. InputError, which names
    `place`, for a file format that only TensorFlow reads where that is not installed."""
    if builder.info.file_format.value == "array_record":
        return builder.as_data_source(split, decoders=decoders)
    if importlib.util.find_spec("tensorflow"):
        import tensorflow_datasets as tfds

        return tfds.as_numpy(builder.as_dataset(split=split, decoders=decoders))
    raise InputError(
        f"{place} is in {builder.info.file_format.value} format, which only TensorFlow reads: "
        'pip install "dlflax[tf]", or prepare it with file_format="array_record".'
    )


def first_line(error: Exception) -> str:
    """The first line of an error's message, at most 300 characters."""
    text = str(error).strip() or type(error).__name__
    return text.splitlines()[0][:300]


def offline() -> bool:
    """Whether $DLFLAX_OFFLINE forbids the network."""
    return os.environ.get("DLFLAX_OFFLINE", "0") not in ("", "0")


def unreachable(url: str, seconds: float = NETWORK_SECONDS) -> str | None:
    """None when `url` can be downloaded, else why not, found out in that time."""
    if offline():
        return "DLFLAX_OFFLINE is set"
    import requests  # as TFDS does: the same proxies and certificates

    host = urllib.parse.urlsplit(url).hostname
    answer = [f"no network, {host} did not answer in {seconds:.0f} s"]

    def ask():
        try:
            response = requests.head(url, timeout=seconds, allow_redirects=True)
            answer[:] = [None if response.ok else f"{host} answered HTTP {response.status_code}"]
        except OSError as error:
            answer[:] = [f"no network, {host} cannot be reached ({type(error).__name__})"]

    # A request, because a firewall may accept any connection and TFDS then retries for minutes;
    # in a thread, because looking up a name has no timeout of its own.
    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(seconds)
    return answer[0]
