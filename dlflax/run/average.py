"""The average of a run's members: an `Ensemble`, weighted by the loss of held-out outputs."""

import dataclasses
import math
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from dlflax import data, train
from dlflax.config.config import Config
from dlflax.data.text.terms import Terms
from dlflax.models import calibration
from dlflax.report.tables import number_text
from dlflax.run.prepare import Setup
from dlflax.train.ensemble import Chosen, choose, ensemble_recipe, nest_variables
from dlflax.train.tasks import Classification

MOST = 100  # members of an ensemble, no limit in practice
NEAR = 2.0  # times the least loss of a member
SIGNIFICANT = 2.0  # standard errors of the mean difference of two losses
NETWORK = "network"  # name of the run's own members


class Members(NamedTuple):
    """Models of one kind that are averaged: one for each fold, or the folds' as one."""

    name: str
    model: Any
    variables: list[dict[str, Any]]
    outputs: np.ndarray
    """float32 (n, ...) for each held-out example, of the model that it was held out from, divided
    by the temperature."""
    temperature: float = 1.0
    hparams: Any = None
    """Hparams of the networks; None: those of the Config."""
    trial: int | None = None
    """Number of the trial of a sweep."""
    terms: Terms | None = None
    """The inputs of models of texts; None: those of the networks."""

    @property
    def is_default(self) -> bool:
        """True for what a run has without a sweep: all but trials, and trial 0, the defaults."""
        return not self.trial

    def inputs(self, splits: data.Splits) -> np.ndarray:
        """Returns the inputs of the test examples (n, ...)."""
        if self.terms is None:
            return splits.test["inputs"]
        return self.terms.inputs(splits.plain("test").texts)


class Bagged(NamedTuple):
    """Members as a finished run."""

    config: Config
    """The Config of the Ensemble."""
    setup: Setup
    state: train.State
    row: dict[str, float]
    """The only row of its history."""
    calibration: dict[str, Any]
    members: list[Members]
    weights: list[float]
    scores: list[dict[str, float]]
    """Scores of the members on held-out examples."""


def average(
    config: Config, setup: Setup, members: list[Members], held_out: dict[str, Any], begun: float,
    say: Callable[[str], None], equal_share: float = 0.0,
) -> Bagged:  # fmt: skip
    """Returns the members' weighted average as a finished run.

    held_out: arrays of the examples that the members' outputs are for; begun: of
    time.perf_counter; equal_share: of the weights, in equal parts for members whose loss is at most
    NEAR times the least."""
    task, hparams = setup.start.recipe.task, config.hparams.evaluation()
    if isinstance(task, Classification):
        task = dataclasses.replace(task, monitor="loss")  # the epochs are chosen
        hparams = smooth(hparams, members[0].outputs)
    hparams, batch = train.as_float32(hparams), train.host_batch(task, held_out)
    members = [calibrate(member, task, hparams, batch) for member in members]
    chosen = choose_members(task, hparams, members, batch)
    scores = [train.scores(task, config.hparams, held_out, member.outputs) for member in members]
    losses = np.nan_to_num([values["loss"] for values in scores], nan=np.inf)
    near = (losses <= NEAR * losses.min()) * equal_share
    weights = near / max(1, np.count_nonzero(near)) + (1 - equal_share) * np.array(chosen.weights)
    chosen = chosen._replace(weights=weights.tolist())
    name = task.metric().name
    for member, weight, values in zip(members, chosen.weights, scores, strict=True):
        if weight:
            say(
                f"{member.name}: loss {number_text(values['loss'])}, "
                f"{name.replace('_', ' ')} {number_text(values[name])} on held-out folds; "
                f"weight {weight:.0%}"
            )
    mean = _mean(task, members, chosen)
    values = train.scores(task, config.hparams, held_out, mean)
    row = {
        "epoch": 1, "step": 1, "learning_rate": 0.0, "seconds": time.perf_counter() - begun,
        "examples_per_second": 0.0, **{f"val_{name}": value for name, value in values.items()},
    }  # fmt: skip
    fitted = task.calibrate(np.asarray(mean), batch, hparams)
    fitted |= {"temperature": 1.0} if "temperature" in fitted else {}  # it is the Ensemble's
    config, setup, state = _ensemble(config, setup, task, members, chosen)
    return Bagged(config, setup, state, row, fitted, members, chosen.weights, scores)


def smooth(hparams, outputs):
    """Returns hparams with label smoothing, as if an example of each class were added (Platt 1999):
    few examples without an error are no certainty. outputs: (n, classes)."""
    classes = max(2, outputs.shape[1])
    return hparams.replace(label_smoothing=classes / (len(outputs) + classes))


def calibrate(member: Members, task, hparams, batch) -> Members:
    """Returns the members with the temperature that calibrates their held-out outputs."""
    if not task.logits or len(member.outputs) < calibration.MIN_EXAMPLES:
        return member
    temperature, _ = calibration.temperature(task.loss, hparams, member.outputs, batch)
    return member._replace(outputs=member.outputs / temperature, temperature=temperature)


