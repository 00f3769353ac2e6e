"""Short names, lists with commas, near misses, a short help, lists of what there is, `dlflax`."""

import subprocess
import sys
from dataclasses import dataclass, replace

import pytest
import tyro
from tyro.conf import Positional, UseAppendAction

import experiments
from dlflax import cli as command
from dlflax import run
from dlflax.config.experiment import from_presets
from dlflax.config.renamed import RENAMED
from dlflax.run import flags
from dlflax.run.exit_codes import with_exit_codes
from dlflax.tune import sweep_command
from experiments import forecast, image_folder, listing, mnist, sentiment, tabular

pytestmark = pytest.mark.usefixtures("place")


def parsed(words, module=mnist):
    architectures = getattr(module, "ARCHITECTURES", None)
    return run.parse(from_presets("x", module.PRESETS, architectures), words.split())


@pytest.mark.parametrize(
    "short, full",
    [
        ("--lr 0.1", "--hparams.learning-rate 0.1"),
        ("--lr=0.1 --dropout=0.3", "--hparams.learning-rate 0.1 --hparams.dropout 0.3"),
        ("--hparams.lr 0.1 --l2 1e-4", "--hparams.learning-rate 0.1 --hparams.l2 1e-4"),
        ("--weight-decay 0.1 --optimizer adamw",
         "--hparams.weight-decay 0.1 --optimizer adamw"),
        ("--model.features 32,64", "--model.features 32 64"),
        ("--model.features=32,64 --epochs 3", "--model.features 32 64 --epochs 3"),
        ("--augment crop,flip", "--augment crop flip"),
        ("--augment affine,cutout --rotate-degrees 9",
         "--augment affine cutout --hparams.rotate-degrees 9"),
    ],
)  # fmt: skip
def test_short_is_the_same_as_long(short, full):
    found, wanted = parsed(short), parsed(full)
    assert found == wanted != parsed("")
    assert found.given == wanted.given


@dataclass(frozen=True)
class Data(type(mnist.DEFAULT.data)):
    noise_std: float = 0.0
    columns: tuple[str, ...] = ()
    shape: tuple[int, int] = (1, 1)


def test_a_short_name_never_hides_a_flag_of_the_data():
    experiment = from_presets("x", {"default": replace(mnist.DEFAULT, data=Data())})
    words = ["--noise-std", "1", "--zoom-fraction", "0.2", "--hparams.noise-std=3"]
    # names of columns stay as they are
    words += ["--columns", "price, EUR", "a,b", "--shape", "3,4"]
    config = run.parse(experiment, words)
    assert config.data == Data(noise_std=1.0, columns=("price, EUR", "a", "b"), shape=(3, 4))
    assert (config.hparams.zoom_fraction, config.hparams.noise_std) == (0.2, 3.0)


def test_texts_and_repeated_flags_keep_their_commas():
    def command(texts: Positional[tuple[str, ...]], host: UseAppendAction[tuple[str, ...]] = ()):
        return texts, host

    words = ["a,b", "c", "--host", "d,e", "--host", "f"]
    assert tyro.cli(command, args=words, registry=flags.REGISTRY) == (("a,b", "c"), ("d,e", "f"))


def test_a_choice_of_a_space_may_be_a_list(monkeypatch):
    found = []
    monkeypatch.setattr(sweep_command, "run_sweep", lambda *of, **_: found.append(of[-1].space))
    words = ["mnist", "--space.model.features", "16,32", "16", "--space.model.activation",
             "relu,tanh", "--space.augment", "crop,flip", "crop"]  # fmt: skip
    sweep_command.main("random_search", experiments, ("random",), words)
    assert found[0]["model.features"] == ("16,32", "16")
    assert found[0]["model.activation"] == ("relu", "tanh")
    assert found[0]["augment"] == ("crop,flip", "crop")


