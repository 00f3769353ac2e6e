"""Finished trials into Optuna's tables, many in one transaction.

Optuna writes a trial by several queries and a commit, and one more query an epoch: 8 ms and up.
"""

import json

import sqlalchemy.orm
from optuna.distributions import distribution_to_json
from optuna.storages import RDBStorage
from optuna.storages._rdb import models
from optuna.trial import FrozenTrial


def insert(storage: RDBStorage, study_id: int, trials: list[FrozenTrial]) -> None:
    """As `storage.create_new_trial` of each, with the numbers that they have: all or none."""
    with sqlalchemy.orm.Session(storage.engine) as session, session.begin():
        made = [
            models.TrialModel(
                study_id=study_id, number=trial.number, state=trial.state,
                datetime_start=trial.datetime_start, datetime_complete=trial.datetime_complete,
            )
            for trial in trials
        ]  # fmt: skip
        session.add_all(made)
        session.flush()  # gives them their ids
        for row, trial in zip(made, trials, strict=True):
            session.add_all(_details(row.trial_id, trial))


def _details(trial_id: int, trial: FrozenTrial):
    """What the other tables have of it."""
    value, kind = models.TrialValueModel.value_to_stored_repr(trial.value)
    yield models.TrialValueModel(trial_id=trial_id, objective=0, value=value, value_type=kind)
    for name, chosen in trial.params.items():
        distribution = trial.distributions[name]
        yield models.TrialParamModel(
            trial_id=trial_id, param_name=name,
            param_value=distribution.to_internal_repr(chosen),
            distribution_json=distribution_to_json(distribution),
        )  # fmt: skip
    attributes = (
        (models.TrialUserAttributeModel, trial.user_attrs),
        (models.TrialSystemAttributeModel, trial.system_attrs),
    )
    for model, named in attributes:
        for key, attribute in named.items():
            yield model(trial_id=trial_id, key=key, value_json=json.dumps(attribute))
    of_epoch = models.TrialIntermediateValueModel
    for step, score in trial.intermediate_values.items():
        score, kind = of_epoch.intermediate_value_to_stored_repr(score)
        yield of_epoch(
            trial_id=trial_id, step=step, intermediate_value=score, intermediate_value_type=kind
        )
