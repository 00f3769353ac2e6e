"""Experiment: a module or file with PRESETS, and the code that a run folder may import.

A run folder names the classes of its run. Code outside of dlflax is imported for it only if the
user names that code, or has run the same bytes at the same path on this machine (`trust.py`): an
untrusted run folder cannot run code.
"""

import contextlib
import dataclasses
import importlib
import importlib.util
import pkgutil
import sys
from collections.abc import Callable, Mapping
from importlib.machinery import SourceFileLoader
from pathlib import Path
from types import ModuleType
from typing import Any

from dlflax.config import trust
from dlflax.config.serialize import (
    LIBRARIES,
    MODULE_PREFIX,
    OWN_PACKAGES,
    external_modules,
    importable_name,
    qualified_name,
)
from dlflax.errors import InputError
from dlflax.files import escape_controls, read_bytes


@dataclasses.dataclass(frozen=True, eq=False)
class Experiment:
    """A module with PRESETS = {"default": run.Config(...), ...}; optional are ARCHITECTURES (name
    -> Linen module, for --model), SPACE and GRID (of `tune.suggest.space`)."""

    name: str
    """Name of its folder in runs/."""
    module: ModuleType | None = None

    @property
    def presets(self) -> Mapping[str, Any]:
        return getattr(self.module, "PRESETS", {})

    @property
    def architectures(self) -> Mapping[str, Any]:
        return getattr(self.module, "ARCHITECTURES", {})

    @property
    def module_name(self) -> str:
        """Module name in config.json: "experiments.mnist", or the stem of a file."""
        return importable_name(self.module.__name__) if self.module else ""

    @property
    def file(self) -> Path | None:
        """Path of an experiment in a file; None for a module that Python imports by name."""
        if self.module is None or getattr(self.module, "__file__", None) is None:
            return None
        by_name = self.module.__name__ == "__main__" and self.module.__spec__ is not None
        if by_name or not self.module.__name__.startswith(("__main__", MODULE_PREFIX)):
            return None
        return Path(self.module.__file__).resolve()

    @property
    def command(self) -> str:
        """Command line of the experiment."""
        return f"python {self.file}" if self.file else f"python -m {self.module_name or self.name}"

    @property
    def argument(self) -> str:
        """Argument that names the experiment in other commands, such as a sweep."""
        name = self.module_name or self.name
        return str(self.file) if self.file else name.removeprefix("experiments.")

    def origin(self) -> dict[str, str]:
        """Returns module or file of the experiment, for config.json."""
        if self.file:
            return {"file": str(self.file), "sha256": trust.sha256(read_bytes(self.file))}
        return {"module": self.module_name} if self.module else {}

    def resolve(self, reference: str, path: Path, libraries: bool = False) -> Any:
        """Returns the class or function of a reference "module:name" in the saved file `path`.
        Raises InputError if it is missing or not trusted. libraries: allows functions of JAX, Flax
        and optax."""
        module_name, _, name = str(reference).partition(":")
        if not name:
            raise InputError(
                f"{path} names {reference!r}, not module:class: the file is damaged, or of another "
                "version of dlflax (named in it)."
            )
        root = module_name.partition(".")[0]
        if root in OWN_PACKAGES or (libraries and module_name in LIBRARIES):
            module = _import_module(module_name, path)
        else:
            module = self._find_trusted_module(module_name)
        shown = f"{path} names {escape_controls(str(reference))}"
        if module is None:
            raise InputError(
                f"{shown}, of a module that no run on this machine has used in its present state: "
                "if you trust it, name the experiment with --experiment FILE or MODULE."
            )
        value = module
        for part in name.split("."):  # through classes only, not into imported modules
            inside = value is module or isinstance(value, type)
            value = getattr(value, part, None) if inside else None
        if not _is_defined_in(value, module, name):
            raise InputError(f"{shown}, and that module defines no {escape_controls(name)}.")
        return value

    def _find_trusted_module(self, module_name: str) -> ModuleType | None:
        """Returns a module outside of dlflax, None if it is not trusted."""
        if module_name == self.module_name:
            return self.module
        if module_name == "__main__" and not hasattr(sys.modules["__main__"], "__file__"):
            return sys.modules["__main__"]  # a notebook or a prompt
        if module_name in external_modules(self._values()):
            names = (module_name, MODULE_PREFIX + module_name, "__main__")
            modules = [sys.modules[name] for name in names if name in sys.modules]
            return next((m for m in modules if importable_name(m.__name__) == module_name), None)
        return trust.import_trusted_module(module_name)

    def _values(self) -> tuple:
        return (*self.presets.values(), *self.architectures.values())


