"""Time series: windows of the past, and the values that follow them."""

import dataclasses
import hashlib
import importlib.resources
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np

from dlflax.data import csv_files, numbers
from dlflax.data.dataset import Dataset, Raw, Splits
from dlflax.data.targets import standardized, unit_of
from dlflax.data.times import in_time, read_times, stamps
from dlflax.errors import InputError

# in data/embedded, with their sources: (column, steps a season)
EMBEDDED = {"co2": ("co2", 52), "sunspots": ("SUNACTIVITY", 11)}


@dataclasses.dataclass(frozen=True)
class Series:
    """One column of numbers, in steps of equal length, and others beside it, cut into windows."""

    dataset: str = "co2"
    """co2 (Mauna Loa, weekly, 1958 to 2001) or sunspots (yearly, 1700 to 2008)."""
    data_dir: Path | None = None
    """A CSV file with a header instead."""
    decimal: Literal["auto", ".", ","] = "auto"
    """The decimal mark of its numbers; auto: as the file shows, column by column."""
    column: str | None = None
    """The column of it that is forecast (default: the last one)."""
    past_covariates: tuple[str, ...] = ()
    """Other columns of the file, whose past the model sees too."""
    future_covariates: tuple[str, ...] = ()
    """Columns that are known beforehand, such as holidays: their values over the horizon are seen
    too, in training as when forecasting, where the file goes on with them after the last value."""
    window: int = 104
    """Steps of the past that the model sees."""
    horizon: int = 52
    """Steps of the future that it predicts."""
    period: int = 0
    """Steps a season, for the seasonal-naive forecast (0: that of the data set; a file's: 1)."""
    tail: float = 0.2
    """Share of the series, at its end, that is the test data."""

    def load(self, log: Callable[[str], None] = print) -> Dataset:
        """train and test: {"inputs": float64 (n,), "observed": bool (n,), "covariates": float64
        (n, columns), where there are any}, the series before the tail and the tail. What is
        missing, which `log` is told, has the value before it and is not observed. InputError when
        the file is not such a series or too short."""
        if self._covariates() and self.data_dir is None:
            raise InputError(
                "--past-covariates and --future-covariates are for a file: --data-dir."
            )
        if self.data_dir is not None:
            if self.dataset != type(self).dataset:
                raise InputError(f"--dataset {self.dataset} and --data-dir: give one of them.")
            path, column = Path(self.data_dir).expanduser(), self.column
            name, source = path.stem, f"{path.resolve()}"
        elif self.dataset in EMBEDDED:
            if self.column is not None:
                raise InputError(
                    f"--column {self.column} is for a file: pass --data-dir FILE.csv, or leave it "
                    "out."
                )
            path = importlib.resources.files("dlflax.data") / "embedded" / f"{self.dataset}.csv"
            column = EMBEDDED[self.dataset][0]
            name, source = self.dataset, f"{self.dataset}, which comes with dlflax"
        else:
            raise InputError(
                f"--dataset {self.dataset} is unknown here: choose {' or '.join(EMBEDDED)}, or "
                "pass --data-dir FILE.csv."
            )
        if self.decimal != "auto" and self.data_dir is None:
            raise InputError(f"--decimal {self.decimal} is for a file: pass --data-dir.")
        values, observed, covariates, style, calendar = read_columns(
            path, column, self._covariates(), log, decimal=self.decimal
        )
        ahead = covariates[len(values) :]
        content = values.tobytes() + (b"" if observed.all() else observed.tobytes())
        content += covariates.tobytes()
        checksum = hashlib.sha256(content).hexdigest()
        if not 0 < self.tail < 1:
            raise InputError(f"--tail {self.tail:g} must be between 0 and 1.")
        start = len(values) - round(self.tail * len(values))
        columns = {"inputs": values, "observed": observed}
        columns |= {"covariates": covariates[: len(values)]} if self._covariates() else {}
        train, test = (
            {name: column[part] for name, column in columns.items()}
            for part in (slice(0, start), slice(start, None))
        )
        info = {"ahead": ahead.tolist(), "calendar": calendar, **style}
        return Dataset(name, source, train, test, class_names=(), checksum=checksum, info=info)

    def _covariates(self) -> tuple[str, ...]:
        return (*self.past_covariates, *self.future_covariates)

    def split(self, dataset: Dataset, validation: float, seed: int) -> Splits:
        """Windows "inputs" float32 (n, window, channels) and "targets" float32 (n, horizon). The
        first channel and the targets are the series less the window's last value, divided by
        `scale`, the standard deviation of the training targets; then come, in deviations from their
        mean, past covariates, and each future covariate twice, as it is and as it will be `horizon`
        steps later;
        of the test also "last", float64 (n, 1), that value, and "first", int32 (n,), the step of
        the tail at which its targets begin. Targets that were not observed are NaN, which
        `train.losses` leave out; windows without any observed target are left out too.

        The share `validation` of the part before the tail, at its end and whatever the seed, is
        held out; windows reach back over the border, targets never do. InputError when a part is
        too short for a window and its targets.
        """
        del seed  # a forecast is judged on what comes after
        before, tail = dataset.train["inputs"], dataset.test["inputs"]
        values, period = np.concatenate([before, tail]), self._period()
        observed = np.concatenate([dataset.train["observed"], dataset.test["observed"]])
        truth = np.where(observed, values, np.nan)
        if min(self.window, self.horizon) < 1 or self.window < period:
            raise InputError(
                f"--window {self.window} must be at least the season of {period} steps, and "
                f"--horizon {self.horizon} at least 1."
            )
        val_start = len(before) - round(validation * len(before))
        borders = {"train": (self.window, val_start), "val": (val_start, len(before)),
                   "test": (len(before), len(values))}  # fmt: skip
        windows = {
            name: _windows(values, truth, start, stop, self.window, self.horizon)
            for name, (start, stop) in borders.items()
        }
        for name, (past, *_) in windows.items():
            if not len(past) and (name != "val" or validation):
                start, stop = borders[name]
                steps = max(0, stop - start + (self.window if name == "train" else 0))
                flags = "--window and --horizon, together" if name == "train" else "--horizon,"
                raise InputError(
                    f"{dataset.source}: its {name} part has {steps:,} steps, too few for --window "
                    f"{self.window} and --horizon {self.horizon}: give {flags} at most {steps}."
                )
        if self.future_covariates and self.horizon > self.window:
            raise InputError(
                f"--future-covariates needs a --window of {self.horizon} or more, the --horizon."
            )
        beside, unit = None, {}
        if self._covariates():
            beside = np.concatenate([dataset.train["covariates"], dataset.test["covariates"]])
            unit = {"covariates": unit_of(beside[:val_start])}
        past, future, _ = windows["train"]
        scale = float(np.nanstd(future - past[:, -1:])) or 1.0

        def arrays(name) -> dict[str, Any]:
            past, future, first = windows[name]
            last = past[:, -1:]
            # for the test alone: training has no use for them
            more = {"last": last, "first": np.int32(first - len(before))} if name == "test" else {}
            inputs = np.float32((past - last) / scale)[:, :, None]
            if beside is not None:
                steps = np.arange(-self.window, self.horizon if self.future_covariates else 0)
                around = beside[first[:, None] + steps[None]]
                inputs = np.concatenate([inputs, self._channels(around, unit["covariates"])], 2)
            return {
                "inputs": inputs,
                "targets": np.float32((future - last) / scale),
                **more,
            }

        if beside is not None:  # as a file that is asked about has them
            ahead = np.reshape(dataset.info["ahead"], (-1, beside.shape[1]))
            last_covariates = np.concatenate([beside[-self.window :], ahead])
        return Splits(
            arrays("train"), arrays("val") if validation else None, arrays("test"),
            kind="series", unit="file",
            info={
                "scale": scale, "period": period, "last_window": values[-self.window :].tolist(),
                "times": self._times(dataset.info["calendar"], len(values)),
                **{name: dataset.info[name] for name in ("target", "delimiter", "formats")},
                **({} if beside is None else {"last_covariates": last_covariates.tolist(), **unit}),
            },
        )  # fmt: skip

    def read(
        self, inputs: list[str], data: Mapping[str, Any], folder: Path
    ) -> tuple[list[str], str, dict[str, np.ndarray]]:
        """Windows: the last of each CSV file, or with no input of the series trained on; "last" as
        in `split`."""
        windows = {}  # name -> (values, covariates from the first of them on)
        times = []
        for path in inputs:
            values, _, beside, _, calendar = read_columns(
                path, self.column, self._covariates(), _to_stderr, data
            )
            times.append(self._times(calendar, len(values)))
            if len(values) < self.window:
                raise InputError(
                    f"{path} has {len(values)} values: the model looks at the last {self.window}."
                )
            windows[path] = values[-self.window :], beside[len(values) - self.window :]
        if not windows:
            windows["the series"] = np.array(data["last_window"]), data.get("last_covariates")
            times.append(data.get("times", [""] * self.horizon))
            if len(times[0]) != self.horizon:
                raise InputError("config.json is damaged: data.times has not one for each step.")
        past = np.stack([values for values, _ in windows.values()])
        last = past[:, -1:]
        seen = np.float32((past - last) / data["scale"])[:, :, None]
        if self._covariates():
            needed = self.window + (self.horizon if self.future_covariates else 0)
            rows = []
            for path, (_, beside) in windows.items():
                if len(beside) < needed:
                    raise InputError(
                        f"{path}: {', '.join(self.future_covariates)} must go on for "
                        f"{self.horizon} rows after the last value, and there are "
                        f"{len(beside) - self.window}."
                    )
                rows.append(np.asarray(beside)[:needed])
            seen = np.concatenate([seen, self._channels(np.stack(rows), data["covariates"])], 2)
        batch = {"inputs": seen, "last": last, "times": np.array(times)}
        return list(windows), "file", batch

    def _times(self, calendar, rows: int) -> list[str]:
        """Returns the times of the steps behind so many rows; empty where the file has none."""
        if calendar is None:
            return [""] * self.horizon
        return stamps(calendar, range(rows, rows + self.horizon))

    def raw(self, data: Mapping[str, Any]) -> Raw:
        """Windows in the columns' own units; where covariates are known beforehand, with `horizon`
        steps more, in which the series itself may be anything."""
        import jax.numpy as jnp

        later = self.horizon if self.future_covariates else 0
        columns = ("the series", *self._covariates())

        def batch(raw):
            past = raw[:, : self.window, 0]
            last = past[:, -1:]
            seen = ((past - last) / data["scale"])[:, :, None]
            if self._covariates():
                beside = self._channels(raw[:, :, 1:], data["covariates"], jnp)
                seen = jnp.concatenate([seen, beside], 2)
            return {"inputs": seen, "last": last}

        def of(splits):  # of covariates their means: a window of the test data does not keep them
            seen, last = splits.test["inputs"], splits.test["last"]
            raw = np.zeros((len(seen), self.window + later, len(columns)), np.float32)
            raw[:, : self.window, 0] = last + data["scale"] * seen[:, :, 0]
            if self._covariates():
                raw[:, :, 1:] = data["covariates"]["target_mean"]
            return raw

        more = f", and {later} steps after them" if later else ""
        return Raw(
            (self.window + later, len(columns)), "float32",
            f"the last {self.window} values of {', '.join(columns)}{more}", batch, of,
        )  # fmt: skip

    def _channels(self, around, unit, xp=np):
        """float32 (n, window, channels) of covariates around windows, (n, window, columns), or
        (n, window + horizon, columns) where some are known beforehand. xp: jax.numpy for traced
        ones."""
        values = standardized(around, unit)
        known = values[:, :, len(self.past_covariates) :]
        later = known[:, self.horizon :] if known.shape[2] else known[:, : self.window]
        return xp.concatenate([values[:, : self.window], later], 2)

    def _period(self) -> int:
        if self.period < 0:
            raise InputError(f"--period {self.period} must be 1 or more, or 0 for the data set's.")
        if self.period or self.data_dir is not None:
            return self.period or 1
        return EMBEDDED[self.dataset][1]


