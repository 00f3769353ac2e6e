"""Every flag of every command changes what is computed, or is refused where it cannot.

All of them: python -m pytest tests/test_flags.py -m 'slow or not slow'.
"""

import contextlib
import csv
import dataclasses
import functools
import hashlib
import io
import json
import operator
import re
from pathlib import Path

import jax
import numpy as np
import pytest
from flax import traverse_util
from PIL import Image

import experiments
from dlflax import run, train
from dlflax.config.experiment import from_presets
from dlflax.config.serialize import to_json
from dlflax.errors import InputError
from dlflax.run.prepare import prepare, read_data
from dlflax.tune import bind, sweep, sweep_command
from experiments import autoencoder, forecast, image_folder, mnist, sentiment, tabular

pytestmark = pytest.mark.usefixtures("place")

# What each command is given besides the flag: small, on data that are there.
BASE = {
    mnist: "--dataset digits --model.features 2 --model.dense 4 --epochs 2 --batch-size 64",
    sentiment: "--model rnn --bag-folds 0 --data notes.csv --model.features 4 "
    "--model.embedding-dim 4 --epochs 2 --batch-size 16",
    forecast: "--data sales.csv --model mlp --model.features 4 --window 12 --horizon 4 --epochs 2",
    autoencoder: "--dataset digits --model.features 8 --epochs 1 --batch-size 64",
    image_folder: "--preset scratch --data photos --image-size 16 --epochs 1 --batch-size 8",
    tabular: "--data sales.csv --model.features 4 --epochs 2 --bag-folds 0",
    "sweep": "--dataset digits --model mlp --model.features 4 --epochs 2 --batch-size 64 "
    "--trials 3 --population-size 2",
}
# flag -> (its words, what it needs to have a meaning). Of the sweeps' flags that a run has too, and
# of the words of a space, a few stand for all.
OF_RUNS = {
    "--preset": ("rnn", "--model.features 3"), "--model": ("mlp", ""),
    "--task": ("reconstruction", ""), "--optimizer": ("sgd", ""), "--schedule": ("cosine", ""),
    "--augment": ("affine", ""), "--loss": ("binary_cross_entropy", ""), "--epochs": ("3", ""),
    "--seed": ("7", ""), "--val-split": ("0.3", ""), "--class-weights": ("balanced", ""),
    "--patience": ("1", "--hparams.learning-rate 2 --optimizer sgd --epochs 5"),
    "--plateau-patience": ("1", "--hparams.learning-rate 2 --optimizer sgd --epochs 5"),
    "--run-dir": ("elsewhere", ""), "--resume": ("", ""), "--devices": ("2", ""),
    "--fsdp": ("", ""), "--distributed": ("", ""), "--profile": ("", ""),
    "--batch-size": ("32", ""), "--micro-batch": ("16", ""),
    "--compute-dtype": ("bfloat16", ""), "--ema": ("", ""),
    "--trainable": ("^logits", ""), "--dataset": ("nothing", ""), "--data": ("nowhere", ""),
    "--model.features": ("3", ""), "--model.convs-per-stage": ("2", ""), "--model.dense": ("5", ""),
    "--model.kernel-size": ("5", ""), "--model.activation": ("tanh", ""),
    "--model.dropout-after": ("input", "--hparams.dropout 0.4"),
    "--model.implementation": ("lax", "--model.features 16 --model.dense 8"),
    "--task.monitor": ("accuracy", "--hparams.learning-rate 0.03 --epochs 8"),
    "--optimizer.b1": ("0.5", ""), "--optimizer.b2": ("0.5", ""), "--optimizer.eps": ("0.1", ""),
    "--hparams.learning-rate": ("0.01", ""), "--hparams.dropout": ("0.4", ""),
    "--hparams.l2": ("0.1", ""), "--hparams.weight-decay": ("0.1", ""),
    "--hparams.momentum": ("0.5", ""), "--hparams.label-smoothing": ("0.1", ""),
    "--hparams.backbone-lr-scale": ("0.5", ""), "--hparams.clip-norm": ("0.01", ""),
    "--hparams.warmup-fraction": ("0.5", ""), "--hparams.ema-decay": ("0.5", ""),
    "--hparams.kl-weight": ("0.5", ""),
    **{f"--hparams.{name}": ("0.3", "") for name in (
        "translate-pixels", "rotate-degrees", "zoom-fraction", "crop-pixels", "flip-probability",
        "brightness", "contrast", "cutout-fraction", "mixup-alpha", "cutmix-alpha", "noise-std")},
    "--vocab-size": ("10", ""), "--max-length": ("3", ""), "--tokenizer": ("bpe", ""),
    "--no-lowercase": ("", ""), "--embeddings": ("words.txt", ""),
    "--model.cell": ("lstm", ""), "--model.no-bidirectional": ("", ""),
    "--model.pooling": ("last", ""), "--model.embedding-dim": ("3", ""),
    "--window": ("8", ""), "--horizon": ("3", ""), "--seasonality": ("4", ""),
    "--past-covariates": ("other", ""), "--future-covariates": ("other", ""),
    "--model.latent-dim": ("3", ""), "--model.variational": ("", ""),
    "--image-size": ("20", ""), "--test-split": ("0.4", ""), "--split-seed": ("3", ""),
    "--weights": ("nothing.pth", ""), "--finetune": ("full", ""),
    "--save-backbone": ("", ""), "--logger": ("wandb", ""), "--freeze-epochs": ("2", ""),
    "--contrastive-epochs": ("2", ""), "--verbose": ("", ""), "--model.padding": ("valid", ""),
    "--num-views": ("2", ""), "--baseline": ("none", ""), "--folds": ("2", ""),
    "--bag-folds": ("3", ""), "--blend": ("none", "--bag-folds 3"), "--time-limit": ("5", ""),
    "--target": ("other", ""), "--decimal": (",", ""),
    "--target-type": ("classes", ""), "--drop-columns": ("n", ""), "--num-bins": ("2", ""),
    "--group": ("n", ""), "--labels-csv": ("labels.csv", ""),
}  # fmt: skip
OF_SWEEPS = {
    "--trials": ("4", ""), "--population-size": ("3", ""), "--num-seeds": ("2", ""),
    "--rank": ("pessimistic", "--num-seeds 2 --trials 6"), "--objective": ("val_accuracy", ""),
    "--sampler": ("qmc", ""), "--population-map": ("map", ""), "--study": ("mine", ""),
    "--storage": ("sqlite:///mine.db", ""), "--refit-full": ("", ""),
    "--ensemble-size": ("0", ""), "--search": ("freeze-thaw", "--sampler gp"),
    "--reduction-factor": ("2", "--search halving --epochs 3"),
    "--epochs-per-round": ("2", "--search freeze-thaw --sampler gp"),
    "--launcher": ("slurm", ""), "--workers": ("2", ""),
    "--launcher-options": ("time=60", "--launcher slurm"),
    "--min-improvement": ("0.1", ""), "--prior": ("learning_rate=1e-3", ""),
    "--warm-start": ("nothing", ""),
    "--space.learning-rate": ("1e-3 1e-2", ""), "--space.momentum": ("0 0.9", ""),
    "--space.batch-size": ("32 64", ""), "--space.model.features": ("3 5", ""),
}  # fmt: skip


