"""An experiment: a module with PRESETS, given by name, as a module or as a file; what is trusted.

A run folder names the classes that made it. Nothing outside of dlflax is run for it unless the user
names it now, or has run the same bytes at the same path on this machine before (`trust.py`): a
stranger's folder chooses no code.
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

from dlflax.errors import InputError
from dlflax.files import escape_controls, read_bytes
from dlflax.run import trust
from dlflax.run.serialize import FILE, LIBRARIES, OWN, modules_of, qualified_name, shown_name


@dataclasses.dataclass(frozen=True, eq=False)
class Experiment:
    """A module with PRESETS = {"default": run.Config(...), ...}, and maybe ARCHITECTURES (name ->
    Linen module, for --model), SPACE and GRID (words of `tune.space`)."""

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
        """Its name in config.json: "experiments.mnist", or the stem of a file."""
        return shown_name(self.module.__name__) if self.module else ""

    @property
    def file(self) -> Path | None:
        """Path of an experiment that is a file, not a module that Python finds by its name."""
        if self.module is None or getattr(self.module, "__file__", None) is None:
            return None
        by_name = self.module.__name__ == "__main__" and self.module.__spec__ is not None
        if by_name or not self.module.__name__.startswith(("__main__", FILE)):
            return None
        return Path(self.module.__file__).resolve()

    @property
    def command(self) -> str:
        """The command that runs it."""
        return f"python {self.file}" if self.file else f"python -m {self.module_name or self.name}"

    @property
    def argument(self) -> str:
        """Its name for other commands, such as a sweep."""
        name = self.module_name or self.name
        return str(self.file) if self.file else name.removeprefix("experiments.")

    def default_data(self) -> Any:
        """The data source of the default preset, None without presets."""
        return getattr(self.presets.get("default"), "data", None)

    def defined_in(self) -> dict[str, str]:
        """Its module or file, for config.json."""
        if self.file:
            return {"file": str(self.file), "sha256": trust.sha256(read_bytes(self.file))}
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
        else:
            module = self._find_trusted(module_name)
        shown = f"{path} names {escape_controls(str(reference))}"
        if module is None:
            raise InputError(
                f"{shown}, of a module that no run on this machine has used as it is now: if you "
                "trust it, name the experiment with --experiment FILE or MODULE."
            )
        thing = module
        for part in name.split("."):  # through classes alone, not into what a module imports
            inside = thing is module or isinstance(thing, type)
            thing = getattr(thing, part, None) if inside else None
        if not _is_defined_in(thing, module, name):
            raise InputError(f"{shown}, and that module defines no {escape_controls(name)}.")
        return thing

    def _find_trusted(self, module_name: str) -> ModuleType | None:
        """The module of this name, outside of dlflax, if the user trusts it; else None."""
        if module_name == self.module_name:
            return self.module
        if module_name == "__main__" and not hasattr(sys.modules["__main__"], "__file__"):
            return sys.modules["__main__"]  # a notebook or a prompt: what the user typed there
        if module_name in modules_of(self._parts()):
            names = (module_name, FILE + module_name, "__main__")
            modules = [sys.modules[name] for name in names if name in sys.modules]
            return next((m for m in modules if shown_name(m.__name__) == module_name), None)
        return trust.import_noted(module_name)

    def _parts(self) -> tuple:
        """All that its presets and architectures hold."""
        return (*self.presets.values(), *self.architectures.values())


def _is_defined_in(thing, module: ModuleType, name: str) -> bool:
    """True for a class or function that the module defines: for those of a library, any module of
    the library or of one that it is built on."""
    home = getattr(thing, "__module__", None)
    if not isinstance(home, str) or isinstance(thing, ModuleType):
        return False
    root, home_root = (each.partition(".")[0] for each in (module.__name__, home))
    if module.__name__ in LIBRARIES:
        return home_root in ("jax", "flax", "optax")
    inside = home_root in OWN if root in OWN else home == module.__name__
    return inside and qualified_name(thing) == name


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
    return _checked(_locate(given, package))


def _locate(given: str, package: ModuleType | None) -> Experiment:
    """Returns what `find` does, of any module or file, with PRESETS or without."""
    if given.endswith(".py") or "/" in given:
        return _from_file(Path(given).expanduser())
    names = [found.name for found in pkgutil.iter_modules(package.__path__)] if package else []
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


def of_run(saved: dict, folder: Path, given: str | None, package, log: Callable) -> Experiment:
    """The experiment that a run folder was made by. saved: its config.json; given: what the user
    names instead, which is noted as run. InputError where it is gone or not trusted."""
    where, name = saved.get("defined_in", {}), saved["experiment"]
    if given:
        experiment = _locate(given, package)
        if hasattr(experiment.module, "PRESETS"):
            _checked(experiment)
        remember(experiment, experiment._parts())
        return experiment
    if "file" in where:
        experiment = _load_noted(where["file"], folder)
        note_changes(where, experiment, log)
        return dataclasses.replace(experiment, name=name)
    module_name = where.get("module", "")
    if module_name.partition(".")[0] in OWN:
        return Experiment(name, _imported(module_name, folder / "config.json"))
    if not module_name:
        return Experiment(name)
    main = sys.modules["__main__"]
    if module_name == shown_name("__main__") and hasattr(main, "PRESETS"):
        return _checked(Experiment(name, main))
    if module := trust.import_noted(module_name):
        return _checked(Experiment(name, module))
    known = module_name in trust.read_notes()["modules"]
    raise _refusal(folder, f"the module {module_name}", module_name, known)


def _load_noted(file: str, folder: Path) -> Experiment:
    """The experiment in a file that is as it was noted, or that runs now. InputError for any
    other."""
    path, noted = Path(file), trust.read_notes()["files"].get(file)
    if _is_main(path):
        return _checked(_from_file(path))
    if noted is None:
        raise _refusal(folder, file, file, known=False)
    try:
        content = read_bytes(path)
    except (OSError, ValueError):
        raise InputError(
            f"{folder} was trained by {path}, which is not there any more: add --experiment FILE "
            "with its new place."
        ) from None
    if trust.sha256(content) != noted or path.resolve() != path:
        raise _refusal(folder, file, file, known=True)
    return _checked(_from_file(path, content))


def _refusal(folder: Path, made_by: str, name: str, known: bool) -> InputError:
    made_by, name = escape_controls(made_by), escape_controls(name)
    state = "has changed since it last ran" if known else "was never run"
    return InputError(
        f"{folder} was trained by {made_by}, which {state} on this machine: if you trust it, add "
        f"--experiment {name}."
    )


def note_changes(where: dict, experiment: Experiment, log: Callable[[str], None]) -> None:
    """Says so when the experiment's file is not what it was. where: `defined_in` of then."""
    now = experiment.defined_in()
    if "sha256" in where and "sha256" in now and where["sha256"] != now["sha256"]:
        log(f"note: {now['file']} has changed since the run began: the result may differ")