def _to_stderr(sentence: str) -> None:
    """Prints to stderr: notes while predicting are not part of the answers."""
    print(sentence, file=sys.stderr)


def naive(inputs, horizon: int):
    """Repeats the last value over the horizon. inputs (n, window, 1) as `Series.split` gives
    them -> (n, horizon), all 0: the last value has been subtracted."""
    return np.zeros((len(inputs), horizon), np.float32)


def seasonal_naive(inputs, horizon: int, period: int):
    """Repeats the last season over the horizon. inputs as for `naive` -> (n, horizon)."""
    return np.asarray(inputs)[:, -period:, 0][:, np.arange(horizon) % period]


def _windows(values, truth, start, stop, window, horizon):
    """(past (n, window), future (n, horizon), first step of the future (n,)) of all windows whose
    targets lie in start..stop and are not all NaN."""
    first = np.arange(max(start, window), stop - horizon + 1)
    if not len(first):  # before anything as long as an absurd horizon is made
        return np.empty((0, window)), np.empty((0, horizon)), first
    future = truth[first[:, None] + np.arange(horizon)[None]]
    known = ~np.isnan(future).all(1)
    past = values[first[known, None] + np.arange(-window, 0)[None]]
    return past, future[known], first[known]


def read(
    path: Path, column: str | None = None, log: Callable[[str], None] = print
) -> tuple[np.ndarray, np.ndarray]:
    """The first two of `read_columns`, without covariates."""
    return read_columns(path, column, (), log)[:2]


