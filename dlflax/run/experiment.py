"""An experiment: a module with PRESETS, given by name, as a module or as a file; what is trusted.

A run folder names the classes that made it. Nothing outside of dlflax is imported for it unless the
user has trained with it on this machine before, or names it now: a stranger's folder chooses no
code. What was trained with is noted in experiments.json in the cache folder.
"""

import contextlib
import dataclasses
import hashlib
import importlib
import importlib.util
import json
import pkgutil
import sys
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

from dlflax.errors import InputError
from dlflax.files import cache_folder, read_bytes, read_json, replacing

OWN = ("dlflax", "experiments")  # packages that come with this one
LIBRARIES = (  # whose functions a model's field may name
    "jax.nn", "jax.numpy", "jax.nn.initializers", "flax.linen", "flax.linen.initializers", "optax",
)  # fmt: skip
_FILE = "experiment_file_"  # what a module that was loaded from a file is called in sys.modules


@dataclasses.dataclass(frozen=True, eq=False)
class Experiment:
    """A module with PRESETS = {"default": run.Config(...), ...}, and maybe ARCHITECTURES (name ->
    Linen module, for --model), SPACE and GRID (words of `tune.space`)."""

    name: str
    """Of its folder in runs/."""
    module: ModuleType | None = None

    @property
    def presets(self) -> Mapping[str, Any]:
        return getattr(self.module, "PRESETS", {})

    @property
    def architectures(self) -> Mapping[str, Any]:
        return getattr(self.module, "ARCHITECTURES", {})

    @property
    def module_name(self) -> str:
        """As it is saved: "experiments.mnist", or the stem of a file."""
        return _shown_name(self.module.__name__) if self.module else ""

    @property
    def file(self) -> Path | None:
        """Of an experiment that is a file, not a module that Python finds by its name."""
        if self.module is None or getattr(self.module, "__file__", None) is None:
            return None
        by_name = self.module.__name__ == "__main__" and self.module.__spec__ is not None
        if by_name or not self.module.__name__.startswith(("__main__", _FILE)):
            return None
        return Path(self.module.__file__).resolve()

    @property
    def command(self) -> str:
        """What runs it."""
        return f"python {self.file}" if self.file else f"python -m {self.module_name or self.name}"

    @property
    def argument(self) -> str:
        """How other commands, such as a sweep, are told of it."""
        name = self.module_name or self.name
        return str(self.file) if self.file else name.removeprefix("experiments.")

    def default_data(self) -> Any:
        """The data source of the default preset, None without presets."""
        return getattr(self.presets.get("default"), "data", None)

    def defined_in(self) -> dict[str, str]:
        """Where it lives, for config.json."""
        if self.file:
            return {"file": str(self.file), "sha256": _sha256(self.file)}
        return {"module": self.module_name} if self.module else {}

    def resolve(self, reference: str, path: Path, libraries: bool = False) -> Any:
        """The class or function that `reference` ("module:name") names, in the saved file `path`.
        InputError for one that is not there or not trusted. libraries: functions of JAX, Flax and
        optax will do."""
        module_name, _, name = str(reference).partition(":")
        if not name:
            raise InputError(
                f"{path} names {reference!r}, not module:class: it is of another version of dlflax "
                "(named in it), or damaged."
            )
        root = module_name.partition(".")[0]
        if root in OWN or (libraries and module_name in LIBRARIES):
            module = _imported(module_name, path)
        elif module_name == self.module_name:
            module = self.module
        elif module_name in self._trusted():
            own = module_name == _shown_name("__main__")
            module = sys.modules["__main__"] if own else _imported(module_name, path)
        elif module_name == "__main__" and not hasattr(sys.modules["__main__"], "__file__"):
            module = sys.modules["__main__"]  # a notebook or a prompt: what the user typed there
        else:
            raise InputError(
                f"{path} names {reference}, of a module that no run on this machine has used: if "
                f"you trust it, name the experiment with --experiment FILE or MODULE."
            )
        found = module
        for part in name.split("."):
            found = getattr(found, part, None)
        if found is None:
            raise InputError(f"{path} names {reference}, and there is no {name} in that module.")
        return found

    def _trusted(self) -> set[str]:
        """Names of the modules that are imported when a saved file names them."""
        noted = {name for name, origin in _noted()["modules"].items() if _origin(name) == origin}
        return noted | {module for preset in self.presets.values() for module in modules_of(preset)}


