"""Does training wait for pictures that are read from disk? And what does decoding cost before?

python benchmarks/streaming.py
python benchmarks/streaming.py --pictures 200000 --seconds 600      (31 GB of decoded pictures)

Makes JPEG files (random parts of two photographs of scikit-learn, 500 x 375 pixels), which
`ImageFolder` decodes once, in parallel, at 224 pixels, and trains ResNet-18 on them by `train.fit`
as a run does, streamed from disk. The decoded file is first thrown out of the page cache. Waiting
is what the training thread spends in `data.stream` after the first piece. The reader alone is timed
before, from a cold file, too.
"""

import dataclasses
import os
import resource
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import tyro
from stages import write_rows


@dataclasses.dataclass
class Options:
    pictures: int = 6_000
    """JPEG files; a piece, what is read at once, is 1,783 of them at 224 pixels."""
    batch_size: int = 16
    """Of the training."""
    size: int = 224
    """Pixels a side."""
    seconds: float = 500.0
    """Of training after the first step, at most one epoch. Give more than a piece takes to train
    on: the next one is not waited for earlier."""
    rows: Path | None = None
    """File for what is printed, as JSON."""


def make(folder: Path, count: int) -> float:
    """Writes the files, half of them a class. Their size in MB."""
    from PIL import Image
    from sklearn.datasets import load_sample_images

    photographs = [Image.fromarray(picture) for picture in load_sample_images().images]
    for name in ("temple", "flower"):
        (folder / name).mkdir(parents=True)

    def write(i: int) -> int:
        rng, photograph = np.random.default_rng(i), photographs[i % 2]
        side = int(rng.integers(40, 400))
        left = int(rng.integers(0, photograph.width - side))
        top = int(rng.integers(0, photograph.height - side))
        part = photograph.crop((left, top, left + side, top + side)).resize((500, 375))
        path = folder / ("temple", "flower")[i % 2] / f"{i}.jpg"
        part.save(path, quality=90)
        return path.stat().st_size

    with ThreadPoolExecutor() as pool:
        return sum(pool.map(write, range(count))) / 2**20


def train_on(options: Options, data) -> dict:
    """Steps, their seconds and how many of these were waiting."""
    from dlflax import models, train
    from dlflax.train import loop

    waits: list[float] = []
    read = loop.stream

    def timed(*arguments):
        pieces = read(*arguments)
        while True:
            clock = time.perf_counter()
            piece = next(pieces, None)
            waits.append(time.perf_counter() - clock)
            if piece is None:
                return
            yield piece

    steps: list[tuple[int, float]] = []

    def stop() -> bool:
        return len(steps) > 1 and steps[-1][1] - steps[0][1] > options.seconds

    model = models.ResNet(depth="18", num_outputs=2)
    recipe = train.Recipe(model, batch_size=options.batch_size)
    loop.stream = timed
    try:
        train.fit(
            recipe, train.Hparams(), data, epochs=1, should_stop=stop,
            on_steps=lambda epoch, step, sums: steps.append((step, time.perf_counter())),
        )  # fmt: skip
    finally:
        loop.stream = read
    (first, begin), (last, end) = steps[0], steps[-1]
    # waits[0] is for compiling, waits[1] for the first piece of the epoch
    waited = sum(waits[2:])
    return {"steps": last - first, "seconds": end - begin, "waiting": waited / (end - begin)}


def cold(folder: Path) -> None:
    """Throws the decoded pictures out of the page cache."""
    for path in folder.rglob("*.npy"):
        with path.open("rb") as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def read_alone(options: Options, data) -> float:
    """Pictures/s of one epoch's pieces, in the shuffled order of training."""
    from dlflax.data.order import epoch_batches
    from dlflax.data.stream import stream

    n, clock = len(data["inputs"]), time.perf_counter()
    for _ in stream(data, epoch_batches(n, options.batch_size, 0, 0)):
        pass
    return n / (time.perf_counter() - clock)


def main(options: Options) -> None:
    from dlflax.data import ImageFolder

    with tempfile.TemporaryDirectory() as folder:
        os.environ["XDG_CACHE_HOME"] = str(Path(folder, "cache"))
        megabytes = make(Path(folder, "pictures"), options.pictures)
        clock = time.perf_counter()
        source = ImageFolder(data_dir=Path(folder, "pictures"), size=options.size)
        dataset = source.load(lambda text: print(text.replace(folder, "")))
        decoded = options.pictures / (time.perf_counter() - clock)
        cold(Path(folder, "cache"))
        wanted = {name: dataset.train[name] for name in ("inputs", "targets")}
        row = {
            "pictures": options.pictures, "JPEG, MB": megabytes,
            "decoded once, pictures/s": decoded,
            "read alone, pictures/s": read_alone(options, wanted),
        }  # fmt: skip
        cold(Path(folder, "cache"))
        row |= train_on(options, wanted)
        row["most memory, MB"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    write_rows(options.rows, [row])
    for name, value in row.items():
        print(f"{name}: {value:.2%}" if name == "waiting" else f"{name}: {value:,.4g}")


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