def _is_defined_in(value, module: ModuleType, name: str) -> bool:
    """True if the module defines the class or function; LIBRARIES count as one module."""
    home = getattr(value, "__module__", None)
    if not isinstance(home, str) or isinstance(value, ModuleType):
        return False
    root, home_root = module.__name__.partition(".")[0], home.partition(".")[0]
    if module.__name__ in LIBRARIES:
        return home_root in ("jax", "flax", "optax")
    inside = home_root in OWN_PACKAGES if root in OWN_PACKAGES else home == module.__name__
    return inside and qualified_name(value) == name


def from_presets(name: str, presets: Mapping[str, Any], architectures=None) -> Experiment:
    """Returns the experiment of the loaded module that has these PRESETS."""
    for module in list(sys.modules.values()):
        if getattr(module, "__dict__", {}).get("PRESETS") is presets:
            return Experiment(name, module)
    module = ModuleType(name)  # presets of a prompt belong to no module
    module.PRESETS, module.ARCHITECTURES = presets, architectures or {}
    module.__file__ = getattr(sys.modules["__main__"], "__file__", None)
    return Experiment(name, module)


def find(given: str, package: ModuleType | None) -> Experiment:
    """Returns an experiment by its name in `package`, its module, or its file. Raises InputError
    if there is none, or if its import fails."""
    return _check_presets(_find_any(given, package))


def _find_any(given: str, package: ModuleType | None) -> Experiment:
    """Returns the Experiment of a module or file that may have no PRESETS."""
    if given.endswith(".py") or "/" in given:
        return _from_file(Path(given).expanduser())
    names = [info.name for info in pkgutil.iter_modules(package.__path__)] if package else []
    module_name = f"{package.__name__}.{given}" if given in names else given
    spec = None
    try:
        with contextlib.suppress(ImportError, ValueError):
            spec = importlib.util.find_spec(module_name)
        module = importlib.import_module(module_name) if spec else None
    except Exception as error:
        raise trust.failure(module_name, error) from error
    if hasattr(module, "PRESETS") or (module and module_name == given):
        return Experiment(given.rpartition(".")[2], module)
    shipped = [
        name for name in names
        if hasattr(importlib.import_module(f"{package.__name__}.{name}"), "PRESETS")
    ]  # fmt: skip
    choice = f"choose one of {', '.join(shipped)}, or give" if shipped else "give"
    raise InputError(f"unknown experiment {given!r}: {choice} a module or a file that ends in .py.")


def from_run_folder(saved: dict, folder: Path, given, package, log: Callable) -> Experiment:
    """Returns the experiment of a run folder. saved: its config.json; given: file or module named
    by the user, which becomes trusted. Raises InputError if it is missing or not trusted."""
    origin, name = saved.get("defined_in", {}), saved["experiment"]
    if given:
        experiment = _find_any(given, package)
        if hasattr(experiment.module, "PRESETS"):
            _check_presets(experiment)
        trust_code(experiment, experiment._values())
        return experiment
    if "file" in origin:
        experiment = _load_trusted_file(origin["file"], folder)
        log_file_change(origin, experiment, log)
        return dataclasses.replace(experiment, name=name)
    module_name = origin.get("module", "")
    if module_name.partition(".")[0] in OWN_PACKAGES:
        return Experiment(name, _import_module(module_name, folder / "config.json"))
    if not module_name:
        return Experiment(name)
    main = sys.modules["__main__"]
    if module_name == importable_name("__main__") and hasattr(main, "PRESETS"):
        return _check_presets(Experiment(name, main))
    if module := trust.import_trusted_module(module_name):
        return _check_presets(Experiment(name, module))
    is_changed = module_name in trust.read_trusted_hashes()["modules"]
    raise _trust_error(folder, f"the module {module_name}", module_name, is_changed)