def flags_of(command):
    """The flags in a command's --help-all, each with its other names."""
    out = io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.suppress(SystemExit):
        command(["--help-all"])
    lines = re.findall(r"^[│|\s]*(--[a-z][^(]*)", out.getvalue(), re.MULTILINE)
    return [set(re.findall(r"--[a-z][a-z0-9.-]+", line)) for line in lines]


def command_of(of):
    if of == "sweep":
        return lambda words: sweep_command.main(
            "random_search", experiments, ("random", "qmc", "gp"), ["mnist", *words], ""
        )
    name, architectures = of.__name__.rpartition(".")[2], getattr(of, "ARCHITECTURES", {})
    return lambda words: run.main(name, of.PRESETS, architectures, words)


@pytest.fixture
def data(place):
    rng = np.random.default_rng(0)
    with open("notes.csv", "w", newline="", encoding="utf-8") as file:
        texts = [f"Note {i} {'Good' if i % 2 else 'poor'} {rng.integers(9)} day" for i in range(90)]
        csv.writer(file).writerows([("text", "label"), *((t, i % 2) for i, t in enumerate(texts))])
    with open("sales.csv", "w", newline="", encoding="utf-8") as file:
        rows = [(i, rng.normal(), i + rng.normal()) for i in range(160)]
        csv.writer(file).writerows([("n", "other", "sales"), *rows])
    for k, name in enumerate("ab"):
        (Path("photos") / name).mkdir(parents=True)
        for i in range(20):
            pixels = rng.integers(0, 256 - 60 * k, (6, 6, 3), dtype=np.uint8)
            Image.fromarray(pixels).resize((24, 24)).save(Path("photos") / name / f"{i}.png")
    Path("words.txt").write_text("good 1 2 3\npoor -1 2 3\nday 0 0 0.5\n")
    with open("labels.csv", "w", newline="", encoding="utf-8") as file:
        rows = [(f"{name}/{i}.png", i % 3) for name in "ab" for i in range(20)]
        csv.writer(file).writerows([("file", "label"), *rows])