def modules_of(value) -> set[str]:
    """Names of the modules outside of dlflax whose classes and functions a Config holds."""
    found = set()
    if isinstance(value, tuple | list):
        return found.union(*map(modules_of, value)) if value else found
    of = type(value) if dataclasses.is_dataclass(value) else value
    if (dataclasses.is_dataclass(value) or callable(value)) and (name := reference(of)):
        module = name.partition(":")[0]
        if module.partition(".")[0] not in OWN and module not in LIBRARIES:
            found.add(module)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        for field in dataclasses.fields(value):
            if field.name != "parent":
                found |= modules_of(getattr(value, field.name, None))
    return found


def reference(thing) -> str | None:
    """ "module:name" of a class or function; None for one that cannot be found by it."""
    module_name = getattr(thing, "__module__", None)
    name = getattr(thing, "__qualname__", None) or getattr(thing, "__name__", None)
    if not module_name or not name or "<" in name:
        return None
    if module_name.partition(".")[0] == "dlflax":  # the shortest place that has it
        parts = module_name.split(".")
        for length in range(2, len(parts) + 1):
            shorter = ".".join(parts[:length])
            if getattr(sys.modules.get(shorter), name, None) is thing:
                return f"{shorter}:{name}"
    for library in LIBRARIES:
        if getattr(sys.modules.get(library), name, None) is thing:
            return f"{library}:{name}"
    found = sys.modules.get(module_name)
    for part in name.split("."):
        found = getattr(found, part, None)
    return f"{_shown_name(module_name)}:{name}" if found is thing else None


def of_presets(name: str, presets: Mapping[str, Any], architectures=None) -> Experiment:
    """The experiment that calls: the loaded module whose PRESETS these are."""
    for module in list(sys.modules.values()):
        if getattr(module, "__dict__", {}).get("PRESETS") is presets:
            return Experiment(name, module)
    module = ModuleType(name)  # presets that belong to no module, from a prompt
    module.PRESETS, module.ARCHITECTURES = presets, architectures or {}
    module.__file__ = getattr(sys.modules["__main__"], "__file__", None)
    return Experiment(name, module)


def find(given: str, package: ModuleType | None) -> Experiment:
    """The experiment that a user names: one of `package`, if there is one, a module, or a file.
    InputError where there is none, or its code fails."""
    if given.endswith(".py") or "/" in given:
        return _from_file(Path(given).expanduser())
    names = [found.name for found in pkgutil.iter_modules(package.__path__)] if package else []
    module_name = f"{package.__name__}.{given}" if given in names else given
    with contextlib.suppress(ImportError, ValueError):
        if importlib.util.find_spec(module_name):
            try:
                module = importlib.import_module(module_name)
            except Exception as error:
                raise _broken(module_name, error) from error
            if hasattr(module, "PRESETS"):
                return _checked(Experiment(given.rpartition(".")[2], module))
            if module_name == given:
                raise _without_presets(given)
    shipped = [
        name for name in names
        if hasattr(importlib.import_module(f"{package.__name__}.{name}"), "PRESETS")
    ]  # fmt: skip
    raise InputError(
        f"unknown experiment {given!r}: choose one of {', '.join(shipped)}, or give a module or a "
        "file that ends in .py."
    )


def of_run(saved: dict, folder: Path, given: str | None, package, log: Callable) -> Experiment:
    """The experiment that a run folder was made by. saved: its config.json; given: what the user
    names instead. InputError where it is gone or not trusted."""
    where, name = saved.get("defined_in", {}), saved["experiment"]
    if given:
        return find(given, package)
    if path := where.get("file"):
        noted = _noted()["files"]
        if path not in noted and where.get("sha256") not in noted.values():
            raise InputError(
                f"{folder} was trained by {path}, which was never run on this machine: if you "
                f"trust it, add --experiment {path}."
            )
        if not Path(path).is_file():
            raise InputError(
                f"{folder} was trained by {path}, which is not there any more: add --experiment "
                "FILE with its new place."
            )
        found = _from_file(Path(path))
        note_changes(where, found, log)
        return dataclasses.replace(found, name=name)
    module_name = where.get("module", "")
    if module_name.partition(".")[0] in OWN:
        return Experiment(name, _imported(module_name, folder / "config.json"))
    if module_name in _noted()["modules"]:
        return find(module_name, package)
    if module_name:
        raise InputError(
            f"{folder} was trained by the module {module_name}, which was never run on this "
            f"machine: if you trust it, add --experiment {module_name}."
        )
    return Experiment(name)


def note_changes(where: dict, experiment: Experiment, log: Callable[[str], None]) -> None:
    """Says so when the experiment's file is not what it was. where: `defined_in` of then."""
    now = experiment.defined_in()
    if "sha256" in where and "sha256" in now and where["sha256"] != now["sha256"]:
        log(f"note: {now['file']} has changed since the run began: the result may differ")