def _load_trusted_file(file: str, folder: Path) -> Experiment:
    """Returns the experiment of an unchanged trusted file, or of the running script."""
    path, trusted = Path(file), trust.read_trusted_hashes()["files"].get(file)
    if _is_main(path):
        return _check_presets(_from_file(path))
    if trusted is None:
        raise _trust_error(folder, file, file, is_changed=False)
    try:
        content = read_bytes(path)
    except (OSError, ValueError):
        raise InputError(
            f"{folder} was trained by {path}, which is missing: add --experiment FILE with its "
            "new path."
        ) from None
    if trust.sha256(content) != trusted or path.resolve() != path:
        raise _trust_error(folder, file, file, is_changed=True)
    return _check_presets(_from_file(path, content))


def _trust_error(folder: Path, code: str, name: str, is_changed: bool) -> InputError:
    state = "has changed since it last ran" if is_changed else "was never run"
    return InputError(
        f"{folder} was trained by {escape_controls(code)}, which {state} on this machine: if you "
        f"trust it, add --experiment {escape_controls(name)}."
    )


def log_file_change(origin: dict, experiment: Experiment, log: Callable[[str], None]) -> None:
    """Logs that the experiment's file has changed. origin: `defined_in` of the saved run."""
    now = experiment.origin()
    if "sha256" in origin and "sha256" in now and origin["sha256"] != now["sha256"]:
        log(f"note: {now['file']} has changed since the run began: the result may differ")


def trust_code(experiment: Experiment, config) -> None:
    """Adds the code outside of dlflax that this run uses to the trusted code."""
    files, names = {}, external_modules(config)
    if experiment.file:
        files[str(experiment.file)] = trust.sha256(read_bytes(experiment.file))
        names.discard(experiment.module_name)
    elif experiment.module_name.partition(".")[0] not in (*OWN_PACKAGES, ""):
        names.add(experiment.module_name)
    trust.add_trusted_hashes(files, names)


def _is_main(path: Path) -> bool:
    """True if the path is the running script's."""
    main = getattr(sys.modules["__main__"], "__file__", None)
    return bool(main) and Path(main).resolve() == path


def _from_file(path: Path, content: bytes | None = None) -> Experiment:
    """Returns the Experiment of a file. content: of the file, if it is read already."""
    if not path.is_file():
        state = "is not a file" if path.exists() else "does not exist"
        raise InputError(f"{path} {state}: give the .py file of an experiment.")
    path = path.resolve()
    if _is_main(path):
        return Experiment(path.stem, sys.modules["__main__"])
    name = MODULE_PREFIX + path.stem
    try:
        content = read_bytes(path) if content is None else content
        spec = importlib.util.spec_from_loader(name, SourceFileLoader(name, str(path)))
        spec.loader_state = trust.sha256(content)
        module = sys.modules.get(name)
        loaded = module and (module.__file__, module.__spec__.loader_state)
        if loaded != (str(path), spec.loader_state):
            if str(path.parent) not in sys.path:  # for modules in its folder, as Python does
                sys.path.insert(0, str(path.parent))
            module = trust.execute(spec, content)
    except Exception as error:
        raise trust.failure(path, error) from error
    return Experiment(path.stem, module)


def _check_presets(experiment: Experiment) -> Experiment:
    from dlflax.config.config import Config

    presets = experiment.presets
    if not isinstance(presets, Mapping) or not isinstance(presets.get("default"), Config):
        raise InputError(
            f"{experiment.module_name} is not an experiment: it needs PRESETS = "
            '{"default": run.Config(...)}.'
        )
    return experiment


def _import_module(module_name: str, path: Path) -> ModuleType:
    try:
        return importlib.import_module(module_name)
    except ImportError as error:
        raise InputError(
            f"{path} names the module {escape_controls(module_name)}, which cannot be imported "
            f"({escape_controls(str(error))})."
        ) from error