def program(recipe, hparams, data, test):
    """(what is compiled: the step, the evaluation, the initial weights; the numbers that the step
    reads, with their values)."""
    numbers = train.as_float32(hparams)
    state = train.abstract(recipe, hparams, data["inputs"][:1])
    batch = {name: array[: recipe.batch_size] for name, array in data.items()}
    batch["mask"] = np.ones(recipe.batch_size, np.float32)
    step = jax.make_jaxpr(
        lambda numbers, *of: (recipe.step or train.step)(recipe, of[0], numbers, of[1])
    )(numbers, state, batch)
    read = {id(variable) for equation in step.eqns for variable in equation.invars}
    names = [field.name for field in dataclasses.fields(hparams)]
    used = [
        (name, getattr(hparams, name))
        for name, variable in zip(names, step.jaxpr.invars, strict=False) if id(variable) in read
    ]  # fmt: skip
    traced = [
        step,
        jax.make_jaxpr(lambda *of: train.evaluate_sums(recipe, *of))(state, hparams, test),
        jax.make_jaxpr(functools.partial(train.init, recipe))(
            numbers, data["inputs"][:1], jax.random.key(0)
        ),
    ]
    return re.sub(r"0x[0-9a-f]+", "", "".join(map(str, traced))), used


def digest(part):
    """Of arrays, by their names."""
    return {
        name: hashlib.sha256(np.ascontiguousarray(array[:]).tobytes()).hexdigest()
        for name, array in (part or {}).items() if array[:].dtype != object
    }  # fmt: skip


def decisions_of_run(of, words):
    """Yields what a command line decides: what the host does, then the data, then the program with
    the numbers that it reads. Nothing is trained."""
    name, architectures = of.__name__.rpartition(".")[2], getattr(of, "ARCHITECTURES", {})
    config = run.parse(from_presets(name, of.PRESETS, architectures), words)
    yield of_the_host(config), config.recipe.task.monitor
    config, job = prepare(*read_data(config, lambda _: None), lambda _: None)
    recipe, splits = job.start.recipe, job.start.splits
    yield (
        [digest(part) for part in (splits.train, splits.val, splits.test)], str(splits.encoder),
        digest(traverse_util.flatten_dict(job.start.pretrained or {}, sep="/")),
    )  # fmt: skip
    yield program(recipe, config.hparams, splits.train, splits.test)


def of_the_host(config):
    """The saved form of a Config without what is compared by what it leads to."""
    gone = dict.fromkeys(("recipe", "hparams", "data", "space"))
    gone = {name: None for name in gone if hasattr(config, name)}
    saved = to_json(dataclasses.replace(config, **gone))
    return {name: value for name, value in saved.items() if value is not None}


