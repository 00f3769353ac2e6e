"""Times of rows: their formats, against the standard library."""

import datetime
import json
import math

import numpy as np
import pyarrow
import pytest

from dlflax.data import Table
from dlflax.data.table.time_formats import DATES, DECIMAL_YEARS, EPOCHS, TimeFormat, infer_times
from dlflax.errors import InputError

UTC = datetime.UTC
HOURS = [datetime.datetime(2023, 12, 30, 22, tzinfo=UTC) + datetime.timedelta(hours=h)
         for h in range(60)]  # fmt: skip
DAYS = [datetime.datetime(2023, 12, 20, tzinfo=UTC) + datetime.timedelta(days=d)
        for d in range(40)]  # fmt: skip
MONTHS = [datetime.datetime(2020 + m // 12, m % 12 + 1, 1, tzinfo=UTC) for m in range(30)]


def quarter(time):
    return (time.month + 2) // 3


WRITTEN = [
    *((DAYS, f) for f in (
        "%Y-%m-%d", "%Y/%m/%d", "%Y.%m.%d", "%d.%m.%Y", "%d.%m.%y", "%d-%m-%Y", "%d %b %Y",
        "%d-%b-%y", "%d%b%Y", "%B %d, %Y", "%b %d %Y", "%Y %b %d", "%A, %d %B %Y", "%G-W%V-%u",
        "%GW%V%u", "%d/%m/%Y", "%m/%d/%Y", "%m-%d-%Y", "%m/%d/%y", "%d/%m/%y",
    )),
    *((HOURS, f) for f in (
        "%Y-%m-%dT%H:%M:%SZ", "%Y-%m-%d %H:%M", "%Y-%m-%dT%H", "%Y%m%dT%H%M%S", "%d.%m.%Y %H:%M",
        "%m/%d/%Y %I:%M %p", "%m/%d/%Y, %I:%M:%S %p", "%d %b %Y %I:%M%p",
        "%a, %d %b %Y %H:%M:%S GMT", "%d%b%Y:%H:%M:%S", "%Y-%m-%d %H:%M:%S.000", "%Y/%m/%d %H:%M",
    )),
    *((MONTHS, f) for f in (
        "%Y-%m", "%Y/%m", "%m/%Y", "%b %Y", "%B %Y", "%b-%y", "%Y %b", "%YM%m", "%b'%y",
    )),
]  # fmt: skip


@pytest.mark.parametrize("times, written", WRITTEN)
def test_formats_against_strftime(times, written):
    cells = [time.strftime(written) for time in times]
    form = infer_times([*cells, "", "NA"])
    seconds, wrong = form.parse([*cells, "n/a"])
    assert seconds[:-1].tolist() == [time.timestamp() for time in times]
    assert (
        math.isnan(seconds[-1])
        and not wrong.any()
        and form.assumed == ("24/12/31" if written == "%d/%m/%y" else "")
    )
    assert form.parse(["", cells[0], "x"])[1].tolist() == [False, False, True]
    assert np.array_equal(form.parse(pyarrow.chunked_array([cells]))[0], seconds[:-1])
    again = TimeFormat(**{**json.loads(json.dumps(vars(form))), "missing": tuple(form.missing)})
    assert again == form and infer_times([form.describe()], False) is not None


def test_offsets_are_applied():
    form = infer_times(["2024-01-30T03:00:00-05:00", "2024-07-30T03:00:00+0530"])
    moments = ["2024-01-30T08:00Z", "2024-07-29T21:30Z"]
    seconds = form.parse(["2024-01-30T03:00:00-05:00", "2024-07-30T03:00:00+0530"])[0]
    assert seconds.tolist() == [datetime.datetime.fromisoformat(m).timestamp() for m in moments]
    assert form.parse(["2024-01-30T03:00:00"])[1].all()
    # a clock without an offset is not one of another place
    assert infer_times(["2024-01-30T03:00:00-05:00", "2024-01-30T03:00:00"]) is None
    plain = infer_times(["2024-01-30 03:00:00"])
    assert plain.parse(["2024-01-30T03:00:00Z"])[0] == plain.parse(["2024-01-30 03:00:00"])[0]
    assert plain.parse(["2024-01-30T03:00:00+02:00"])[1].all()


@pytest.mark.parametrize("written", [
    lambda t: f"{t.year}Q{quarter(t)}", lambda t: f"Q{quarter(t)} {t.year}",
    lambda t: f"{t.year}-Q{quarter(t)}", lambda t: f"{quarter(t)}q{t.year % 100}",
    lambda t: f"Q{quarter(t)}-{t.year % 100}", lambda t: f"{t.year} {quarter(t)}",
])  # fmt: skip
def test_quarters(written):
    times = MONTHS[::3]
    cells = [written(t) for t in times]
    assert infer_times(cells, True).parse(cells)[0].tolist() == [t.timestamp() for t in times]


def decimal(t, days):
    """The time as a year with a fraction, of that many days before it."""
    return t.year + days / (366 if t.year % 4 == 0 else 365)


@pytest.mark.parametrize("times, written", [
    (MONTHS[::12], lambda t: str(t.year)), (DAYS, lambda t: t.strftime("%Y%m%d")),
    (MONTHS, lambda t: t.strftime("%Y%m")), (HOURS, lambda t: t.strftime("%Y%m%d%H%M%S")),
    (HOURS, lambda t: f"{t.timestamp():.0f}"), (HOURS, lambda t: f"{t.timestamp() * 1e3:.0f}"),
    (HOURS, lambda t: f"{t.timestamp():.1f}"),
    (MONTHS, lambda t: f"{t.year + (t.month - 1) / 12:.3f}"),
    (MONTHS, lambda t: f"{t.year + (t.month - 1) / 12:.2f}"),
    (DAYS, lambda t: f"{decimal(t, t.timetuple().tm_yday - 0.5):.4f}"),
])  # fmt: skip
def test_numbers_are_times_of_a_series_alone(times, written):
    cells = [written(t) for t in times]
    assert infer_times(cells) is None
    form = infer_times(cells, regular=True)
    assert form.parse(cells)[0].tolist() == [t.timestamp() for t in times]
    assert infer_times(cells[::-1], True) == form
    values = np.random.default_rng(0).normal(2000, 300, 50).round(3)
    assert infer_times([str(v) for v in values], True) is None
    assert infer_times([f"{v:.0f}" for v in values], True) is None


def test_middles_of_months_in_decimal_years():
    """As at Mauna Loa: the middle of March 1958 is 1958.2027."""
    cells = ["1958.2027", "1958.2877", "1958.3699", "1958.4548", "1958.5370", "1958.6219"]
    seconds = infer_times(cells, True).parse(cells)[0]
    months = seconds.astype("M8[s]").astype("M8[M]").astype(str).tolist()
    assert months == [f"1958-0{m}" for m in range(3, 9)]


def test_the_order_of_day_and_month_is_said_if_it_is_assumed(tmp_path):
    """Every day of these dates may be a month: read otherwise, each is another date."""
    path = tmp_path / "visits.csv"
    for dates, is_said in ((["01/02/2024", "03/04/2024"], True), (["2024-01-02"], False)):
        rows = "".join(f"{dates[i % len(dates)]},{i}\n" for i in range(20))
        path.write_text("day,y\n" + rows, encoding="utf-8")
        lines = []
        Table(data=path).load(lines.append)
        said = [line for line in lines if "31/12/2024" in line or "12/31/2024" in line]
        assert bool(said) == is_said and all(line.startswith("day: ") for line in said)


def test_what_may_be_two_dates():
    assert infer_times(["01/02/2024"]).assumed == "31/12/2024"
    assert infer_times(["01.02.2024"]).assumed == ""
    both = infer_times(["01/02/2024", "13/02/2024"])
    assert both.describe() == "31/12/2024" and both.parse(["12/31/2024"])[1].all()
    with pytest.raises(InputError, match="12/31/2024 or as 31/12/2024"):
        # the first days of twelve months, or twelve of January
        infer_times([f"01/{d.month:02}/2024" for d in MONTHS[:12]], True)
    months = [t.strftime("%d/%m/%Y") for t in MONTHS]
    assert infer_times(months, True).date == "31/12/2024" and infer_times(months).assumed


@pytest.mark.parametrize("cells", [
    [], ["", "NA"], ["may"], ["12.5", "3"], ["1", "2", "3"], ["2024-02-30"], ["2024-13-01"],
    ["2024-01-01 25:00"], ["2024-01-01 13:00 PM"], ["2024-001"], ["a 2024"], ["31 Foo 2024"],
    ["2023-W53"], ["2024-01-01 10:00 AM", "2024-01-01 10:00"], ["1.2.3"], ["555-1234"], ["May 12"],
    ["2024-01-01", "2024/01/02"], ["20240101"], ["1700000000"], ["25:30"], ["1e5"], ["٢٠٢٤-٠١-٠١"],
])  # fmt: skip
def test_other_cells_are_no_times(cells):
    assert infer_times(cells) is None


def test_every_format_reads_its_own_example():
    for date in (*DATES, *EPOCHS, *DECIMAL_YEARS):
        assert not TimeFormat(date).parse([date])[1].any(), date
    with pytest.raises(InputError, match="'nonsense' is not a format of times"):
        TimeFormat("nonsense")
