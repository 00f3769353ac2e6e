"""Experiment: a module or file with PRESETS, and the code that a run folder may name.

A run folder names the classes of its run. Code outside of dlflax is that of the experiment which
the user names now, and of modules that it has imported: no name in a folder imports a module.
"""

import contextlib
import dataclasses
import hashlib
import importlib
import importlib.util
import pkgutil
import shlex
import sys
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

from dlflax.config.serialize import (
    LIBRARIES,
    MODULE_PREFIX,
    external_modules,
    importable_name,
    is_own,
    qualified_name,
)
from dlflax.errors import InputError, first_line
from dlflax.files import escape_controls, read_bytes

FILES = "__main__", MODULE_PREFIX  # first parts of names of modules that were loaded from a file
INSTALLED = {"site-packages", "dist-packages"}  # folders of packages


@dataclasses.dataclass(frozen=True, eq=False)
class Experiment:
    """A module with PRESETS = {"default": run.Config(...), ...}; optional are ARCHITECTURES (name
    -> Linen module, for --model), SPACE and GRID (of `tune.suggest.space`)."""

    name: str
    """Name of its folder in runs/."""
    module: ModuleType | None = None
    saved_as: str = ""
    """File or module in config.json, of an experiment that the user has not named."""

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
        if getattr(self.module, "__file__", None) is None:
            return None
        name, spec = self.module.__name__, self.module.__spec__
        is_loaded = sys.modules.get(name) is self.module  # else PRESETS is no name of the script's
        if is_loaded and (name == "__main__" and spec or not name.startswith(FILES)):
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
            return {"file": str(self.file), "sha256": _sha256(read_bytes(self.file))}
        is_importable = self.module_name != "__main__" and self.module is not None
        if is_importable and sys.modules.get(self.module.__name__) is self.module:
            return {"module": self.module_name}
        return {}  # of a prompt

    @property
    def options(self) -> list[str]:
        """Words that name the experiment in a command for its run folder; [] for one of dlflax."""
        name = str(self.file or self.origin().get("module", "dlflax"))
        return [] if is_own(name) else ["--experiment", name]

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
        shown = f"{path} names {escape_controls(str(reference))}"
        if is_own(module_name) or (libraries and module_name in LIBRARIES):
            module = _import_module(module_name, path)
        elif (module := self._find_module(module_name)) is None:
            name = escape_controls(self.saved_as) or "FILE"
            python = "python" if name.endswith((".py", "FILE")) else "python -m"
            raise InputError(
                f"{shown}, code outside of dlflax, which runs only if you name an experiment that "
                f"defines or imports it: if you trust it, add --experiment {shlex.quote(name)} (in "
                f"Python experiment={name!r}; to resume, {python} {shlex.quote(name)} --resume)."
            )
        value = module
        for part in name.split("."):  # through classes only, not into imported modules
            inside = value is module or isinstance(value, type)
            value = getattr(value, part, None) if inside else None
        if not _is_defined_in(value, module, name):
            raise InputError(f"{shown}, and that module defines no {escape_controls(name)}.")
        return value

    def _find_module(self, module_name: str) -> ModuleType | None:
        """Returns a loaded module outside of dlflax: the experiment, or one that this or a module
        of its presets' classes imports. None for any other module."""
        if self.module and module_name == self.module_name:
            return self.module
        if module_name == "__main__" and not hasattr(sys.modules["__main__"], "__file__"):
            return sys.modules["__main__"]  # a notebook or a prompt
        used = external_modules(self._values())
        importers = [self.module, *(sys.modules.get(name) for name in used)]
        if module_name not in used.union(*map(_imports, filter(None, importers))):
            return None
        names = (module_name, MODULE_PREFIX + module_name, "__main__")
        modules = [sys.modules[name] for name in names if name in sys.modules]
        return next((m for m in modules if importable_name(m.__name__) == module_name), None)

    def _values(self) -> tuple:
        return (*self.presets.values(), *self.architectures.values())


def _imports(module: ModuleType) -> set[str]:
    """Returns the modules that a module imports or takes names from, except Python's library and
    installed packages. In these, `resolve` finds only what the presets use."""
    names = {
        value.__name__ if isinstance(value, ModuleType) else getattr(value, "__module__", None)
        for value in vars(module).values()
    }
    return {importable_name(name) for name in names if isinstance(name, str) and _is_users(name)}


def _is_users(module_name: str) -> bool:
    """True for an imported module that is neither of Python's library nor an installed package."""
    file = getattr(sys.modules.get(module_name), "__file__", None)
    is_library = module_name.partition(".")[0] in sys.stdlib_module_names
    return bool(file) and not is_library and not INSTALLED & {*Path(file).parts}


