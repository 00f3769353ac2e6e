"""Season, horizon and window of a series, by its calendar and its number of steps."""

from typing import NamedTuple

from dlflax.data.table.calendars import COUNT, DAY, Calendar, step_months
from dlflax.errors import InputError

MONTHS = {1: (12, 12, 24), 3: (4, 4, 8), 12: (1, 6, 12)}
SECONDS = {DAY: (7, 14, 28), 3600.0: (24, 24, 72), 7 * DAY: (52, 52, 104)}
MAX_SEASON = 288  # steps, for which a day of shorter steps is no season
UNKNOWN = 1, 12, 24  # without a calendar


class Lengths(NamedTuple):
    """Numbers of steps."""

    seasonality: int
    horizon: int
    window: int


def calendar_lengths(calendar: Calendar | None) -> Lengths:
    """Returns the usual lengths of a calendar: 12, 12 and 24 of months. A season is a year, a week
    of days, a day of hours and shorter steps, or an hour or a minute of still shorter ones."""
    if calendar is None or calendar.zone == COUNT:
        return Lengths(*UNKNOWN)
    if calendar.step == "weekday":
        return Lengths(5, 10, 20)
    if months := step_months(calendar.step):
        season = max(1, round(12 / months))
        return Lengths(*MONTHS.get(months, (season, season, 2 * season)))
    step = float(calendar.step)
    longer = [cycle / step for cycle in (DAY, 3600.0, 60.0) if step < cycle <= MAX_SEASON * step]
    season = max(1, round(longer[0] if longer else 365.25 * DAY / step if step >= DAY else 1))
    return Lengths(*SECONDS.get(step, (season, max(season, 6), max(2 * season, 12))))


def choose_lengths(given: Lengths, usual: Lengths, steps: int, share: float) -> Lengths:
    """Returns the given lengths, and the usual ones for those that are 0, shrunk to the series.

    share: of the steps, at the end, for testing. Raises InputError for lengths that cannot be."""
    if given.seasonality < 0:
        raise InputError(
            f"--seasonality {given.seasonality} must be 1 or more, or 0 for the calendar's."
        )
    if given.horizon < 0 or given.window < 0:
        raise InputError(
            f"--window {given.window} and --horizon {given.horizon} must be 1 or more, or 0 for "
            "the calendar's."
        )
    test = round(share * steps)
    train = steps - test
    horizon = given.horizon or max(1, min(usual.horizon, test, train // 4))
    window = given.window or max(usual.window, given.seasonality)
    if not given.window:
        window = max(given.seasonality, 1, min(window, (train - horizon) // 2))
    season = given.seasonality or usual.seasonality
    if not given.seasonality and (window < season or train < 2 * season):
        season = 1
    if window < season:
        raise InputError(f"--window {window} must be at least the season of {season} steps.")
    return Lengths(season, horizon, window)
