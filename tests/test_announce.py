"""What a run, a comparison and a sweep say to whoever only reads text, and in how many lines."""

import re
import shlex
import sys
from pathlib import Path

import pytest
from PIL import Image

import experiments
from dlflax import run
from dlflax.data.image.encoder import ImageEncoder
from dlflax.report import progress
from dlflax.report.tables import number_text
from dlflax.run import announce
from dlflax.tune import sweep_command
from experiments import compare, image_folder, mnist
from experiments.listing import COMMANDS

pytestmark = pytest.mark.usefixtures("place")


def lines_of(capsys, name, *flags):
    """What `python -m experiments.NAME FLAGS` prints in the folder "run"."""
    module = run.find(name, experiments).module
    run.main(
        name, module.PRESETS, getattr(module, "ARCHITECTURES", {}), [*flags, "--run-dir", "run"]
    )
    return capsys.readouterr().out.splitlines()


def check_commands(lines):
    """Each command that is printed names something that is there."""
    commands = [line for line in lines if re.search(r"python -m (experiments|sweeps)\.", line)]
    assert len(commands) >= 2
    for line in commands:
        _, _, module, *words = shlex.split(line[line.index("python") :].partition("   (")[0])
        package, name = module.split(".")
        assert Path(run.__file__).parents[2].joinpath(package, f"{name}.py").exists()
        shipped = Path(run.__file__).parents[2] / "experiments"
        assert (
            words[0] == "--data"
            or (shipped / f"{words[0]}.py").exists()
            or (name in COMMANDS and Path(words[0]).is_dir())
        )


def test_a_run_in_thirty_lines(capsys):
    flags = ["--model", "mlp", "--model.features", "32", "--epochs", "20"]
    lines = lines_of(capsys, "mnist", *flags)
    assert len(lines) <= 30
    assert sum("NOT MNIST" in line for line in lines) == 2  # said at once, and of the data
    epochs = [int(m[1]) for line in lines if (m := re.match(r"epoch +(\d+)/20  ", line))]
    assert epochs[0] == 1 and 20 in epochs and len(epochs) <= 10
    rows = Path("run/metrics.csv").read_text().splitlines()
    best = min(
        rows[1:], key=lambda row: float(row.split(",")[rows[0].split(",").index("val_loss")])
    )
    assert int(best.split(",")[0]) in epochs
    (legend,) = [line for line in lines if line.startswith("*: the best so far")]
    assert "acc: accuracy, the share that is right" in legend and "val: on the val" in legend
    assert "per_class.csv" in {path.name for path in Path("run").iterdir()}
    assert not any(re.match(r" (conv1|dense1|logits)/", line) for line in lines)
    check_commands(lines)


def test_all_of_it_by_verbose(capsys):
    flags = ["--model", "mlp", "--model.features", "32", "--epochs", "9"]
    lines = lines_of(capsys, "mnist", *flags, "--verbose")
    assert sum(line.startswith("epoch ") and "/9  loss" in line for line in lines) == 9
    assert any(re.match(r" dense1/kernel +784 x 32 +25,088", line) for line in lines)
    assert sum(re.match(r" \d +[01]\.\d{4} +[01]\.\d{4}", line) is not None for line in lines) == 10


def test_a_command_begins_as_the_run_was_started(monkeypatch, place):
    programs = place / ".venv" / "bin"
    programs.mkdir(parents=True)
    for name in ("python", "dlflax"):
        (programs / name).touch(0o755)
    monkeypatch.setattr(sys, "executable", str(programs / "python"))
    monkeypatch.setenv("PATH", "/usr/bin")
    assert announce.command("sweeps.report", "a") == ".venv/bin/python -m sweeps.report a"
    monkeypatch.chdir(place / ".venv")
    assert announce.program("dlflax") == "bin/dlflax"
    monkeypatch.setenv("PATH", str(programs))  # as in an active environment
    assert announce.command("sweeps.bayes_opt", "my net.py") == (
        "python -m sweeps.bayes_opt 'my net.py'"
    )
    monkeypatch.setenv("DLFLAX_PROGRAM", "dlflax")
    assert announce.command("sweeps.bayes_opt", "mnist") == "dlflax sweep mnist"
    assert announce.command("experiments.serve", "runs/a") == "dlflax serve runs/a"
    yours = announce.command("experiments.image_folder", "--data", "PATH")
    assert yours == "dlflax train image_folder --data PATH"


def test_an_extra_that_is_missing_is_named(monkeypatch):
    assert announce.extra_hint("serve") == announce.extra_hint("efficientnet") == ""
    monkeypatch.setitem(sys.modules, "starlette", None)
    monkeypatch.setattr(announce.importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(announce, "program", lambda name: name)
    hint = "   (first: python -m pip install -e '.[serve]')"
    assert announce.extra_hint("serve") == hint
    steps = announce.next_steps(run.Experiment("mnist", mnist), ImageEncoder.form, Path("r"), False)
    assert steps[0].endswith(hint) and steps[-1].endswith("-e '.[efficientnet]')")


@pytest.mark.slow
@pytest.mark.baselines
@pytest.mark.parametrize(
    ("name", "flags"),
    [
        ("mnist", "--model mlp --model.features 32 --epochs 20"),
        ("tabular", "--bag-folds 0 --dataset wine --epochs 2"),
        ("sentiment", "--model rnn --bag-folds 0 --epochs 2 --model.features 8 --max-length 6"),
        ("forecast", "--dataset sunspots --window 22 --horizon 11 --epochs 2"),
        ("image_folder", "photos --preset scratch --image-size 16 --epochs 2 --model.features 4"),
    ],
)
def test_every_experiment_in_thirty_lines(name, flags, capsys, monkeypatch):
    monkeypatch.setattr(progress, "SILENT_SECONDS", 600)  # a busy machine says what it waits for
    for i in range(40):
        folder = Path("photos") / ("cat", "dog")[i % 2]
        folder.mkdir(parents=True, exist_ok=True)
        Image.effect_noise((20, 20), 10 + i).save(folder / f"{i}.png")
    lines = lines_of(capsys, name, *flags.split())
    assert len(lines) <= 30, lines
    verdict = re.compile(r"The (network|ensemble)( is as good|, \w)")
    assert sum(verdict.match(line) is not None for line in lines) == 1
    check_commands(lines)


@pytest.mark.slow
@pytest.mark.baselines
def test_a_comparison_in_25_lines(capsys):
    flags = ["forecast", "--dataset", "sunspots", "--window", "22", "--horizon", "11"]
    compare.command([*flags, "--epochs", "2", "--models", "mlp", "rnn", "--run-dir", "table"])
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) <= 25 and sum("parameters" in line for line in lines) == 1


