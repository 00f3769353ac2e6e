"""All benchmarks of speed: one table with machine, versions and date.

python benchmarks/all.py --data FOLDER --images FOLDER --out FOLDER
(for the other libraries: pip install torch timm keras tensorflow)

Writes results.json and results.md into FOLDER after every stage. All stages take hours on two
cores: --only selects some. `device.py` has the stages for an accelerator.
"""

import dataclasses
from pathlib import Path

import tyro
from stages import Stage, run


@dataclasses.dataclass
class Options:
    data: Path
    """Folder with MNIST's four IDX files."""
    out: Path
    """Folder of the results."""
    fashion_dir: Path | None = None
    """Folder with Fashion-MNIST's four IDX files, for the speed run."""
    images: Path | None = None
    """Folder with a folder of images for each class, for transfer learning's features."""
    only: tuple[str, ...] = ()
    """Names of stages to run (default: all)."""
    seeds: int = 10
    """Seeds of the speed runs."""


def stages(options: Options) -> list[Stage]:
    data = "--data", str(options.data.resolve())
    rows = "--rows", "{rows}"
    backbones = "resnet18", "resnet", "vgg", "efficientnet"
    listed = [
        Stage("epoch", ("benchmarks/epoch_speed.py", *data, *rows), 1500),
        Stage("sweep", ("benchmarks/sweep_speed.py", *data, *rows, "--trials", "64"), 900),
        Stage(
            "roofline",
            ("benchmarks/throughput.py", *rows, "--seconds", "5", "--batch-size", "128",
             "--model", "mlp", "cnn", "transformer", "small_resnet",
             "--beside", "torch", "keras"), 600,
        ),
        Stage(
            "backbones",
            ("benchmarks/throughput.py", *rows, "--seconds", "10", "--batch-size", "16",
             "--model", *backbones, "--beside", "torch"), 1500,
        ),
        Stage("convolutions", ("-m", "benchmarks.convolutions"), 600),
        Stage(
            "speedrun_mnist",
            ("benchmarks/speedrun.py", *data, *rows, "--seeds", str(options.seeds)), 1800,
        ),
        Stage("cost", ("benchmarks/cost.py",), 1800),
        Stage("streaming", ("benchmarks/streaming.py", *rows), 1200),
        Stage("growth", ("benchmarks/growth.py", *rows), 1800),
        Stage("searches", ("benchmarks/yardsticks.py",), 3600),
        Stage("learning curves", ("benchmarks/learning_curves.py",), 1800),
    ]  # fmt: skip
    if options.fashion_dir:
        fashion = "--dataset", "fashion_mnist", "--data", str(options.fashion_dir.resolve())
        seeds = "--seeds", str(options.seeds)
        speedrun = "benchmarks/speedrun.py", *fashion, *rows, *seeds
        listed.append(Stage("speedrun_fashion_mnist", speedrun, 1800))
        tuned = "--data", str(options.fashion_dir.resolve()), *rows
        listed.append(Stage("time to tuned", ("benchmarks/time_to_tuned.py", *tuned), 10 * 3600))
    if options.images:
        folder = "--data", str(options.images.resolve())
        listed.append(Stage("features", ("benchmarks/feature_cache.py", *folder), 900))
    names = [stage.name for stage in listed]
    if unknown := [name for name in options.only if name not in names]:
        raise SystemExit(f"--only {unknown[0]} must be one of {', '.join(names)}")
    return [stage for stage in listed if not options.only or stage.name in options.only]


if __name__ == "__main__":
    options = tyro.cli(Options, description=__doc__)
    raise SystemExit(min(1, run(stages(options), options.out.resolve())))
