"""What leaks is found, and what is merely informative is not."""

import numpy as np
import pytest
from sklearn import datasets

from dlflax.data.table import leaks
from dlflax.data.table.leaks import find_leaks, find_row_counters

RNG = np.random.default_rng(0)


def leaks_of(columns, target, held=None, groups=None, classes=("a", "b")):
    held = np.arange(len(target)) % 5 == 0 if held is None else held
    return find_leaks(columns, target, held, groups, classes)


def noise(n=300):
    return {"x": RNG.normal(size=n), "y": RNG.integers(0, 4, n)}


SORTED = np.repeat([0, 1], 150)
MIXED = RNG.permutation(SORTED)


def test_a_counter_of_the_rows():
    n = 300
    columns = {
        **noise(n), "record": np.arange(n) + 1.0, "index": np.arange(float(n)),
        "year": np.arange(n) + 1947.0, "back": np.arange(n)[::-1] + 1.0, "codes": np.arange(n),
        "hole": np.where(np.arange(n) == 7, np.nan, np.arange(n)),
    }  # fmt: skip
    said = find_row_counters(columns)
    assert list(said) == ["record", "index"]
    assert said["record"] == (
        "record counts the rows of the file: dropped, as a new row has no such number."
    )
    assert not find_row_counters({"record": columns["record"]})  # nothing would remain
    assert not find_row_counters({"x": RNG.normal(size=3), "record": np.arange(3.0)})


@pytest.mark.parametrize(
    "values",
    [
        np.arange(300) + 1001.0,
        -np.arange(300.0),
        np.where(np.arange(300) % 40 == 3, np.nan, np.arange(300)),
        np.cumsum(RNG.integers(1, 1000, 300)).astype(float) + 1.6e9,  # times
    ],
)
def test_an_order_that_tells_the_class(values):
    (said,) = leaks_of({**noise(), "id": values}, SORTED)
    assert said.startswith("id is in the order of the rows") and "--drop-columns id" in said
    assert not leaks_of({**noise(), "id": values}, MIXED)
    (said,) = leaks_of({**noise(), "id": values}, np.arange(300) ** 1.5, classes=())
    assert "sorted by its target" in said and "--drop-columns id" in said
    assert not leaks_of({**noise(), "id": values}, RNG.normal(size=300), classes=())


def test_blocks_of_a_class_are_an_order_too():
    blocks = np.repeat([0, 1, 0, 1], 75)
    assert "--drop-columns id" in leaks_of({**noise(), "id": np.arange(300) + 5.0}, blocks)[0]


@pytest.mark.parametrize(
    ("values", "target", "classes"),
    [
        (MIXED, MIXED, "ab"),
        (MIXED * 2.0 + 1, MIXED, "ab"),
        (np.where(np.arange(300) == 9, 1 - MIXED, MIXED), MIXED, "ab"),  # one is odd
        (MIXED * 3 + RNG.integers(0, 3, 300), MIXED, "ab"),  # finer levels
        (MIXED + RNG.uniform(0, 0.9, 300), MIXED, "ab"),  # a score, before it was cut
        (np.where(np.arange(300) % 20, MIXED, np.nan), MIXED, "ab"),
        (T := RNG.normal(size=300), T, ()),
        (T * 1.8 + 32, T, ()),
        (np.exp(-T), T, ()),
        (T.round(2), T, ()),
        (L := RNG.integers(0, 25, 300), (L * 7 % 25).astype(float), ()),
    ],
)
def test_a_column_that_alone_decides(values, target, classes):
    (said,) = leaks_of({**noise(), "copy": values}, target, classes=tuple(classes))
    assert said.startswith("copy alone decides the target") and "--drop-columns copy" in said
    assert not leaks_of({"copy": values}, target, classes=tuple(classes))  # all that there is


