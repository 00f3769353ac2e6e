"""Time and memory of reading, splitting and encoding a table of a million rows.

Ten columns of floats, two of integers, five of categories, a date, a time and the target, as CSV
and as Parquet:

    python -m benchmarks.read_table
    python -m benchmarks.read_table --rows 100000
"""

import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet
import tyro

from dlflax.data import Table, make_splits


def write(rows: int, folder: Path) -> None:
    """Writes table.csv and table.parquet into the folder."""
    generator = np.random.default_rng(0)
    columns = {f"x{i}": np.round(generator.normal(0, 10 ** (i % 3), rows), 4) for i in range(10)}
    columns |= {f"count{i}": generator.integers(0, 1000, rows) for i in range(2)}
    for levels in (2, 3, 8, 20, 60):
        names = np.array([f"level {i}" for i in range(levels)])
        columns[f"kind{levels}"] = names[generator.integers(0, levels, rows)]
    start = np.datetime64("2015-01-01T00:00:00")
    times = start + generator.integers(0, 3 * 10**8, rows).astype("timedelta64[s]")
    columns["day"], columns["time"] = times.astype("datetime64[D]"), times
    columns["y"] = np.round(2 * columns["x0"] + generator.normal(size=rows), 3)
    pyarrow.parquet.write_table(pa.table(columns), folder / "table.parquet")
    columns["time"] = np.datetime_as_string(times)
    pyarrow.csv.write_csv(pa.table(columns), folder / "table.csv")


def measure(path: Path) -> None:
    """Prints the seconds and the peak memory for one file."""
    source, begin = Table(data=path), time.perf_counter()
    dataset = source.load(lambda sentence: None)
    splits = make_splits(source, dataset, 0.15, 0)
    seconds = time.perf_counter() - begin
    gigabytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    width = splits.train["inputs"].shape[1]
    print(f"{path.name}: {seconds:.1f} s, peak memory {gigabytes:.2f} GB, {width} inputs per row")


def main(rows: int = 1_000_000, file: Path | None = None) -> None:
    """Args:
    rows: Rows of the table.
    file: Measure this file instead.
    """
    if file:
        measure(file)
        return
    with tempfile.TemporaryDirectory() as folder:
        write(rows, Path(folder))
        for name in ("table.csv", "table.parquet"):  # processes, for the peak memory
            command = [sys.executable, "-m", "benchmarks.read_table", "--file", f"{folder}/{name}"]
            subprocess.run(command, check=True)


if __name__ == "__main__":
    tyro.cli(main)