def read_columns(
    path: Path, column: str | None, covariates: tuple[str, ...], log: Callable[[str], None],
    style: Mapping[str, Any] | None = None, decimal: str = "auto",
) -> tuple[np.ndarray, np.ndarray, np.ndarray, dict[str, Any], dict[str, str] | None]:  # fmt: skip
    """One column, by default the last, of a CSV file with a header, up to its last value: (float64
    (n,), which of them were observed, bool (n,), the covariates beside it and in the rows after it,
    float64 (n + more, columns), how the file is written, the calendar of the rows, for `stamps`),
    in the order of the column with times, if there is one. As `Series.load` says. style: how the
    training file was written, which then holds for this one."""
    path = Path(path)
    usual = (style or {}).get("delimiter", ",")
    header, rows, delimiter = csv_files.read(path, usual=usual)
    column = column or next((name for name in header[::-1] if name not in covariates), header[-1])
    for name in (column, *covariates):
        if name not in header:
            raise InputError(f"{path} has no column {name!r}: it has {', '.join(header)}.")
    if column in covariates:
        raise InputError(f"{column} is what is forecast: it cannot be a covariate too.")
    places = [header.index(name) for name in (column, *covariates)]
    cells = {header[place]: [row[place].strip() for _, row in rows] for place in places}
    if style is None:
        formats = numbers.infer_formats(cells, delimiter, decimal, path)
        for note in numbers.describe_formats(cells, formats):
            log(note)
        style = {"target": column, "delimiter": delimiter, "formats": numbers.to_json(formats)}
    else:  # the column may have another name here
        saved = numbers.from_json(style.get("formats", {}))
        formats = {name: saved.get(name, numbers.NumberFormat()) for name in cells}
        formats[column] = saved.get(style.get("target"), formats[column])
        if delimiter != usual:
            numbers.check_like(cells, formats, delimiter, path)
    table = np.stack([_numbers(path, name, cells[name], formats, rows) for name in cells], 1)
    if (known := (~np.isnan(table[:, 0])).sum()) < 8:
        raise InputError(f"{path} has {known} numbers: a series needs more.")
    calendar = None
    for other in range(len(header)):
        if other in places:
            continue
        times = read_times([row[other] for _, row in rows])
        if times is not None:
            table, calendar = in_time(times, table, path, log)
            break
    missing = np.isnan(table)
    if missing.all(0).any():
        raise InputError(f"{path}: the column {header[places[missing.all(0).argmax()]]} is empty.")
    if begin := int(np.argmin(missing, 0).max()):
        log(f"{path.name}: the first {begin} values are missing: left out.")
    table, missing = table[begin:], missing[begin:]
    if calendar is not None:
        calendar = {**calendar, "first": stamps(calendar, [begin])[0]}
    latest = np.maximum.accumulate(np.where(missing, 0, np.arange(len(table))[:, None]))
    filled, observed = np.take_along_axis(table, latest, 0), ~missing[:, 0]
    end = len(table)
    if covariates:  # rows after the last value say what is known of the future
        end = int(np.flatnonzero(observed)[-1]) + 1
        if gaps := int(missing[:end, 1:].sum()):
            log(f"{path.name}: {gaps} covariates are missing: the value before stands in for them.")
    if not observed[:end].all():
        log(
            f"{path.name}: {(~observed[:end]).sum()} of {end} values are missing: the value "
            "before stands in for them, and no forecast is judged by them."
        )
    return filled[:end, 0], observed[:end], filled[:, 1:], style, calendar


def _numbers(path, name, cells, formats, rows) -> np.ndarray:
    """float64 (n,) of a column, NaN where a cell is empty."""
    values = formats[name].parse(cells)
    if isinstance(values, str):
        line = rows[cells.index(values)][0]
        raise InputError(f"{path}, line {line}, column {name}: {values!r} is not a number.")
    if np.isinf(values).any():
        raise InputError(f"{path}, column {name} has an infinite value: give numbers.")
    return values