def _is_defined_in(value, module: ModuleType, name: str) -> bool:
    """True if the module defines the class or function; LIBRARIES count as one module."""
    home = getattr(value, "__module__", None)
    if not isinstance(home, str) or isinstance(value, ModuleType):
        return False
    if module.__name__ in LIBRARIES:
        return home.partition(".")[0] in ("jax", "flax", "optax")
    inside = is_own(home) if is_own(module.__name__) else home == module.__name__
    return inside and qualified_name(value) == name


def from_presets(name: str, presets: Mapping[str, Any], architectures=None) -> Experiment:
    """Returns the experiment of the loaded module that has these PRESETS and ARCHITECTURES."""
    for module in list(sys.modules.values()):
        names = getattr(module, "__dict__", {})
        # a module that imports another's PRESETS alone is another experiment
        same = (names.get("ARCHITECTURES") or {}) == (architectures or {})
        if names.get("PRESETS") is presets and same:
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
        raise _import_error(module_name, error) from error
    if hasattr(module, "PRESETS") or (module and module_name == given):
        return Experiment(given.rpartition(".")[2], module)
    shipped = [
        name for name in names
        if hasattr(importlib.import_module(f"{package.__name__}.{name}"), "PRESETS")
    ]  # fmt: skip
    choice = f"choose one of {', '.join(shipped)}, or give" if shipped else "give"
    raise InputError(f"unknown experiment {given!r}: {choice} a module or a file that ends in .py.")


def from_run_folder(saved: dict, folder: Path, given, package, log: Callable) -> Experiment:
    """Returns the experiment of a run folder: the file or module that the user gives, the running
    script, or one of dlflax. saved: its config.json. Raises InputError if it cannot be imported."""
    origin, name = saved.get("defined_in", {}), saved["experiment"]
    module_name = origin.get("module", "")
    if given:
        experiment = _find_any(given, package)
    elif _is_main(Path(origin.get("file", ""))) or module_name == importable_name("__main__"):
        experiment = Experiment(name, sys.modules["__main__"])
    elif is_own(module_name):
        experiment = Experiment(name, _import_module(module_name, folder / "config.json"))
    else:
        return Experiment(name, saved_as=origin.get("file", module_name))
    if hasattr(experiment.module, "PRESETS"):
        _check_presets(experiment)
    log_file_change(origin, experiment, log)
    return experiment


def log_file_change(origin: dict, experiment: Experiment, log: Callable[[str], None]) -> None:
    """Logs that the experiment's file has changed. origin: `defined_in` of the saved run."""
    now = experiment.origin()
    if "sha256" in origin and "sha256" in now and origin["sha256"] != now["sha256"]:
        log(f"note: {now['file']} has changed since the run began: the result may differ")


def _is_main(path: Path) -> bool:
    """True if the path is the running script's."""
    main = getattr(sys.modules["__main__"], "__file__", None)
    return bool(main) and Path(main).resolve() == path


def _from_file(path: Path) -> Experiment:
    """Returns the Experiment of a file, which runs unless it has run in its present state."""
    if not path.is_file():
        state = "is not a file" if path.exists() else "does not exist"
        raise InputError(f"{path} {state}: give the .py file of an experiment.")
    path = path.resolve()
    if _is_main(path):
        return Experiment(path.stem, sys.modules["__main__"])
    name = MODULE_PREFIX + path.stem
    try:
        content = read_bytes(path)
        module = sys.modules.get(name)
        state = module and (module.__file__, module.__spec__.loader_state)
        if state != (str(path), content):
            if str(path.parent) not in sys.path:  # for modules in its folder, as Python does
                sys.path.insert(0, str(path.parent))
            module = execute(name, path, content)
    except Exception as error:
        raise _import_error(path, error) from error
    return Experiment(path.stem, module)


def execute(name: str, path: Path, content: bytes) -> ModuleType:
    """Returns a new module of these bytes, which neither the file nor __pycache__ replaces."""
    spec = importlib.util.spec_from_file_location(name, path)
    spec.loader_state = content
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    try:
        exec(compile(content, path, "exec", dont_inherit=True), module.__dict__)
    except BaseException:
        sys.modules.pop(name, None)
        raise
    return module


def _import_error(name, error: Exception) -> InputError:
    """Returns an InputError with the line where the import of a module or file failed."""
    if isinstance(error, InputError):
        return error
    frames = [f for f in traceback.extract_tb(error.__traceback__) if "importlib" not in f.filename]
    line = error.lineno if isinstance(error, SyntaxError) else frames[-1].lineno
    file = error.filename if isinstance(error, SyntaxError) else frames[-1].filename
    reason = f"{type(error).__name__}: {first_line(error)}"
    return InputError(f"{name} cannot be imported: {file}, line {line}: {reason}.")


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


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