def choose_members(task, hparams, members: list[Members], batch) -> Chosen:
    """Returns the choice from all members, or without a sweep's trials where these gain less than
    SIGNIFICANT standard errors (the rule of Breiman et al. 1984): the best of many is partly
    chance."""
    outputs = jnp.stack([member.outputs for member in members])

    def choose_from(index):
        chosen, weights = choose(task, hparams, outputs[index], batch, MOST), np.zeros(len(members))
        weights[index] = chosen.weights
        chosen = chosen._replace(weights=weights.tolist())
        return chosen, np.asarray(task.loss(_mean(task, members, chosen), batch, hparams))

    default = np.flatnonzero([member.is_default for member in members])
    chosen, losses = choose_from(np.arange(len(members)))
    if 0 < len(default) < len(members):
        without, others = choose_from(default)
        gains = others - losses
        if not gains.mean() > SIGNIFICANT * gains.std(ddof=1) / math.sqrt(len(gains)):
            return without
    return chosen


def _mean(task, members: list[Members], chosen: Chosen):
    """Returns the outputs of the members' ensemble on held-out folds, float32 (n, ...)."""
    pairs = [pair for pair in zip(members, chosen.weights, strict=True) if pair[1]]
    outputs = jnp.stack([member.outputs for member, _ in pairs])
    return task.mean(outputs, jnp.float32([weight for _, weight in pairs])) / chosen.temperature


def _ensemble(config: Config, setup: Setup, task, members: list[Members], chosen: Chosen):
    """Returns (Config, Setup, State) of the Ensemble."""
    start, transfer = setup.start, config.transfer
    picked = [pair for pair in zip(members, chosen.weights, strict=True) if pair[1]]
    backbone = {name: {"members_0": tree} for name, tree in (start.backbone or {}).items()}
    if picked[0][0].name != NETWORK:
        transfer, backbone = None, None
    models = [(member, weight / len(member.variables)) for member, weight in picked
              for _ in member.variables]  # fmt: skip
    recipe = ensemble_recipe(
        dataclasses.replace(start.recipe, task=task),
        [(member.model, member.hparams or config.hparams) for member, _ in models],
        [weight for _, weight in models],
        chosen.temperature,
        shared=transfer is not None and transfer.is_frozen,
        temperatures=[member.temperature for member, _ in models],
        columns=[2 * member.terms.length if member.terms else 0 for member, _ in models],
    )
    variables = nest_variables([tree for member, _ in picked for tree in member.variables])
    examples, splits = setup.examples, start.splits
    if vocabularies := [member.terms for member, _ in picked if member.terms]:
        encoder = examples.encoder.with_terms(vocabularies)
        texts = splits.plain("test").texts
        terms = np.concatenate([item.inputs(texts) for item in vocabularies], 1)
        examples, splits = (
            dataclasses.replace(part, encoder=encoder, test={
                **part.test, "inputs": np.concatenate([part.test["inputs"], terms], 1)
            })
            for part in (examples, splits)
        )  # fmt: skip
    start = dataclasses.replace(start, recipe=recipe, splits=splits, backbone=backbone)
    abstract = train.abstract(recipe, config.hparams, splits.test["inputs"][:1])
    config = dataclasses.replace(
        config, recipe=recipe, transfer=transfer, epochs=1, patience=0, plateau_patience=0,
        bag_folds=0, given=(),
    )  # fmt: skip
    setup = dataclasses.replace(setup, examples=examples, start=start, abstract=abstract)
    return config, setup, _as_state(abstract, variables, config.seed)


def _as_state(abstract: train.State, variables: dict[str, Any], seed: int) -> train.State:
    """Returns a State of these variables after one step."""
    collections = dict(variables)
    params = collections.pop("params", {})
    opt_state = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), abstract.opt_state)
    state = train.State(np.int32(1), params, collections, opt_state, None, jax.random.key(seed))
    return jax.device_put(state)


def test_members(bagged: Bagged, setup: Setup) -> list[dict[str, Any]]:
    """Returns name, number, weight, and scores on held-out folds and on the test split of each kind
    of members. setup: that of the networks."""
    config, splits = bagged.config, setup.start.splits
    task, rows = config.recipe.task, []
    for member, weight, values in zip(bagged.members, bagged.weights, bagged.scores, strict=True):
        recipe, inputs = train.Recipe(member.model, task), member.inputs(splits)
        reads = train.as_float32((member.hparams or config.hparams).evaluation())
        outputs = jnp.stack([
            train.predict(recipe, train.from_variables(tree), reads, inputs) / member.temperature
            for tree in member.variables
        ])  # fmt: skip
        shares = jnp.full(len(outputs), 1 / len(outputs), jnp.float32)
        rows.append({
            "name": member.name, "models": len(outputs), "weight": weight, "val": values,
            "test": train.scores(task, config.hparams, splits.test, task.mean(outputs, shares)),
        })  # fmt: skip
    return rows
