"""A trial of a sweep, what came of it, and how both are kept in Optuna's tables."""

import contextlib
import dataclasses
import json
import re
from collections.abc import Callable
from typing import Any

import optuna
import sqlalchemy
from optuna.exceptions import StorageInternalError
from optuna.trial import FrozenTrial, TrialState, create_trial

from dlflax.errors import InputError

optuna.logging.set_verbosity(optuna.logging.WARNING)  # it would report every study and trial


@dataclasses.dataclass(frozen=True)
class Trial:
    """One configuration that this process is to train."""

    index: int
    """0-based count of configurations; decides seeds and grid point. A retry keeps it."""
    params: dict[str, Any]
    system_attrs: dict[str, Any] = dataclasses.field(default_factory=dict)
    """What the sampler left (CMA-ES keeps its state there)."""
    id: int | None = None
    """Optuna's trial id (PostgreSQL only)."""


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What training a trial brought."""

    value: float
    """+-inf for one that diverged, never NaN."""
    intermediate: dict[int, float] = dataclasses.field(default_factory=dict)
    """Epoch, from 1 -> value."""
    pruned: bool = False
    seconds: float = 0.0
    """Its share of the time that its batch took."""
    attrs: dict[str, Any] = dataclasses.field(default_factory=dict)
    """JSON values, kept as user attributes."""

    @property
    def state(self) -> TrialState:
        return TrialState.PRUNED if self.pruned else TrialState.COMPLETE


Suggest = Callable[[list[FrozenTrial], list[int]], list[Trial]]


def frozen(trial: Trial, distributions, outcome: Outcome | None = None) -> FrozenTrial:
    """As Optuna keeps it: waiting, or with its outcome."""
    common = {
        "params": trial.params,
        "distributions": {name: distributions[name] for name in trial.params},
        "system_attrs": json.loads(json.dumps(trial.system_attrs)),  # as they will be read again
    }
    if outcome is None:
        attrs = {"index": trial.index}
        return create_trial(state=TrialState.WAITING, user_attrs=attrs, **common)
    return create_trial(
        state=outcome.state,
        value=outcome.value,
        intermediate_values=outcome.intermediate,
        user_attrs=json.loads(json.dumps(outcome.attrs)),
        **common,
    )


def create_study(storage, study, direction, shown):
    """Optuna's study, made if it is not there. InputError where it has another direction."""
    made = optuna.create_study(
        study_name=study, storage=storage, direction=direction, load_if_exists=True
    )
    found = [each.name.lower() for each in made.directions]
    if found != [direction]:
        raise InputError(
            f"--storage {shown}: the study {study} there is to {' and '.join(found)} its "
            "objective: give the same --objective, or another --study NAME."
        )
    return made


def saved_settings(storage, study_id, new):
    saved = storage.get_study_user_attrs(study_id).get("settings")
    if saved is None:
        saved = json.loads(json.dumps(new))
        storage.set_study_user_attr(study_id, "settings", saved)
    return saved


@contextlib.contextmanager
def opening(shown: str | None):
    """InputError, in one sentence, where the database cannot be used."""
    try:
        yield
    except ImportError as error:
        raise InputError(
            f"--storage {shown} needs psycopg: pip install 'dlflax[postgres]', and begin the "
            "address with postgresql+psycopg://."
        ) from error
    except (sqlalchemy.exc.SQLAlchemyError, StorageInternalError, RuntimeError) as error:
        # RuntimeError: tables of another version of Optuna
        raise InputError(f"--storage {shown} cannot be used: {reason_of(error)}.") from error


def without_password(url: str) -> str:
    """The address as it may be shown."""
    return re.sub(r"(://[^:/]*):.*@", r"\1:***@", re.sub(r"password=[^&]*", "password=***", url))


def without_template(url: str) -> str:
    """RDBStorage takes {} in an address, such as those of a password, for a template."""
    return url.replace("{", "{{").replace("}", "}}")


def reason_of(error: BaseException) -> str:
    """The database driver's own first line."""
    while error.__cause__ is not None:
        error = error.__cause__
    error = getattr(error, "orig", None) or error
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
