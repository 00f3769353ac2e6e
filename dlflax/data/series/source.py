"""Time series: windows of the past, and the next values."""

import dataclasses
import hashlib
import importlib.resources
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import numpy as np

from dlflax.data.dataset import Dataset, Source
from dlflax.data.encoder import Examples
from dlflax.data.series.encoder import SeriesEncoder
from dlflax.data.series.series_file import ParsedSeries, Style, read_file
from dlflax.data.splits import ByTime
from dlflax.data.target import Steps
from dlflax.errors import InputError

# in data/embedded, with their sources: (column, steps per season)
EMBEDDED = {"co2": ("co2", 52), "sunspots": ("SUNACTIVITY", 11)}


@dataclasses.dataclass(frozen=True)
class Series(Source):
    """Windows of a series, a column of values at equal time steps, and of its covariates."""

    dataset: str = dataclasses.field(default="co2", metadata={"resume": "free"})
    """co2 (Mauna Loa, weekly, 1958 to 2001) or sunspots (yearly, 1700 to 2008)."""
    data: Path | None = dataclasses.field(default=None, metadata={"resume": "free"})
    """A CSV file with a header instead."""
    decimal: Literal["auto", ".", ","] = "auto"
    """Decimal mark of the file's numbers; auto: inferred for each column."""
    target: str | None = None
    """Column to forecast (default: the last one with numbers)."""
    past_covariates: tuple[str, ...] = ()
    """Other columns of the file, whose past is an input."""
    future_covariates: tuple[str, ...] = ()
    """Columns known in advance, such as holidays, whose past and future are inputs. A file to
    forecast has their values over the horizon, after the last value of the series."""
    window: int = 104
    """Steps of the past in an input."""
    horizon: int = 52
    """Steps of the future to forecast."""
    seasonality: int = 0
    """Steps per season, for the seasonal-naive forecast (0: that of the data set, 1 for a file)."""
    test_split: float = 0.2
    """Share of the series, at its end, in the test split."""

    def load(self, log: Callable[[str], None] = print) -> Dataset:
        """Returns an example for each step at which a forecast may start.

        "first": int (n,), that step; "window": float64 (n, window + later, columns), the series and
        the covariates before it, and `later` steps of future covariates; the target: the next
        `horizon` values minus the window's last, NaN where nothing was observed. Missing values of
        a window are forward-filled. Raises InputError for a file that is no series or too short."""
        if self.data is not None:
            if self.dataset != type(self).dataset:
                raise InputError(f"--dataset {self.dataset} and --data: give one of them.")
            path, column, season = Path(self.data).expanduser(), self.target, 1
            name, source = path.stem, f"{path.resolve()}"
        else:
            self._check_file_flags()
            path = importlib.resources.files("dlflax.data") / "embedded" / f"{self.dataset}.csv"
            column, season = EMBEDDED[self.dataset]
            name, source = self.dataset, f"{self.dataset}, which comes with dlflax"
        series = read_file(path, column, self._covariates(), log, self.decimal)
        observed = b"" if series.observed.all() else series.observed.tobytes()
        content = series.values.tobytes() + observed + series.covariates.tobytes()
        if not 0 < self.test_split < 1:
            raise InputError(f"--test-split {self.test_split:g} must be between 0 and 1.")
        if self.seasonality < 0:
            raise InputError(
                f"--seasonality {self.seasonality} must be 1 or more, or 0 for the data set's."
            )
        period = self.seasonality or season
        if min(self.window, self.horizon) < 1 or self.window < period:
            raise InputError(
                f"--window {self.window} must be at least the season of {period} steps, and "
                f"--horizon {self.horizon} at least 1."
            )
        if self.future_covariates and self.horizon > self.window:
            raise InputError(
                f"--future-covariates needs a --window of {self.horizon} or more, the --horizon."
            )
        if len(series.values) < self.window:
            raise InputError(
                f"{source} has {len(series.values):,} values, too few for --window {self.window}."
            )
        windows, target, first = self._windows(series)
        end = series.last_window(self.window, self._later()), series.times_after(self.horizon)
        style = {"file": series.style, "period": period, "end": end}
        examples = Examples({"window": windows, "first": first}, target, (), (), style)
        split = ByTime(first, self.horizon, self.window, len(series.values), self.test_split)
        return Dataset(examples, split, name, source, hashlib.sha256(content).hexdigest())

    def _check_file_flags(self) -> None:
        if self._covariates():
            raise InputError(
                "--past-covariates and --future-covariates are for a file: pass --data."
            )
        for flag, value in (("target", self.target), ("decimal", self.decimal)):
            if value not in (None, "auto"):
                raise InputError(f"--{flag} {value} is for a file: pass --data.")
        if self.dataset not in EMBEDDED:
            raise InputError(
                f"--dataset {self.dataset} is unknown here: choose {' or '.join(EMBEDDED)}, or "
                "pass --data FILE.csv."
            )

    def _windows(self, series: ParsedSeries) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Returns (windows, targets, first steps) of all examples with an observed target."""
        first = np.arange(self.window, len(series.values) - self.horizon + 1)
        if not len(first):  # a huge horizon would need too much memory below
            return np.empty((0, 1, 1)), np.empty((0, 1)), first
        values = np.where(series.observed, series.values, np.nan)
        future = values[first[:, None] + np.arange(self.horizon)[None]]
        is_observed = ~np.isnan(future).all(1)
        first, future = first[is_observed], future[is_observed]
        windows = series.windows(first, self.window, self._later())
        return windows, future - series.values[first - 1, None], first

    def _later(self) -> int:
        return self.horizon if self.future_covariates else 0

    def encoder(self, train: Examples, log: Callable[[str], None]) -> SeriesEncoder:
        """Returns the encoder, whose scale is the standard deviation of the training targets."""
        file: Style = train.style["file"]
        window, times = train.style["end"]
        scale = float(np.nanstd(train.target))
        if scale <= _rounding_error(train.columns["window"][:, :, 0].ravel()):
            log(f"the series {file.columns[0]} changes by the same at every step: its scale is 1.")
            scale = 1.0
        mean, deviation = (), ()
        if self._covariates():
            past = train.columns["window"][:, : self.window, 1:]
            rows = np.concatenate([past[0], past[1:, -1]])  # each step once
            std = rows.std(0)
            mean = tuple(rows.mean(0).tolist())
            deviation = tuple(np.where(std > _rounding_error(rows), std, 1.0).tolist())
        return SeriesEncoder(
            Steps((file.columns[0],), scale, train.style["period"]), self.window, self.horizon,
            self.past_covariates, self.future_covariates, mean, deviation, file,
            tuple(map(tuple, window.tolist())), tuple(times),
        )  # fmt: skip

    def _covariates(self) -> tuple[str, ...]:
        return (*self.past_covariates, *self.future_covariates)


def _rounding_error(values):
    """Returns the standard deviation (columns,) of rounding errors in values (n, columns)."""
    return 16 * np.finfo(np.float64).eps * np.abs(values).max(0)


def naive(inputs, horizon: int):
    """Repeats the last value: encoded inputs (n, window, 1) -> (n, horizon), which are 0, as the
    last value has been subtracted."""
    return np.zeros((len(inputs), horizon), np.float32)


def seasonal_naive(inputs, horizon: int, period: int):
    """Repeats the last season: encoded inputs (n, window, 1) -> (n, horizon)."""
    return np.asarray(inputs)[:, -period:, 0][:, np.arange(horizon) % period]
