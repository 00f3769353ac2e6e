"""Time series: windows of the past, and the next values."""

import dataclasses
import hashlib
import importlib.resources
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, ClassVar, Literal

import numpy as np
import tyro

from dlflax.data.dataset import Dataset, Source
from dlflax.data.encoder import Examples
from dlflax.data.series.encoder import SeriesEncoder
from dlflax.data.series.lengths import Lengths, calendar_lengths, choose_lengths
from dlflax.data.series.series_file import ParsedSeries, Style, read_file
from dlflax.data.splits import ByTime
from dlflax.data.target import Steps
from dlflax.errors import InputError

# in data/embedded, with their sources: (column, usual lengths)
EMBEDDED = {
    "co2": ("co2", Lengths(52, 52, 104)),
    "sunspots": ("SUNACTIVITY", Lengths(11, 11, 22)),  # the solar cycle
}

MIN_HISTORY, SEASONS = 200, 10  # steps and seasons of a history; a shorter series is padded


@dataclasses.dataclass(frozen=True)
class Series(Source):
    """Windows of a series, a column of values at equal time steps, and of its covariates."""

    has_trial_bags: ClassVar = False
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
    window: int = 0
    """Steps of the past in an input (0: by the calendar, two years of months)."""
    horizon: int = 0
    """Steps of the future to forecast (0: by the calendar, a year of months)."""
    seasonality: int = 0
    """Steps per season (0: by the calendar, 12 of months, 7 of days)."""
    test_split: float = 0.2
    """Share of the series, at its end, in the test split."""
    has_history: Annotated[bool, tyro.conf.Suppress] = False
    """True: inputs begin before the window, as exponential smoothing reads them."""

    def for_blend(self) -> "Series":
        return dataclasses.replace(self, has_history=True)

    def load(self, log: Callable[[str], None] = print) -> Dataset:
        """Returns an example for each step at which a forecast may start.

        "first": int (n,), that step; "window": float64 (n, window + later, columns), the series and
        the covariates before it, and `later` steps of future covariates; the target: the next
        `horizon` values minus the window's last, NaN where nothing was observed. Missing values of
        a window are forward-filled. Raises InputError for a file that is no series or too short."""
        if self.data is not None:
            if self.dataset != type(self).dataset:
                raise InputError(f"--dataset {self.dataset} and --data: give one of them.")
            path, column, usual = Path(self.data).expanduser(), self.target, None
            name, source = path.stem, f"{path.resolve()}"
        else:
            self._check_file_flags()
            path = importlib.resources.files("dlflax.data") / "embedded" / f"{self.dataset}.csv"
            column, usual = EMBEDDED[self.dataset]
            name, source = self.dataset, f"{self.dataset}, which comes with dlflax"
        series = read_file(path, column, self._covariates(), log, self.decimal)
        observed = b"" if series.observed.all() else series.observed.tobytes()
        content = series.values.tobytes() + observed + series.covariates.tobytes()
        lengths = self._lengths(series, usual or calendar_lengths(series.calendar), log)
        season, horizon, window = lengths
        later = horizon if self.future_covariates else 0
        if later > window:
            raise InputError(
                f"--future-covariates needs a --window of {horizon} or more, the --horizon."
            )
        if len(series.values) < window:
            raise InputError(
                f"{source} has {len(series.values):,} values, too few for --window {window}."
            )
        history = max(window, SEASONS * season, MIN_HISTORY) if self.has_history else 0
        windows, target, first = _windows(series, lengths, history, later)
        end = series.last_window(history or window, later), series.times_after(horizon)
        style = {"file": series.style, "lengths": lengths, "history": history, "end": end}
        examples = Examples({"window": windows, "first": first}, target, (), (), style)
        split = ByTime(first, horizon, window, len(series.values), self.test_split)
        return Dataset(examples, split, name, source, hashlib.sha256(content).hexdigest())

    def _lengths(self, series: ParsedSeries, usual: Lengths, log) -> Lengths:
        """Returns the lengths of the flags, or else by the calendar, which is logged."""
        if not 0 < self.test_split < 1:
            raise InputError(f"--test-split {self.test_split:g} must be between 0 and 1.")
        given = Lengths(self.seasonality, self.horizon, self.window)
        lengths = choose_lengths(given, usual, len(series.values), self.test_split)
        flags = [f"--{name} {value}" for name, value in lengths._asdict().items()
                 if not getattr(self, name)]  # fmt: skip
        if flags:
            shrunk = [f"a {name} of {u}" for (name, u), value, flag in
                      zip(usual._asdict().items(), lengths, given, strict=True)
                      if not flag and value < u]  # fmt: skip
            reason = f", as {len(series.values):,} values are too few for {' and '.join(shrunk)}"
            log(f"steps: {', '.join(flags)}{reason if shrunk else ''}.")
        return lengths

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

    def encoder(self, train: Examples, log: Callable[[str], None]) -> SeriesEncoder:
        """Returns the encoder, whose scale is the standard deviation of the training targets."""
        file: Style = train.style["file"]
        (season, horizon, length), (window, times) = train.style["lengths"], train.style["end"]
        history = train.style["history"]
        if history:  # saved without the padding, and only with all covariates of the future
            is_whole = len(window) == len(train.columns["window"][0])
            window = window[~np.isnan(window[:, 0])] if is_whole else window[:0]
        scale = float(np.nanstd(train.target))
        if scale <= _rounding_error(np.nan_to_num(train.columns["window"][:, :, 0]).ravel()):
            log(f"the series {file.columns[0]} changes by the same at every step: its scale is 1.")
            scale = 1.0
        past = train.columns["window"][:, : history or length, 0]
        is_positive = bool((np.nan_to_num(past) >= 0).all())
        mean, deviation = (), ()
        if self._covariates():
            past = train.columns["window"][:, : history or length, 1:][:, -length:]
            rows = np.concatenate([past[0], past[1:, -1]])  # each step once
            std = rows.std(0)
            mean = tuple(rows.mean(0).tolist())
            deviation = tuple(np.where(std > _rounding_error(rows), std, 1.0).tolist())
        return SeriesEncoder(
            Steps((file.columns[0],), scale, season, is_positive), length, horizon,
            self.past_covariates, self.future_covariates, mean, deviation, file,
            tuple(map(tuple, window.tolist())), tuple(times), history,
        )  # fmt: skip

    def _covariates(self) -> tuple[str, ...]:
        return (*self.past_covariates, *self.future_covariates)


def _windows(
    series: ParsedSeries, lengths: Lengths, history: int, later: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:  # fmt: skip
    """Returns (windows, targets, first steps) of all examples with an observed target."""
    _, horizon, window = lengths
    first = np.arange(window, len(series.values) - horizon + 1)
    if not len(first):  # a huge horizon would need too much memory below
        return np.empty((0, 1, 1)), np.empty((0, 1)), first
    values = np.where(series.observed, series.values, np.nan)
    future = values[first[:, None] + np.arange(horizon)[None]]
    is_observed = ~np.isnan(future).all(1)
    first, future = first[is_observed], future[is_observed]
    windows = series.windows(first, history or window, later)
    return windows, future - series.values[first - 1, None], first


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