def remember(experiment: Experiment, config) -> None:
    """Notes what this run uses from outside of dlflax, so that its folder can be read again."""
    files, modules = {}, {}
    if experiment.file:
        files[str(experiment.file)] = _sha256(experiment.file)
    elif experiment.module_name.partition(".")[0] not in (*OWN, ""):
        modules[experiment.module_name] = _origin(experiment.module_name)
    for name in modules_of(config) - {experiment.module_name}:
        modules[name] = _origin(name)
    modules = {name: origin for name, origin in modules.items() if origin}
    noted = _noted()
    if files.items() <= noted["files"].items() and modules.items() <= noted["modules"].items():
        return
    noted = {"files": noted["files"] | files, "modules": noted["modules"] | modules}
    with contextlib.suppress(OSError):  # without the note, predict asks for --experiment
        cache_folder().mkdir(parents=True, exist_ok=True)
        with replacing(cache_folder() / "experiments.json") as temporary:
            temporary.write_text(json.dumps(noted, indent=1) + "\n", encoding="utf-8")


def _noted() -> dict[str, dict[str, str]]:
    """{"files": {path: sha256}, "modules": {name: file}}."""
    noted = {}
    with contextlib.suppress(OSError, ValueError):
        noted = read_json(cache_folder() / "experiments.json")
    noted = noted if isinstance(noted, dict) else {}
    return {k: v if isinstance(v := noted.get(k), dict) else {} for k in ("files", "modules")}


def _origin(module_name: str) -> str | None:
    """The file that a module would be imported from; nothing is imported but what it is in."""
    root = module_name.partition(".")[0]
    if root in sys.stdlib_module_names:
        return None
    with contextlib.suppress(ImportError, ValueError, AttributeError):
        spec = importlib.util.find_spec(root)
        return str(Path(spec.origin).resolve()) if spec and spec.origin else None
    return None


def _from_file(path: Path) -> Experiment:
    if not path.is_file():
        state = "is not a file" if path.exists() else "does not exist"
        raise InputError(f"{path} {state}: give the .py file of an experiment.")
    path = path.resolve()
    main = sys.modules["__main__"]
    if getattr(main, "__file__", None) and Path(main.__file__).resolve() == path:
        return _checked(Experiment(path.stem, main))
    name = _FILE + path.stem
    if (module := sys.modules.get(name)) is None or module.__file__ != str(path):
        spec = importlib.util.spec_from_file_location(name, path)
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module
        if str(path.parent) not in sys.path:  # what lies beside it, as when Python runs it
            sys.path.append(str(path.parent))
        try:
            spec.loader.exec_module(module)
        except Exception as error:
            del sys.modules[name]
            raise _broken(path, error) from error
    if not hasattr(module, "PRESETS"):
        raise _without_presets(path)
    return _checked(Experiment(path.stem, module))


def _checked(experiment: Experiment) -> Experiment:
    from dlflax.run.config import Config

    presets = experiment.presets
    if not isinstance(presets, Mapping) or not isinstance(presets.get("default"), Config):
        raise _without_presets(experiment.module_name)
    return experiment


def _without_presets(given) -> InputError:
    return InputError(
        f'{given} is not an experiment: it needs PRESETS = {{"default": run.Config(...)}}.'
    )


def _broken(given, error: Exception) -> InputError:
    """Where the code of an experiment failed, in one sentence."""
    if isinstance(error, InputError):
        return error
    frames = [f for f in traceback.extract_tb(error.__traceback__) if "importlib" not in f.filename]
    line = error.lineno if isinstance(error, SyntaxError) else frames[-1].lineno
    file = error.filename if isinstance(error, SyntaxError) else frames[-1].filename
    reason = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
    return InputError(f"{given} cannot be imported: {file}, line {line}: {reason}.")


def _imported(module_name: str, path: Path) -> ModuleType:
    try:
        return importlib.import_module(module_name)
    except ImportError as error:
        raise InputError(
            f"{path} names the module {module_name}, which cannot be imported ({error})."
        ) from error


def _shown_name(module_name: str) -> str:
    """A module's name as others import it."""
    if module_name == "__main__":
        main = sys.modules["__main__"]
        if getattr(main, "__spec__", None) is not None:
            return main.__spec__.name
        return Path(main.__file__).stem if getattr(main, "__file__", None) else "__main__"
    return module_name.removeprefix(_FILE)


def _sha256(path: Path) -> str:
    return hashlib.sha256(read_bytes(path)).hexdigest()
