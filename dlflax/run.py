"""One experiment, from the command line to its run folder: config, data, fit, test, results."""

import contextlib
import dataclasses
import json
import os
import platform
import re
import signal
import sys
import time
import traceback
import warnings
from collections.abc import Callable, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any, Literal, NoReturn

import jax
import numpy as np
import tyro

import dlflax
from dlflax import (
    data,
    figures,
    flops,
    logs,
    metrics,
    models,
    optim,
    parallel,
    tasks,
    train,
    transfer,
)
from dlflax.checkpoint import Checkpoints
from dlflax.errors import InputError, RunError, Terminated

PLACE = ("devices", "shard_state", "distributed", "profile")  # where it runs, not what
PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")  # in config.json


@dataclasses.dataclass(frozen=True)
class Config:
    """Everything that decides a run. Saved as config.json."""

    recipe: Annotated[train.Recipe, tyro.conf.arg(name="")]
    """Structure: another value is another program."""
    hparams: optim.Hparams = optim.Hparams()
    """Numbers: another value compiles nothing."""
    data: Annotated[Any, tyro.conf.arg(name="")] = data.Images()
    """Where the examples come from."""
    transfer: Annotated[Any, tyro.conf.arg(name="")] = None
    """What is taken from pretrained weights, as `transfer.Transfer`."""
    epochs: int = 5
    """Passes over the training data."""
    seed: int = 0
    """Decides the validation split, the initial weights, the order and all randomness."""
    validation: float = 0.1
    """Share of the training data held out for validation; 0 trains on all of it."""
    class_weights: Literal["none", "balanced"] = "none"
    """balanced: a class counts the more, the fewer examples it has (n / (classes * its n))."""
    patience: int = 0
    """Stop after this many epochs without a lower validation loss; 0 never stops early."""
    reduce_on_plateau: int = 0
    """Halve the learning rate after this many such epochs; 0 never does."""
    run_dir: Path | None = None
    """Where the run is written (default: runs/EXPERIMENT/TIME)."""
    resume: bool = False
    """Go on with the run in --run-dir, or with the newest one."""
    devices: int = 0
    """Devices that share every batch; 0: all, but one on a CPU, which has all cores already."""
    shard_state: bool = False
    """Share out the parameters over the devices too, for a model too large for one."""
    distributed: bool = False
    """Join the other hosts: found by SLURM, TPU pods, Open MPI or $JAX_COORDINATOR_ADDRESS."""
    profile: bool = False
    """Write a trace of some steps to profile/ in the run's folder, for TensorBoard or Perfetto."""


def main(
    experiment: str,
    presets: Mapping[str, Config],
    architectures: Mapping[str, Any] | None = None,
    args: list[str] | None = None,
    description: str | None = None,
) -> None:
    """The command line of an experiment. presets: named Configs, "default" among them;
    architectures: Linen modules that --model can swap in. Exits 2 on bad input, 1 when the run
    cannot go on, 75 on SIGTERM, 130 on Ctrl-C."""

    def command():
        config = parse(experiment, presets, architectures or {}, args, description)
        if config.distributed:
            parallel.initialize()
        run(experiment, config)

    with_exit_codes(command)


def with_exit_codes(
    command: Callable[[], Any], again: str = "--resume goes on from the last checkpoint"
) -> None:
    """Runs command; a known failure becomes one sentence on stderr and an exit code. again: what to
    do after an interruption."""
    compilation_cache()
    with contextlib.suppress(ValueError):  # not in the main thread
        signal.signal(signal.SIGTERM, _terminated)
    try:
        command()
    except Terminated as error:
        _exit(str(error) or f"terminated; {again}.", 75)
    except (InputError, RunError) as error:
        _exit(error, 2 if isinstance(error, InputError) else 1)
    except OSError as error:  # whatever is not handled where it happens: mostly a full disk
        place = f"{error.filename}: " if error.filename else ""
        _exit(f"{place}{error.strerror or error}; checkpoints are kept.", 1)
    except jax.errors.JaxRuntimeError as error:
        if "out of memory" in str(error).lower() or "RESOURCE_EXHAUSTED" in str(error):
            advice = "try a smaller --batch-size or narrower --model.features"
            _exit(f"the device is out of memory: {advice}; checkpoints are kept.", 1)
        if not jax.distributed.is_initialized():
            raise
        _exit(_host_lost(error, again), 1)
    except KeyboardInterrupt:
        _exit(f"interrupted; {again}.", 130)
    except Exception as error:
        if not jax.distributed.is_initialized():
            raise
        text = traceback.format_exc()
        # Orbax and others wrap what JAX raises when a connection breaks
        lost = re.search(r"JaxRuntimeError|Gloo|NCCL|[Cc]oordination|[Cc]onnection", text)
        _exit(_host_lost(error, again) if lost else text, 1)