def remember(experiment: Experiment, config) -> None:
    """Notes what this run uses from outside of dlflax, so that its folder can be read again."""
    files, names = {}, modules_of(config)
    if experiment.file:
        files[str(experiment.file)] = trust.sha256(read_bytes(experiment.file))
        names.discard(experiment.module_name)
    elif experiment.module_name.partition(".")[0] not in (*OWN, ""):
        names.add(experiment.module_name)
    trust.add_notes(files, names)


def _is_main(path: Path) -> bool:
    """True if it is the script that runs."""
    main = getattr(sys.modules["__main__"], "__file__", None)
    return bool(main) and Path(main).resolve() == path


def _from_file(path: Path, content: bytes | None = None) -> Experiment:
    """The experiment in a file, with PRESETS or without. content: of the file, if it is read."""
    if not path.is_file():
        state = "is not a file" if path.exists() else "does not exist"
        raise InputError(f"{path} {state}: give the .py file of an experiment.")
    path = path.resolve()
    if _is_main(path):
        return Experiment(path.stem, sys.modules["__main__"])
    name = FILE + path.stem
    try:
        content = read_bytes(path) if content is None else content
        spec = importlib.util.spec_from_loader(name, SourceFileLoader(name, str(path)))
        spec.loader_state = trust.sha256(content)
        module = sys.modules.get(name)
        loaded = module and (module.__file__, module.__spec__.loader_state)
        if loaded != (str(path), spec.loader_state):
            if str(path.parent) not in sys.path:  # what lies beside it, as when Python runs it
                sys.path.insert(0, str(path.parent))
            module = trust.execute(spec, content)
    except Exception as error:
        raise trust.failure(path, error) from error
    return Experiment(path.stem, module)


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


def _imported(module_name: str, path: Path) -> ModuleType:
    try:
        return importlib.import_module(module_name)
    except ImportError as error:
        raise InputError(
            f"{path} names the module {escape_controls(module_name)}, which cannot be imported "
            f"({escape_controls(str(error))})."
        ) from error