def test_a_sweep_knows_short_names_too(monkeypatch):
    found = []
    monkeypatch.setattr(sweep_command, "run_sweep", lambda *parsed, **_: found.append(parsed[-1]))
    for words in (
        ["--space.lr", "1e-4,1e-2,log", "--dropout", "0.1", "--space.dropout"],
        ["--space.learning-rate", "1e-4", "1e-2", "log", "--hparams.dropout", "0.1",
         "--space.dropout"],
    ):  # fmt: skip
        sweep_command.main("random_search", experiments, ("random",), ["mnist", *words])
    assert found[0].space == found[1].space and found[0].hparams == found[1].hparams
    assert found[0].space["learning_rate"] == ("1e-4", "1e-2", "log")


@pytest.mark.parametrize(
    "words, near",
    [
        ("--lerning-rate 1", "--hparams.learning-rate"),
        ("--hparams.drop-out 1", "--hparams.dropout"),
        ("--epoch 3", "--epochs"),
        ("--model.feature 3", "--model.features"),
        ("--batchsize 3", "--batch-size"),
        ("--fspd", "--fsdp"),  # which --help does not show
        ("--qqqqq", "python -m experiments.mnist --help"),
        ("epochs", "python -m experiments.mnist --help"),
    ],
)
def test_an_unknown_flag_is_refused_with_the_near_one(words, near, capsys):
    with pytest.raises(SystemExit) as stopped:
        with_exit_codes(lambda: parsed(words))
    said = capsys.readouterr().err
    assert stopped.value.code == 2 and f"Unrecognized options: {words.split()[0]}" in said
    assert near in said and "Traceback" not in said