def _host_lost(error, again):
    reason = (str(error).splitlines() or [type(error).__name__])[0][:200]
    return f"another host has stopped ({reason}): start all of them again, {again}."


def _terminated(*_):
    raise Terminated


@contextlib.contextmanager
def stop_requests():
    """Gives a function that says whether SIGTERM has come, which ends nothing meanwhile."""
    came = []
    try:
        before = signal.signal(signal.SIGTERM, lambda *_: came.append(True))
    except ValueError:  # not in the main thread
        yield lambda: False
        return
    try:
        yield lambda: parallel.any_host(bool(came))
    finally:
        signal.signal(signal.SIGTERM, before)


def _exit(message, code: int) -> NoReturn:
    print(f"error: {message}", file=sys.stderr, flush=True)
    if jax.distributed.is_initialized():
        os._exit(code)  # an ordinary exit waits for the other hosts, which wait for this one
    sys.exit(code)


def compilation_cache() -> None:
    """Keeps compiled programs between processes, in $JAX_COMPILATION_CACHE_DIR if that is set."""
    if not os.environ.get("JAX_COMPILATION_CACHE_DIR"):
        jax.config.update("jax_compilation_cache_dir", str(data.cache_folder() / "xla"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    # the cache only saves time: a full disk or a damaged entry costs a compilation, not a message
    warnings.filterwarnings("ignore", message="Error (reading|writing) persistent compilation")


def parse(
    experiment, presets, architectures, args=None, description=None,
    prog=None, extend=lambda config: config,
) -> Config:  # fmt: skip
    """Config from the flags, over the preset's values or, with --resume, over the saved ones.
    extend turns it into that of another command, with more flags."""
    args = sys.argv[1:] if args is None else list(args)
    preset_type = Literal[tuple(presets)]
    model_type = Literal[tuple(architectures)] | None if architectures else None
    hidden = () if architectures else (tyro.conf.Suppress,)

    # These decide the defaults of all the other flags, so they are read first.
    first = dataclasses.make_dataclass(
        "First",
        [
            ("preset", preset_type | None, None),
            ("model", model_type, None),
            ("run_dir", Path | None, None),
            ("resume", bool, False),
        ],
    )
    without_help = [arg for arg in args if arg not in ("-h", "--help")]
    config = (tyro.conf.FlagCreatePairsOff, tyro.conf.SuppressFixed)
    chosen, _ = tyro.cli(
        first, args=without_help, config=config, add_help=False, return_unknown_args=True
    )
    # an architecture may have a preset of its own name
    preset = chosen.preset or (chosen.model if chosen.model in presets else "default")
    default = presets[preset]
    if chosen.resume:
        folder = chosen.run_dir or _newest_run(experiment)
        if (folder / "config.json").exists() and not chosen.preset:
            default = config_from_json(load_config(folder)["config"], folder)
        as_new = {name: getattr(Config, name) for name in PLACE}  # perhaps on another machine
        default = dataclasses.replace(default, run_dir=folder, **as_new)
    model = architectures.get(chosen.model, default.recipe.model)
    if type(model) is not type(default.recipe.model):
        default = dataclasses.replace(
            default, recipe=dataclasses.replace(default.recipe, model=model)
        )

    default = extend(default)

    def command(
        config: Annotated[type(default), tyro.conf.arg(name="")] = default,
        preset: Annotated[
            preset_type, tyro.conf.arg(help="Values that the other flags start from.")
        ] = preset,
        architecture: Annotated[
            model_type,
            tyro.conf.arg(
                name="model", help="Architecture, if not the preset's; some have a preset too."
            ),
            *hidden,
        ] = None,
    ) -> Config:
        return config

    return tyro.cli(
        command,
        prog=prog or f"python -m experiments.{experiment}",
        description=description,
        args=args,
        config=config,
    )


def _newest_run(experiment: str) -> Path:
    folder = Path("runs") / experiment
    found = sorted(folder.glob("*/config.json"), key=lambda path: path.stat().st_mtime)
    if not found:
        raise InputError(
            f"--resume: there is no run in {folder}; name one with --run-dir, or leave it out."
        )
    return found[-1].parent


def run(
    experiment: str,
    config: Config,
    say: Callable[[str], None] = print,
    dataset: data.Dataset | None = None,
) -> dict[str, Any]:
    """Trains, tests once with the best checkpoint, and writes the run folder. Returns the contents
    of results.json. dataset: what config names, if it is loaded already. Raises InputError and
    RunError."""
    started = time.perf_counter()
    check(config)
    dataset = dataset or config.data.load(say)
    splits = config.data.split(dataset, config.validation, config.seed)
    examples = splits  # as they are; a frozen backbone makes features of them
    config = dataclasses.replace(config, recipe=fitted(config.recipe, splits))
    check_batch_size(config.recipe.batch_size, len(splits.train["targets"]))
    start = transfer.prepare(
        config.transfer, config.recipe, config.hparams, splits, config.seed, say
    )
    recipe, splits = start.recipe, weighted(config.class_weights, start.splits)
    train_set, val_set = splits.train, splits.val
    n, held_out = len(train_set["targets"]), len(val_set["targets"]) if val_set else 0
    abstract = train.abstract(recipe, config.hparams, train_set["inputs"][:1])
    examples = dataclasses.replace(examples, info=splits.info)

    count = parallel.devices(config.devices, config.recipe.batch_size)
    main = parallel.is_main()
    folder = parallel.from_main(lambda: _run_folder(experiment, config))
    config = dataclasses.replace(config, run_dir=folder)
    parallel.from_main(lambda: _begin(experiment, config, dataset, examples, folder, say))
    checkpoints = Checkpoints(folder / "checkpoints", say)
    with parallel.use(count, config.shard_state):
        placed = parallel.placed(abstract)
        state, history, partial = checkpoints.restore_last(placed) or (None, [], None)
    over = history and train.finished(history, config.epochs, config.patience)
    if (folder / "results.json").exists() and over:
        say(f"{folder} is finished already; its results:")
        results = json.loads((folder / "results.json").read_text())
        logs.print_results(results)
        return results

    device = jax.devices()[0]
    say(f"{dataset.source}: {n:,} train, {f'{held_out:,}' if held_out else 'no'} validation, "
        f"{len(splits.test['targets']):,} test")  # fmt: skip
    several = f"{count} x " if count > 1 else ""
    hosts = f" of {jax.process_count()} hosts" if jax.process_count() > 1 else ""
    say(f"on {several}{device.device_kind}{hosts}, writing {folder}")
    parameters = jax.tree_util.tree_leaves_with_path(abstract.params)
    rows = [("/".join(k.key for k in path), leaf.shape, leaf.size) for path, leaf in parameters]
    total = sum(size for _, _, size in rows)
    logs.print_model_table(type(recipe.model).__name__, rows, total)
    frozen = sum(leaf.size for leaf in jax.tree.leaves((start.backbone or {}).get("params", {})))
    if frozen:
        say(f"and {frozen:,} parameters that stay as they are")
    if state is not None:
        say(f"resuming after epoch {len(history)}, step {int(state.step):,}")
    if config.profile and parallel.is_main():
        _profile(recipe, config.hparams, train_set, folder / "profile")

    # the kill may have come between a checkpoint and what is written after it
    last = int(history[-1]["step"]) if history else None
    board = logs.TensorBoard(folder / "tensorboard", last) if main else None
    if main and config.recipe.augment and examples.train["inputs"].ndim == 4:
        _augmented_picture(folder, config, examples.train)
        board.picture("augmented", folder / "augmented.png", 0)
    if main and history:
        logs.write_csv(folder / "metrics.csv", history)
        board.scalars(history[-1], last)
    steps = -(-n // recipe.batch_size)
    progress = logs.Progress(config.epochs, steps, recipe.batch_size, len(history))
    with parallel.use(count, config.shard_state), stop_requests() as should_stop, progress:

        def on_steps(epoch, done, sums):
            row = metrics.summary(sums)
            progress.update(epoch, done, row["loss"], row.get("accuracy"))

        def on_epoch(fit):
            # the checkpoint first: everything below can be written again from its history
            checkpoints.save(fit.state, fit.history)
            if not main:
                return
            row = fit.history[-1]
            logs.write_csv(folder / "metrics.csv", fit.history)
            board.scalars(row, int(row["step"]))
            best = held_out > 0 and train.best_epoch(fit.history) + 1 == row["epoch"]
            progress.epoch_end(row, best)

        fit = train.fit(
            recipe, config.hparams, train_set, val_set,
            epochs=config.epochs, seed=config.seed, patience=config.patience,
            reduce_on_plateau=config.reduce_on_plateau, state=state, history=history,
            partial=partial, should_stop=should_stop, pretrained=start.pretrained,
            on_steps=on_steps if progress.interactive else None, on_epoch=on_epoch,
        )  # fmt: skip
        history = fit.history
        if not train.finished(history, config.epochs, config.patience):
            if fit.partial:
                checkpoints.save(fit.state, history, fit.partial)
            raise Terminated(
                f"terminated; step {int(fit.state.step):,} is saved in {folder}, --resume goes on."
            )
        best = train.best_epoch(history)
        state = fit.best or checkpoints.restore_best(placed)
        if best + 1 < len(history):
            say(f"epoch {best + 1} had the lowest validation loss: testing with its weights")
        test_sums, outputs = jax.device_get(train.evaluate(recipe, state, splits.test))
        state = parallel.fetched(state)
    if not main:
        parallel.wait("the results are written")
        return {}
    more, pictures, tables = tasks.OF_LOSS[recipe.loss](
        recipe, config.hparams, start.whole(state), dataset, examples, test_sums, outputs
    )
    test = {**metrics.summary(test_sums), **more.pop("test", {})}
    scores = {
        name: {key.removeprefix(f"{name}_"): value
               for key, value in history[best].items() if key.startswith(f"{name}_")}
        for name in (("train", "val") if held_out else ("train",))
    }  # fmt: skip
    seconds = sum(row["seconds"] for row in history)
    results = {
        "experiment": experiment,
        "dataset": dataset.name,
        "data_source": dataset.source,
        "model": type(recipe.model).__name__,
        "parameters": total + frozen,
        "flops_per_example": forward_flops(
            recipe, start.whole(abstract), examples.train["inputs"][:1]
        ),
        "hparams": _hparams(config),
        "seed": config.seed,
        "epochs_run": len(history),
        "best_epoch": best + 1,
        "seconds": seconds,
        "process_seconds": time.perf_counter() - started,
        "compile_seconds": fit.compile_seconds,
        "examples_per_second": float(np.mean([row["examples_per_second"] for row in history])),
        **scores,
        "test": test,
        **more,
    }
    board.hparams(
        {**_hparams(config), **_flat(to_json(recipe))},
        {f"test/{k}": value for k, value in test.items() if isinstance(value, float)},
    )
    figures.save_figure(figures.curves(history), folder / "curves.png")
    for name, figure in pictures.items():
        if figure is not None:
            figures.save_figure(figure, folder / f"{name}.png")
            board.picture(name, folder / f"{name}.png", int(history[-1]["step"]))
    for name, rows in tables.items():
        logs.write_csv(folder / f"{name}.csv", rows)
    board.close()
    write_json(folder / "results.json", results)
    parallel.wait("the results are written")
    logs.print_results(results)
    if dataset.name != config.data.dataset and config.data.data_dir is None:
        say(f"remember: these scores are of {dataset.name}, not of {config.data.dataset}.")
    say(f"pictures, metrics and checkpoints: {folder}")
    return results


def forward_flops(recipe: train.Recipe, state: train.State, inputs) -> int:
    """Operations of the model's forward pass on one example, inputs (1, ...); state may be
    abstract. Convolutions count as such, whatever formulation they are computed by."""
    model = recipe.model
    if hasattr(model, "formulation"):
        model = model.clone(formulation="lax")
    variables = {"params": state.params, **state.collections}
    return flops.flops(lambda v, x: model.apply(v, train.floats(x)), variables, inputs)


def _profile(recipe, hparams, train_set, folder: Path) -> None:
    """A trace of 20 steps of a State of its own, after they are compiled: for TensorBoard's profile
    plugin, and perfetto_trace.json.gz for https://ui.perfetto.dev."""
    hparams = train.as_traced(hparams)
    n = min(len(train_set["targets"]), 20 * recipe.batch_size)
    part = {name: array[:n] for name, array in train_set.items()}
    batches = data.epoch_batches(n, recipe.batch_size, 0, 0)
    for context in (contextlib.nullcontext(), jax.profiler.trace(folder, True)):
        state = train.init(recipe, hparams, part["inputs"][:1], jax.random.key(0))
        sums, stop = train.zero_sums(recipe), np.int32(len(batches))
        with context:
            done = train.train_steps(recipe, state, hparams, part, batches, sums, np.int32(0), stop)
            jax.block_until_ready(done)


def _augmented_picture(folder, config, train_set) -> None:
    """augmented.png: what training makes of a few pictures."""
    images = train_set["inputs"][:8]
    batch = {"inputs": images, "targets": train_set["targets"][:8]}
    draw = jax.jit(train.augmented, static_argnums=0)
    draws = [
        draw(config.recipe, config.hparams, batch, jax.random.key(i))["inputs"] for i in range(7)
    ]
    figures.save_figure(figures.augmented(images, np.stack(draws)), folder / "augmented.png")


def fitted(recipe: train.Recipe, splits: data.Splits) -> train.Recipe:
    """The recipe with those fields of its model that the data, not the user, decide. InputError
    when the two do not go together."""
    has = {field.name for field in dataclasses.fields(recipe.model)}
    known = {name: value for name, value in splits.model.items() if name in has}
    kind = type(recipe.model).__name__
    losses = "mean_squared_error" if splits.train["targets"].dtype.kind == "f" else "cross_entropy"
    if kind == "Autoencoder":
        losses = "reconstruction"
    if recipe.loss != losses:
        raise InputError(f"--loss {recipe.loss}: a {kind} on these data needs {losses}.")
    if "vocabulary" not in has and splits.model.get("vocabulary"):
        raise InputError(f"--model: a {kind} does not read texts; an RNN or a Transformer does.")
    if recipe.augment and splits.train["inputs"].ndim != 4:
        raise InputError("--augment is for pictures; leave it out.")
    return dataclasses.replace(recipe, model=recipe.model.clone(**known))


def weighted(class_weights: str, splits: data.Splits) -> data.Splits:
    """Training examples with a "weight", by which their losses count: scikit-learn's "balanced".
    InputError where there are no classes."""
    if class_weights == "none":
        return splits
    targets = splits.train["targets"]
    if targets.dtype.kind == "f":
        raise InputError("--class-weights balanced is for classes: leave it out.")
    counts = np.bincount(targets, minlength=splits.model["num_outputs"])
    weight = np.float32(len(targets) / (len(counts) * np.maximum(counts, 1)))
    return dataclasses.replace(splits, train={**splits.train, "weight": weight[targets]})


def check(config: Config) -> None:
    """InputError for numbers that no run can have."""
    optim.check(config.hparams)
    if not 0 <= config.seed < 2**32:
        raise InputError(f"--seed {config.seed} must be from 0 to {2**32 - 1}.")
    for name, least in (("epochs", 1), ("patience", 0), ("reduce_on_plateau", 0)):
        if getattr(config, name) < least:
            flag = name.replace("_", "-")
            raise InputError(f"--{flag} {getattr(config, name)} must be {least} or more.")
    if config.validation == 0 and (config.patience or config.reduce_on_plateau):
        raise InputError(
            "--patience and --reduce-on-plateau must be 0 with --validation 0: they go by the "
            "validation loss."
        )
    if config.recipe.batch_size < 1:
        raise InputError(f"--batch-size {config.recipe.batch_size} must be 1 or more.")


def check_batch_size(batch_size: int, n: int) -> None:
    """InputError when there are not as many training examples, n."""
    if batch_size > n:
        raise InputError(
            f"--batch-size {batch_size} is larger than the {n:,} training examples: use {n} or "
            "less."
        )


def _run_folder(experiment: str, config: Config) -> Path:
    """The folder of this run, made if need be. A run that is there already is only resumed."""
    folder = config.run_dir
    if folder is None:
        stem = folder = Path("runs") / experiment / time.strftime("%Y-%m-%d_%H-%M-%S")
        for i in range(2, 1000):
            if not folder.exists():
                break
            folder = stem.with_name(f"{stem.name}_{i}")
    elif (folder / "config.json").exists() and not config.resume:
        raise InputError(
            f"--run-dir {folder} already holds a run: add --resume to go on with it, or choose "
            "another folder."
        )
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"--run-dir {folder} cannot be made: {error.strerror}.") from error
    return folder


def settings(
    experiment: str, config: Config, dataset: data.Dataset, splits: data.Splits
) -> dict[str, Any]:
    """What config.json holds."""
    test = splits.test["inputs"]
    held_out = len(splits.val["targets"]) if splits.val else 0
    return {
        "experiment": experiment,
        "config": to_json(config),
        "data": {
            "name": dataset.name,
            "source": dataset.source,
            "sha256": dataset.checksum,
            "class_names": list(dataset.class_names),
            "input_shape": list(test.shape[1:]),
            **splits.info,
            "train": len(splits.train["targets"]), "validation": held_out, "test": len(test),
        },
        "versions": {
            "dlflax": dlflax.__version__,
            "python": platform.python_version(),
            **{name: version(name) for name in PACKAGES},
        },
        "platform": f"{jax.default_backend()} {jax.devices()[0].device_kind}",
    }  # fmt: skip


def _begin(experiment, config, dataset, splits, folder, say) -> None:
    """Writes config.json, or compares with the one that a resumed run has."""
    new = settings(experiment, config, dataset, splits)
    path = folder / "config.json"
    if not path.exists():
        if config.resume:
            say(f"{folder} holds no run yet: starting from the beginning.")
        for name, text in splits.files.items():
            (folder / name).write_text(text)
        write_json(path, new)
        return
    old = load_config(folder)
    free = {"data.data_dir", "data.dataset", "run_dir", "resume", *PLACE}
    if not schedule_depends_on_epochs(config):
        free.add("epochs")
    if different := differences(old, new, free):
        raise InputError(
            f"--resume: {folder} was trained with another setup ({different}): give the same flags "
            "and data, or start a new run."
        )
    note_versions(old, new, say)
    if new["config"]["epochs"] != old["config"]["epochs"]:
        old["config"]["epochs"] = new["config"]["epochs"]
        write_json(path, old)


def differences(old: dict, new: dict, free: set[str]) -> str:
    """What differs between two `settings`, in words; "" if nothing but what is in `free` does."""
    names = ("sha256", "weights_sha256")
    was, now = (
        _flat({**each["config"], **{name: each["data"].get(name) for name in names}})
        for each in (old, new)
    )
    return "; ".join(
        f"{name} was {was.get(name)!r}, now {now.get(name)!r}"
        for name in sorted({*was, *now} - free)
        if was.get(name) != now.get(name)
    )


def note_versions(old: dict, new: dict, say: Callable[[str], None]) -> None:
    """Says so when packages have other versions than those it began with."""
    changed = {n: v for n, v in old["versions"].items() if new["versions"].get(n) != v}
    if changed:
        say(f"note: versions differ from those it began with ({changed}): "
            "the result may not be the same to the bit")  # fmt: skip


def schedule_depends_on_epochs(config: Config) -> bool:
    """Whether more epochs would have changed the steps that are done already."""
    return config.recipe.schedule != "constant" or config.hparams.warmup > 0


def to_json(value):
    """Config and everything in it as JSON values; models and sources of data with their class."""
    if dataclasses.is_dataclass(value):
        kind = type(value).__name__
        named = hasattr(models, kind) or hasattr(data, kind)
        names = (f.name for f in dataclasses.fields(value) if f.name not in ("parent", "name"))
        fields = {name: to_json(getattr(value, name)) for name in names}
        return {"class": kind, **fields} if named else fields
    if isinstance(value, tuple):
        return [to_json(item) for item in value]
    return str(value) if isinstance(value, Path) else value


def config_from_json(saved: dict, folder: Path) -> Config:
    """The Config that `to_json` wrote. InputError when it does not fit this version."""

    def tuples(fields):
        return {k: tuple(v) if isinstance(v, list) else v for k, v in fields.items()}

    try:

        def build(package, fields):
            return getattr(package, fields["class"])(
                **{k: v for k, v in tuples(fields).items() if k != "class"}
            )

        recipe = {**tuples(saved["recipe"]), "model": build(models, saved["recipe"]["model"])}
        folder_of_data = saved["data"]["data_dir"] and Path(saved["data"]["data_dir"])
        parts = {
            "recipe": train.Recipe(**recipe),
            "hparams": optim.Hparams(**saved["hparams"]),
            "data": build(data, {**saved["data"], "data_dir": folder_of_data}),
            "transfer": transfer.Transfer(**saved["transfer"]) if saved.get("transfer") else None,
            "run_dir": saved["run_dir"] and Path(saved["run_dir"]),
        }
        return Config(**{**saved, **parts})
    except (TypeError, KeyError, AttributeError, ValueError) as error:
        raise InputError(
            f"{folder / 'config.json'} does not fit this version of dlflax ({error}): use the "
            "version named in it, or start a new run."
        ) from error


def load_config(folder: Path) -> dict[str, Any]:
    """config.json of a run folder. InputError when it is not one."""
    path = Path(folder) / "config.json"
    try:
        saved = json.loads(path.read_text())
        saved["config"], saved["data"]["class_names"], saved["versions"]
        return saved
    except OSError as error:
        raise InputError(f"{folder} is not a run folder: no readable config.json in it.") from error
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path} is damaged: it is not the JSON that a run writes.") from error


def _hparams(config: Config) -> dict[str, float]:
    return {k: v for k, v in to_json(config.hparams).items() if k != "total_steps"}


def _flat(tree: dict, prefix: str = "") -> dict[str, Any]:
    """{"a": {"b": 1}} -> {"a.b": 1}; lists become tuples' text."""
    flat = {}
    for name, value in tree.items():
        if isinstance(value, dict):
            flat.update(_flat(value, f"{prefix}{name}."))
        else:
            flat[prefix + name] = str(tuple(value)) if isinstance(value, list) else value
    return flat


def write_json(path: Path, value) -> None:
    """JSON, whole or not at all."""
    try:
        with logs.replacing(path) as temporary:
            temporary.write_text(json.dumps(value, indent=2) + "\n")
    except OSError as error:
        raise RunError(f"could not write {path}: {error.strerror}.") from error
