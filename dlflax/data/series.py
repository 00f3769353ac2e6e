"""Time series: windows of the past, and the values that follow them."""

import dataclasses
import hashlib
import importlib.resources
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import numpy as np

from dlflax.data.dataset import Dataset, Source
from dlflax.data.encoder import Examples
from dlflax.data.series_encoder import SeriesEncoder
from dlflax.data.series_file import Found, Style, read_file
from dlflax.data.splits import ByTime
from dlflax.data.target import Steps
from dlflax.errors import InputError

# in data/embedded, with their sources: (column, steps a season)
EMBEDDED = {"co2": ("co2", 52), "sunspots": ("SUNACTIVITY", 11)}


@dataclasses.dataclass(frozen=True)
class Series(Source):
    """One column of numbers, in steps of equal length, and others beside it, cut into windows."""

    dataset: str = dataclasses.field(default="co2", metadata={"resume": "free"})
    """co2 (Mauna Loa, weekly, 1958 to 2001) or sunspots (yearly, 1700 to 2008)."""
    data_dir: Path | None = dataclasses.field(default=None, metadata={"resume": "free"})
    """A CSV file with a header instead."""
    decimal: Literal["auto", ".", ","] = "auto"
    """The decimal mark of its numbers; auto: as the file shows, column by column."""
    column: str | None = None
    """The column of it that is forecast (default: the last one with numbers)."""
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
        """Returns an example for each step at which a forecast may start. "window": float64
        (n, window + later, columns), the series and then the covariates, later steps where some are
        known beforehand; "first": int (n,), that step; the target: the `horizon` values from it on,
        less the window's last, NaN where nothing was observed. A missing value in a window is the
        value before it. Raises InputError when the file is not such a series or too short."""
        if self.data_dir is not None:
            if self.dataset != type(self).dataset:
                raise InputError(f"--dataset {self.dataset} and --data-dir: give one of them.")
            path, column = Path(self.data_dir).expanduser(), self.column
            name, source = path.stem, f"{path.resolve()}"
        else:
            self._check_embedded()
            path = importlib.resources.files("dlflax.data") / "embedded" / f"{self.dataset}.csv"
            column = EMBEDDED[self.dataset][0]
            name, source = self.dataset, f"{self.dataset}, which comes with dlflax"
        found = read_file(path, column, self._covariates(), log, self.decimal)
        observed = b"" if found.observed.all() else found.observed.tobytes()
        content = found.values.tobytes() + observed + found.covariates.tobytes()
        if not 0 < self.tail < 1:
            raise InputError(f"--tail {self.tail:g} must be between 0 and 1.")
        period = self._period()
        if min(self.window, self.horizon) < 1 or self.window < period:
            raise InputError(
                f"--window {self.window} must be at least the season of {period} steps, and "
                f"--horizon {self.horizon} at least 1."
            )
        if self.future_covariates and self.horizon > self.window:
            raise InputError(
                f"--future-covariates needs a --window of {self.horizon} or more, the --horizon."
            )
        windows, target, first = self._windows(found)
        own = found.last_window(self.window, self._later()), found.times_after(self.horizon)
        style = {"file": found.style, "period": period, "own": own}
        examples = Examples({"window": windows, "first": first}, target, (), (), style)
        split = ByTime(first, self.horizon, self.window, len(found.values), self.tail)
        return Dataset(examples, split, name, source, hashlib.sha256(content).hexdigest())

    def _check_embedded(self) -> None:
        if self._covariates():
            flags = "--past-covariates and --future-covariates"
            raise InputError(f"{flags} are for a file: pass --data-dir.")
        for flag, value in (("column", self.column), ("decimal", self.decimal)):
            if value not in (None, "auto"):
                raise InputError(f"--{flag} {value} is for a file: pass --data-dir.")
        if self.dataset not in EMBEDDED:
            raise InputError(
                f"--dataset {self.dataset} is unknown here: choose {' or '.join(EMBEDDED)}, or "
                "pass --data-dir FILE.csv."
            )

    def _windows(self, found: Found) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Returns (windows, targets, first steps) of all examples with an observed target."""
        first = np.arange(self.window, len(found.values) - self.horizon + 1)
        if not len(first):  # before anything as long as an absurd horizon is made
            return np.empty((0, 1, 1)), np.empty((0, 1)), first
        truth = np.where(found.observed, found.values, np.nan)
        future = truth[first[:, None] + np.arange(self.horizon)[None]]
        known = ~np.isnan(future).all(1)
        first, future = first[known], future[known]
        windows = found.windows(first, self.window, self._later())
        return windows, future - found.values[first - 1, None], first

    def _later(self) -> int:
        """Returns the steps beyond a window of which covariates are known."""
        return self.horizon if self.future_covariates else 0

    def encoder(self, train: Examples, log: Callable[[str], None]) -> SeriesEncoder:
        """Returns the encoder of these windows: the scale is the deviation of their targets."""
        file: Style = train.style["file"]
        window, times = train.style["own"]
        # the noise of rounding is no scale
        scale = float(np.nanstd(train.target))
        if scale <= _rounding(train.columns["window"][:, :, 0].ravel()):
            log(f"the series {file.columns[0]} changes by the same at every step: its scale is 1.")
            scale = 1.0
        mean, deviation = (), ()
        if self._covariates():
            seen = train.columns["window"][:, : self.window, 1:]
            rows = np.concatenate([seen[0], seen[1:, -1]])  # a step once
            spread = rows.std(0)
            mean = tuple(rows.mean(0).tolist())
            deviation = tuple(np.where(spread > _rounding(rows), spread, 1.0).tolist())
        return SeriesEncoder(
            Steps((file.columns[0],), scale, train.style["period"]), self.window, self.horizon,
            self.past_covariates, self.future_covariates, mean, deviation, file,
            tuple(map(tuple, window.tolist())), tuple(times),
        )  # fmt: skip

    def _covariates(self) -> tuple[str, ...]:
        return (*self.past_covariates, *self.future_covariates)

    def _period(self) -> int:
        if self.period < 0:
            raise InputError(f"--period {self.period} must be 1 or more, or 0 for the data set's.")
        if self.period or self.data_dir is not None:
            return self.period or 1
        return EMBEDDED[self.dataset][1]


def _rounding(values):
    """Returns the deviation (columns,) that rounding alone may give values (n, columns)."""
    return 16 * np.finfo(np.float64).eps * np.abs(values).max(0)


def naive(inputs, horizon: int):
    """Repeats the last value over the horizon. inputs (n, window, 1) as `Series` encodes
    them -> (n, horizon), all 0: the last value has been subtracted."""
    return np.zeros((len(inputs), horizon), np.float32)


def seasonal_naive(inputs, horizon: int, period: int):
    """Repeats the last season over the horizon. inputs as for `naive` -> (n, horizon)."""
    return np.asarray(inputs)[:, -period:, 0][:, np.arange(horizon) % period]
