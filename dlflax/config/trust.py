"""Trusted code outside of dlflax: files whose path and SHA-256 are recorded when a user runs them.

The records are in experiments.json in the cache folder.
"""

import contextlib
import hashlib
import importlib.util
import json
import sys
import traceback
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from types import ModuleType
from typing import Any

from dlflax.cache import cache_folder
from dlflax.errors import InputError
from dlflax.files import atomic_write, read_bytes, read_json


def read_trusted_hashes() -> dict[str, dict[str, Any]]:
    """Returns {"files": {path: sha256}, "modules": {name: {path: sha256}}}."""
    trusted = {}
    with contextlib.suppress(OSError, ValueError):
        trusted = read_json(cache_folder() / "experiments.json")
    trusted = trusted if isinstance(trusted, dict) else {}
    return {k: v if isinstance(v := trusted.get(k), dict) else {} for k in ("files", "modules")}


def add_trusted_hashes(files: dict[str, str], module_names: set[str]) -> None:
    """Records files, {path: sha256}, and the source files of modules."""
    modules = {name: hashes for name in module_names if (hashes := _hashes(_sources(name)))}
    old = read_trusted_hashes()
    if files.items() <= old["files"].items() and modules.items() <= old["modules"].items():
        return
    trusted = {"files": old["files"] | files, "modules": old["modules"] | modules}
    with contextlib.suppress(OSError):  # without the record, predict requires --experiment
        cache_folder().mkdir(parents=True, exist_ok=True)
        with atomic_write(cache_folder() / "experiments.json") as temporary:
            temporary.write_text(json.dumps(trusted, indent=1) + "\n", encoding="utf-8")


def import_trusted_module(module_name: str) -> ModuleType | None:
    """Returns the module if it is trusted and its files are unchanged, else None."""
    hashes = read_trusted_hashes()["modules"].get(module_name)
    if not hashes or _hashes(sources := _sources(module_name)) != hashes:
        return None
    for spec, content in sources:
        if spec.name in sys.modules:
            continue
        try:
            module = execute(spec, content)
        except Exception as error:
            raise failure(module_name, error) from error
        package, _, name = spec.name.rpartition(".")
        if package:
            setattr(sys.modules[package], name, module)
    return sys.modules[module_name]


def execute(spec: ModuleSpec, content: bytes) -> ModuleType:
    """Returns a new module from these bytes, without reading the file or __pycache__."""
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    try:
        exec(compile(content, spec.origin or "", "exec", dont_inherit=True), module.__dict__)
    except BaseException:
        sys.modules.pop(spec.name, None)
        raise
    return module


def failure(name, error: Exception) -> InputError:
    """Returns an InputError with the line where the import of a module or file failed."""
    if isinstance(error, InputError):
        return error
    frames = [f for f in traceback.extract_tb(error.__traceback__) if "importlib" not in f.filename]
    line = error.lineno if isinstance(error, SyntaxError) else frames[-1].lineno
    file = error.filename if isinstance(error, SyntaxError) else frames[-1].filename
    reason = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
    return InputError(f"{name} cannot be imported: {file}, line {line}: {reason}.")


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _sources(module_name: str) -> list[tuple[ModuleSpec, bytes]]:
    """Returns the sources of a module and its packages, without imports; [] for no Python files."""
    sources, locations, names = [], None, module_name.split(".")
    if names[0] in sys.stdlib_module_names:
        return []
    with contextlib.suppress(ImportError, ValueError, AttributeError, OSError):
        for i in range(len(names)):
            name = ".".join(names[: i + 1])
            spec = PathFinder.find_spec(name, locations) if i else importlib.util.find_spec(name)
            locations = spec.submodule_search_locations
            if spec.origin and not spec.origin.endswith(".py"):
                return []
            # a namespace package has no file
            sources.append((spec, read_bytes(spec.origin) if spec.origin else b""))
        return sources
    return []


def _hashes(sources: list[tuple[ModuleSpec, bytes]]) -> dict[str, str]:
    """Returns {path: sha256} of the files."""
    return {str(Path(s.origin).resolve()): sha256(content) for s, content in sources if s.origin}