def decisions_of_sweep(words, monkeypatch):
    """Yields those of a sweep, up to its first trial."""
    parsed, seen = [], []

    class Begins(Exception):
        pass

    def structures(chosen, tried, structures, train_set, *more):
        check(chosen, tried, structures, train_set, *more)
        seen.append([of_the_host(chosen), str(tried)])
        seen.extend(program(r, chosen.hparams, train_set, train_set) for r, _ in structures)

    def begin(*given):
        seen.append([str(each) for each in given])
        raise Begins

    check = bind.check_structures
    with monkeypatch.context() as patch:
        patch.setattr(sweep_command, "use_all_cores", lambda: None)
        patch.setattr(run, "with_exit_codes", lambda command, **_: command())
        patch.setattr(sweep_command, "run_sweep", lambda *of, **_: parsed.extend(of))
        command_of("sweep")(words)
    yield of_the_host(parsed[-1])
    with monkeypatch.context() as patch, contextlib.suppress(Begins):
        patch.setattr(bind, "check_structures", structures)
        patch.setattr(sweep, "open_study", begin)
        sweep.run_sweep(*parsed, lambda _: None)
    yield from seen


def decisions(of, words, monkeypatch):
    found = decisions_of_sweep(words, monkeypatch) if of == "sweep" else decisions_of_run(of, words)
    return (json.dumps(part, sort_keys=True) for part in found)


@pytest.mark.slow
@pytest.mark.parametrize("of", list(BASE), ids=lambda of: getattr(of, "__name__", of))
def test_no_flag_is_forgotten(of):
    """The tables above name every flag that --help shows."""
    known = {*OF_RUNS, *OF_SWEEPS, *(f"--{flag[5:]}" for flag in OF_RUNS if flag[2:5] == "no-")}
    missing = [names for names in flags_of(command_of(of)) if not names & known]
    assert not [names for names in missing if not min(names).startswith("--space.")]


OWN = {  # flags that mnist does not have
    sentiment: "--vocab-size --max-length --tokenizer --no-lowercase --embeddings --model.cell "
    "--model.no-bidirectional --model.pooling --model.embedding-dim",
    forecast: "--target --decimal --window --horizon --seasonality --test-split --past-covariates "
    "--future-covariates",
    autoencoder: "--model.latent-dim --model.variational",
    image_folder: "--image-size --test-split --split-seed --labels-csv --target --target-type "
    "--group",
    tabular: "--target --target-type --decimal --drop-columns --group --num-bins --test-split "
    "--split-seed",
}


def cases():
    for of in BASE:
        table = OF_SWEEPS if of == "sweep" else OF_RUNS
        for i, (flag, (words, needs)) in enumerate(table.items()):
            if of in (mnist, "sweep") or flag in OWN[of].split():
                name = getattr(of, "__name__", of).rpartition(".")[2]
                marks = [] if i % 14 == 0 and of is mnist else [pytest.mark.slow]
                yield pytest.param(of, flag, words, needs, id=f"{name} {flag}", marks=marks)


WITHOUT = {}  # (command, needs) -> what is decided without the flag


@pytest.mark.parametrize(("of", "flag", "words", "needs"), list(cases()))
def test_a_flag_does_something_or_is_refused(data, monkeypatch, of, flag, words, needs):
    base = [*BASE[of].split(), *needs.split()]
    if (of, needs) not in WITHOUT:  # which must not be refused
        WITHOUT[of, needs] = list(decisions(of, base, monkeypatch))
    acts, out, err = False, io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            found = decisions(of, [*base, flag, *words.split()], monkeypatch)
            acts = any(map(operator.ne, found, WITHOUT[of, needs]))
        except InputError:
            acts = True
        except SystemExit as exit_:  # tyro's own
            acts = exit_.code == 2
    assert acts, out.getvalue() + err.getvalue()


@pytest.mark.parametrize("of", [mnist, "sweep"], ids=["mnist", "sweep"])
def test_nothing_changes_by_itself(data, monkeypatch, of):
    """Or the test above would see changes that no flag makes."""
    once, again = (list(decisions(of, BASE[of].split(), monkeypatch)) for _ in range(2))
    assert once == again and len(once) > 2
