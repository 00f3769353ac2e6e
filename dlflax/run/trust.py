"""Code outside of dlflax: noted by path and bytes when the user runs it, and run again as noted.

The notes are experiments.json in the cache folder.
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

from dlflax.errors import InputError
from dlflax.files import atomic_write, cache_folder, read_bytes, read_json


def read_notes() -> dict[str, dict[str, Any]]:
    """Returns {"files": {path: sha256}, "modules": {name: {path: sha256}}}."""
    notes = {}
    with contextlib.suppress(OSError, ValueError):
        notes = read_json(cache_folder() / "experiments.json")
    notes = notes if isinstance(notes, dict) else {}
    return {k: v if isinstance(v := notes.get(k), dict) else {} for k in ("files", "modules")}


def add_notes(files: dict[str, str], module_names: set[str]) -> None:
    """Notes files, {path: sha256}, and the files of modules; those without source are passed by."""
    modules = {name: hashes for name in module_names if (hashes := _hashes(_sources(name)))}
    notes = read_notes()
    if files.items() <= notes["files"].items() and modules.items() <= notes["modules"].items():
        return
    notes = {"files": notes["files"] | files, "modules": notes["modules"] | modules}
    with contextlib.suppress(OSError):  # without the note, predict asks for --experiment
        cache_folder().mkdir(parents=True, exist_ok=True)
        with atomic_write(cache_folder() / "experiments.json") as temporary:
            temporary.write_text(json.dumps(notes, indent=1) + "\n", encoding="utf-8")


def import_noted(module_name: str) -> ModuleType | None:
    """Returns the module if it is noted and its files are as noted, else None. InputError if its
    code fails."""
    hashes = read_notes()["modules"].get(module_name)
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
    """Returns a new module of these bytes: neither later ones nor __pycache__ are read."""
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    try:
        exec(compile(content, spec.origin or "", "exec", dont_inherit=True), module.__dict__)
    except BaseException:
        sys.modules.pop(spec.name, None)
        raise
    return module


def failure(name, error: Exception) -> InputError:
    """Returns one sentence that says where the code of a module or file failed."""
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
    """Source of a module, after that of the packages that hold it; [] without files of Python.
    Nothing is imported."""
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
            # a folder without __init__.py is a package without a file
            sources.append((spec, read_bytes(spec.origin) if spec.origin else b""))
        return sources
    return []


def _hashes(sources: list[tuple[ModuleSpec, bytes]]) -> dict[str, str]:
    """{path: sha256} of the files."""
    return {str(Path(s.origin).resolve()): sha256(content) for s, content in sources if s.origin}