@pytest.mark.parametrize(
    "name", ["iris", "wine", "breast_cancer", "diabetes", "digits", "linnerud"]
)
def test_informative_columns_are_no_leak(name):
    data = getattr(datasets, f"load_{name}")()
    target = data.target[:, 0] if data.target.ndim > 1 else data.target
    classes = tuple(map(str, getattr(data, "target_names", ()))) if target.dtype.kind == "i" else ()
    columns = {str(i): column.astype(float) for i, column in enumerate(data.data.T)}
    said = [line for line in leaks_of(columns, target, classes=classes) if "test rows" not in line]
    assert not said


def test_a_rare_class_is_decided_by_no_constant():
    target = (np.arange(300) % 60 == 0).astype(int)
    assert not leaks_of({**noise(), "c": np.zeros(300)}, target)


def test_a_class_of_one_group():
    groups = np.repeat(np.array(["p1", "p2", "p3", "p4"]), 75)
    target = np.where(groups == "p3", 2, np.arange(300) % 2)
    for held, part in ((groups == "p1", "test"), (groups >= "p3", "train")):
        (said,) = leaks_of(noise(), target, held, groups, ("a", "b", "c"))
        assert said == (
            f"the class c is in 1 group (p3): 0 of its 75 rows are to {part} on; give --group "
            "another column, or none."
        )
    assert not leaks_of(noise(), np.arange(300) % 2, held, groups)
    many = np.arange(300) // 30
    said = leaks_of(noise(), many, many == 0, many.astype(str), tuple("abcdefghij"))
    assert len(said) == 4 and "7 more classes" in said[-1]


def test_copies_across_the_split():
    columns = {"x": RNG.normal(size=300), "y": RNG.integers(0, 4, 300), "z": RNG.normal(size=300)}
    columns["z"][[0, 1, 10]] = np.nan, np.nan, -0.0
    for test, train in ((0, 1), (5, 6), (10, 11)):
        for values in columns.values():
            values[train] = values[test]
    columns["z"][11] = 0.0
    target = MIXED.copy()
    target[[0, 5, 10]] = target[[1, 6, 11]]
    target[5] = 1 - target[6]
    (said,) = leaks_of(columns, target)
    assert said.startswith("3 of 60 test rows have the inputs of a training row, 1 of them with")
    rows = list(zip(*(np.where(np.isnan(c), 99, c) for c in columns.values()), strict=True))
    held = np.arange(300) % 5 == 0
    known = {row for row, tested in zip(rows, held, strict=True) if not tested}
    assert sum(row in known for row, tested in zip(rows, held, strict=True) if tested) == 3


def test_small_whole_numbers_are_not_copies():
    """Their low bits are all 0, which a weak hash loses."""
    grid = np.stack(np.meshgrid(*[np.arange(20.0)] * 3), -1).reshape(-1, 3)
    columns = {f"x{i}": column for i, column in enumerate(RNG.permutation(grid).T)}
    assert not leaks_of(columns, RNG.integers(0, 2, len(grid)))


def test_rows_of_few_levels_are_no_copies():
    levels = {name: RNG.integers(0, 3, 300) for name in "xyz"}
    assert not leaks_of(levels, MIXED)
    rows = RNG.integers(0, 100, 300)  # a hundred rows, three times each
    assert "test rows have" in leaks_of({n: RNG.normal(size=300)[rows] for n in "xyz"}, MIXED)[0]


def test_work_has_bounds(monkeypatch):
    monkeypatch.setattr(leaks, "MAX_COLUMNS", 3)
    monkeypatch.setattr(leaks, "MAX_ROWS", 100)
    columns = {f"x{i}": RNG.normal(size=300) for i in range(5)} | {"copy": MIXED}
    assert leaks_of(columns, MIXED) == [
        "leaks were looked for in 3 of 6 columns and 100 of 300 rows."
    ]
    assert "copy alone" in leaks_of(dict(reversed(columns.items())), MIXED)[0]
    monkeypatch.setattr(leaks, "MAX_CELLS", 1799)
    assert leaks_of(columns, MIXED)[1:] == [
        "copies of rows were not looked for: the table has 1,800 cells."
    ]
