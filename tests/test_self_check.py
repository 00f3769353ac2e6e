"""The programs that check the compiler, and what is said when one computes wrong."""

import pytest

from dlflax import self_check
from dlflax.errors import RunError


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "dlflax" / "self_check"


@pytest.mark.parametrize("name", self_check.PROGRAMS)
def test_this_installation_computes_right(name):
    assert self_check.PROGRAMS[name]()


def test_it_is_checked_once(cache, monkeypatch):
    calls = []
    programs = {"a sum": lambda: calls.append(0) or True}
    monkeypatch.setattr(self_check, "PROGRAMS", programs)
    for _ in range(2):
        self_check.check()
    assert len(calls) == 1
    (passed,) = cache.iterdir()
    passed.write_text("{")
    self_check.check()
    assert len(calls) == 2


def test_what_is_wrong_is_named_with_the_version_to_install(cache, monkeypatch):
    programs = {"a sum": lambda: False, "a scan": lambda: True, "a product": lambda: False}
    monkeypatch.setattr(self_check, "PROGRAMS", programs)
    for _ in range(2):  # again each time
        with pytest.raises(RunError, match="computes a sum and a product wrong .*pip install 'jax"):
            self_check.check()
    assert not cache.exists()