@pytest.mark.slow
@pytest.mark.baselines
def test_the_end_of_a_sweep_in_40_lines(capsys, monkeypatch):
    monkeypatch.setattr(progress, "SILENT_SECONDS", 600)
    flags = ["mnist", "--model", "mlp", "--model.features", "32", "--epochs", "1", "--trials", "12"]
    sweep_command.main(
        "random_search", experiments, ("random",), [*flags, "--run-dir", "sweep"], ""
    )
    lines = capsys.readouterr().out.splitlines()
    end = lines[next(i for i, line in enumerate(lines) if line.startswith("testing the best")) :]
    assert len(end) <= 40 and len(lines) <= 60
    repeated = {line for line in end if len(line) > 9 and end.count(line) > 1 and "──" not in line}
    assert not repeated


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.97769, "0.9777"), (58.4009, "58.40"), (145_859.7, "145,860"), (-2301.4, "-2,301"),
     (1.2e-5, "1.2e-05"), (0.0, "0.0000"), (float("nan"), "nan"), (float("inf"), "inf"),
     (None, "")],
)  # fmt: skip
def test_numbers_as_people_read_them(value, text):
    assert number_text(value) == text


@pytest.mark.parametrize(
    ("flags", "near"),
    [
        ("--optimizer Adam", "did you mean adam"), ("--optimizer=ADAMW", "did you mean adamw"),
        ("--model resnet50", "did you mean resnet"), ("--augment flip cutuot", "mean cutout"),
        ("--baseline non", "did you mean none"), ("--preset scratc", "mean scratch"),
        ("--model.implementation matmull", "mean matmul"),
        ("--compute-dtype float16", "bfloat16"),
        ("--task Classification", "did you mean classification"),
    ],
)  # fmt: skip
def test_a_near_miss_for_every_choice(flags, near, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    module = image_folder if "resnet" in flags or "scratc" in flags else mnist
    with pytest.raises(SystemExit) as exit_:
        run.main("x", module.PRESETS, module.ARCHITECTURES, flags.split())
    err, flag = capsys.readouterr().err, re.match("[a-z.-]+", flags)[0]
    assert exit_.value.code == 2 and f"Error parsing {flag}: " in err and near in err
    assert "None" not in err and "Traceback" not in err


def test_a_file_or_folder_that_comes_first_is_the_data():
    Path("photos").mkdir()
    experiment = run.Experiment("image_folder", image_folder)
    assert run.parse(experiment, ["photos"]) == run.parse(experiment, ["--data", "photos"])


def test_a_grid_has_what_is_named(monkeypatch):
    found = []
    monkeypatch.setattr(sweep_command, "run_sweep", lambda *of, **_: found.append(of[-1].space))
    for words in ("", "--space.model.activation relu tanh gelu elu"):
        sweep_command.main("grid_search", experiments, ("grid",), ["mnist", *words.split()], "")
    assert set(found[0]) == {"learning_rate", "dropout", "l2"}
    assert found[1] == {"model.activation": ("relu", "tanh", "gelu", "elu")}


@pytest.mark.parametrize("name", ["mnist", "forecast", "tabular", "sentiment", "image_folder"])
def test_help_fits_a_screen(name, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "100")
    module = run.find(name, experiments).module
    with pytest.raises(SystemExit):
        run.main(name, module.PRESETS, getattr(module, "ARCHITECTURES", {}), ["--help"])
    assert 20 < len(capsys.readouterr().out.splitlines()) <= 60
    with pytest.raises(SystemExit):
        sweep_command.main("bayes_opt", experiments, ("gp",), [name, "--help"], "")
    assert 20 < len(capsys.readouterr().out.splitlines()) <= 60
    with pytest.raises(SystemExit):
        sweep_command.main("bayes_opt", experiments, ("gp",), [name, "--help-all"], "")
    out = capsys.readouterr().out
    assert "{None" not in out and "--run-dir PATH" in out and "--study STR" in out
    # what is optional is still read, and can still be left open
    config = run.parse(run.find(name, experiments), ["--run-dir", "a", "--data", "None"])
    assert (config.run_dir, config.data.data) == (Path("a"), None)


def test_the_article_s_first_program():
    """Valid padding, no dropout, all images to train on: 347,146 parameters."""
    import jax

    preset = mnist.PRESETS["article"]
    shapes = jax.eval_shape(
        preset.recipe.model.init, jax.random.key(0), jax.ShapeDtypeStruct((1, 28, 28, 1), "float32")
    )
    assert sum(leaf.size for leaf in jax.tree.leaves(shapes)) == 347_146
    assert preset.hparams.dropout == 0 == preset.val_split
    assert (preset.recipe.batch_size, preset.epochs, preset.hparams.learning_rate) == (32, 5, 1e-3)