@pytest.mark.parametrize(
    "words, sentence",
    [
        ("--epochs x", "Error parsing --epochs: invalid literal for int() with base 10: 'x'"),
        ("--model.features 8,x", "Error parsing --model.features: invalid literal for int()"),
        ("--lr x", "--hparams.learning-rate: could not convert string to float: 'x'"),
        ("--epochs", "Missing value for argument '--epochs'"),
    ],
)
def test_a_wrong_value_names_the_flag(words, sentence, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    with pytest.raises(SystemExit) as stopped:
        with_exit_codes(lambda: parsed(words))
    said = capsys.readouterr().err
    assert stopped.value.code == 2 and sentence in said and "Traceback" not in said


OLD = {  # experiment -> old names of its flags, and of their values
    mnist: ["validation", "log", "reduce_on_plateau", "shard_state", "data_dir"],
    image_folder: [
        "size", "test", "labels", "views", "head_epochs", "self_contained", "target_kind",
        "finetune all", "task by_target",
    ],
    sentiment: ["length", "vocabulary", "vectors"],
    tabular: ["target_kind", "ignore", "bins", "test", "task by_target"],
    forecast: ["column", "period", "tail"],
}  # fmt: skip


@pytest.mark.parametrize("module, old", [(module, old) for module in OLD for old in OLD[module]])
def test_an_old_flag_is_refused_by_the_new_one(module, old, capsys):
    name, _, value = old.partition(" ")
    flag = f"--{name.replace('_', '-')}"
    new = f"--{RENAMED[old].replace('_', '-')}"
    old = f"{flag} {value}" if value else flag
    target = module.__name__.rpartition(".")[2]
    for run_it in (
        lambda: parsed(f"{old} 1" if not value else old, module),
        lambda: sweep_command.main("bayes_opt", experiments, ("gp",), [target, *old.split()]),
    ):
        with pytest.raises(SystemExit) as stopped:
            with_exit_codes(run_it)
        said = capsys.readouterr().err
        if value:
            new = new.removeprefix("--")
            assert f"Error parsing {flag}: {value} was renamed: use {new}." in said
        else:
            assert said == f"error: {old} was renamed: use {new}.\n"
        assert stopped.value.code == 2


def test_an_old_flag_in_other_writings(capsys):
    for words, said in {
        "--validation=0.2": "error: --validation was renamed: use --val-split.",
        "--reduce_on_plateau 3": "error: --reduce_on_plateau was renamed: use --plateau-patience.",
        "--no-shard-state": "error: --no-shard-state was renamed: use --no-fsdp.",
        "--finetune=all": "Unrecognized options: --finetune=all",
        "--size 3": "Unrecognized options: --size",
    }.items():
        with pytest.raises(SystemExit):
            with_exit_codes(lambda words=words: parsed(words))
        assert said in capsys.readouterr().err


def test_help_shows_what_the_experiment_has(capsys):
    def shown(words, module=mnist):
        with pytest.raises(SystemExit) as stopped:
            parsed(words, module)
        assert stopped.value.code == 0
        return capsys.readouterr().out

    short, whole = shown("--help"), shown("--help-all")
    for flag in ("--epochs", "--model.features", "--hparams.dropout", "--augment"):
        assert flag in short and flag in whole
    for flag in ("--hparams.mixup-alpha", "--fsdp", "--hparams.kl-weight"):
        assert flag not in short and flag in whole
    assert "--hparams.rotate-degrees" in shown("--augment affine --help")
    assert "--help-all" in short and "--lr, --learning-rate" in short
    assert shown("-H") == whole and "--vocab-size" in shown("-h", sentiment)
    assert len(short.splitlines()) < 150


def test_help_of_a_sweep_says_a_thing_once(capsys):
    with pytest.raises(SystemExit):
        sweep_command.main("bayes_opt", experiments, ("gp",), ["mnist", "--help"], "words")
    said = capsys.readouterr().out
    assert said.count("each a program of its own") <= 1 and len(said.splitlines()) < 220


def test_lists_of_what_there_is():
    for package in ("experiments", "sweeps"):
        done = subprocess.run(
            [sys.executable, "-m", package], capture_output=True, text=True, check=True
        )
        for name in ("mnist", "sentiment", "predict", "serve", "bayes_opt"):
            assert f".{name} " in done.stdout
    here = listing.Path(listing.__file__).parent
    for path in (*here.glob("*.py"), *(here.parent / "sweeps").glob("*.py")):
        assert listing.first_sentence(path)


def test_dlflax_runs_the_modules(monkeypatch, capsys, place):
    ran = []
    monkeypatch.setenv("DLFLAX_PROGRAM", "")  # set by the command, restored after the test

    def run_module(name, run_name, alter_sys):
        ran.append((name, command.sys.argv[1:]))

    monkeypatch.setattr(command.runpy, "run_module", run_module)

    def dlflax(words):
        monkeypatch.setattr("sys.argv", ["dlflax", *words.split()])
        command.main()
        return ran.pop() if ran else None

    assert dlflax("train mnist --epochs 3") == ("experiments.mnist", ["--epochs", "3"])
    assert dlflax("train cats-vs-dogs") == ("experiments.cats_vs_dogs", [])
    assert dlflax("sweep mnist --trials 2") == ("sweeps.bayes_opt", ["mnist", "--trials", "2"])
    assert dlflax("sweep --search random mnist") == ("sweeps.random_search", ["mnist"])
    assert dlflax("sweep mnist --search=grid") == ("sweeps.grid_search", ["mnist"])
    given = ["mnist", "--search", "freeze-thaw"]
    assert dlflax(f"sweep {' '.join(given)}") == ("sweeps.bayes_opt", given)
    assert dlflax("predict RUN a.png") == ("experiments.predict", ["RUN", "a.png"])
    assert dlflax("find-learning-rate mnist") == ("experiments.find_learning_rate", ["mnist"])
    assert dlflax("report x") == ("sweeps.report", ["x"])
    assert dlflax("list") is None and "dlflax train mnist" in capsys.readouterr().out
    assert dlflax("") is None
    (place / "own.py").write_text("import sys\nprint('own', sys.argv[1:])\n", encoding="utf-8")
    capsys.readouterr()
    dlflax("train own.py --a")
    assert capsys.readouterr().out == "own ['--a']\n"
    monkeypatch.undo()
    monkeypatch.setenv("DLFLAX_PROGRAM", "")
    for words in (["nothing"], ["train"], ["train", "none"], ["train", "gone.py"]):
        monkeypatch.setattr("sys.argv", ["dlflax", *words])
        with pytest.raises(SystemExit) as stopped:
            command.main()
        said = capsys.readouterr().err
        assert stopped.value.code == 2 and said.startswith("error: ") and said.count("\n") == 1
