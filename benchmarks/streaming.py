"""Waiting time of a training on images that are streamed from disk, and time of decoding them.

python benchmarks/streaming.py
python benchmarks/streaming.py --images 200000 --seconds 600      (31 GB of decoded images)

Writes JPEG files (random crops of two photographs of scikit-learn, 500 x 375 pixels), which
`ImageFolder` decodes once, in parallel, at 224 pixels, and trains ResNet-18 on them by `train.fit`,
streamed from a file outside of the page cache. The waiting time is that of the training thread in
`data.stream` after the first chunk. The reader alone is measured first, from a cold file too.
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
    images: int = 6_000
    """Number of JPEG files; a chunk of the reader is 1,783 images at 224 pixels."""
    batch_size: int = 16
    """Batch size of the training."""
    size: int = 224
    """Side of the images in pixels."""
    seconds: float = 500.0
    """Seconds of training after the first step, at most one epoch. They should exceed the training
    time of a chunk, after which waiting is possible."""
    rows: Path | None = None
    """JSON file of the results."""


def write_images(folder: Path, count: int) -> float:
    """Writes the files, half of them per class. Returns their size in MB."""
    from PIL import Image
    from sklearn.datasets import load_sample_images

    photographs = [Image.fromarray(image) for image in load_sample_images().images]
    for name in ("temple", "flower"):
        (folder / name).mkdir(parents=True)

    def write(i: int) -> int:
        rng, photograph = np.random.default_rng(i), photographs[i % 2]
        side = int(rng.integers(40, 400))
        left = int(rng.integers(0, photograph.width - side))
        top = int(rng.integers(0, photograph.height - side))
        crop = photograph.crop((left, top, left + side, top + side)).resize((500, 375))
        path = folder / ("temple", "flower")[i % 2] / f"{i}.jpg"
        crop.save(path, quality=90)
        return path.stat().st_size

    with ThreadPoolExecutor() as pool:
        return sum(pool.map(write, range(count))) / 2**20


def train_on(options: Options, data) -> dict:
    """Trains, and returns the steps, their seconds and the fraction of waiting."""
    from dlflax import models, train
    from dlflax.train import loop

    waits: list[float] = []
    read = loop.stream

    def stream_with_timer(*arguments):
        chunks = read(*arguments)
        while True:
            clock = time.perf_counter()
            chunk = next(chunks, None)
            waits.append(time.perf_counter() - clock)
            if chunk is None:
                return
            yield chunk

    steps: list[tuple[int, float]] = []

    def stop() -> bool:
        return len(steps) > 1 and steps[-1][1] - steps[0][1] > options.seconds

    model = models.ResNet(depth="18", num_outputs=2)
    recipe = train.Recipe(model, batch_size=options.batch_size)
    loop.stream = stream_with_timer
    try:
        train.fit(
            recipe, train.Hparams(), data, epochs=1, should_stop=stop,
            on_steps=lambda epoch, step, sums: steps.append((step, time.perf_counter())),
        )  # fmt: skip
    finally:
        loop.stream = read
    (first, begin), (last, end) = steps[0], steps[-1]
    # waits[0] is of compilation, waits[1] of the first chunk of the epoch
    waiting = sum(waits[2:]) / (end - begin)
    return {"steps": last - first, "seconds": end - begin, "waiting": waiting}


def evict(folder: Path) -> None:
    """Evicts the decoded images from the page cache."""
    for path in folder.rglob("*.npy"):
        with path.open("rb") as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def reading_speed(options: Options, data) -> float:
    """Measures images/s of the reader for one epoch, in the shuffled order of training."""
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
        megabytes = write_images(Path(folder, "images"), options.images)
        clock = time.perf_counter()
        source = ImageFolder(data=Path(folder, "images"), image_size=options.size)
        dataset = source.load(lambda text: print(text.replace(folder, "")))
        speed = options.images / (time.perf_counter() - clock)
        evict(Path(folder, "cache"))
        train_set = {name: dataset.train[name] for name in ("inputs", "targets")}
        row = {
            "images": options.images, "JPEG, MB": megabytes, "decoding, images/s": speed,
            "reading, images/s": reading_speed(options, train_set),
        }  # fmt: skip
        evict(Path(folder, "cache"))
        row |= train_on(options, train_set)
        row["peak memory, MB"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    write_rows(options.rows, [row])
    for name, value in row.items():
        print(f"{name}: {value:.2%}" if name == "waiting" else f"{name}: {value:,.4g}")


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
