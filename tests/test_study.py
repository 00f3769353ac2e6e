"""The study of a sweep: what a kill leaves of its journal, unusable storages, PostgreSQL."""

import contextlib
import dataclasses
import json
import math
import os
import pwd
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import textwrap
import time
from pathlib import Path

import optuna
import pytest
import sqlalchemy
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import TrialState

from dlflax.errors import InputError, RunError
from dlflax.tune.study import JOURNAL, Journal, open_study, score, without_password
from dlflax.tune.suggest.samplers import make_sampler
from dlflax.tune.suggest.space import Space

SPACE = {
    "learning_rate": FloatDistribution(1e-5, 1.0, log=True),
    "layers": IntDistribution(1, 64),
    "activation": CategoricalDistribution(["relu", "tanh"]),
}
ENDS = [
    (TrialState.COMPLETE, math.inf, {1: 0.5, 2: math.inf}, {"diverged_at": 2}),
    (TrialState.COMPLETE, -math.inf, {1: -math.inf}, {"seconds": 100.5}),
    (TrialState.COMPLETE, 0.1 + 0.2, {e: 1 / e for e in range(1, 9)}, {"ünïcode": {"a": [None]}}),
    (TrialState.PRUNED, None, {1: 1e300, 2: 3.0, 3: 4.0}, {}),
    (TrialState.FAIL, None, {}, {}),
]


def opened(folder, url=None, direction="minimize", name="s"):
    return open_study(folder, url, name, direction)


def fill(study):
    """Asks for trials, and tells how they ended. Returns them as asked."""
    asked = study.ask(make_sampler("random", Space(SPACE), 0), SPACE, [None] * len(ENDS))
    with study.writing():
        for trial, (state, value, reports, attrs) in zip(asked, ENDS, strict=True):
            study.report(trial.number, reports)
            study.tell(trial.number, state, value, attrs)
    return asked


def check(trials, asked):
    for trial, before, (state, value, reports, attrs) in zip(trials, asked, ENDS, strict=True):
        assert (trial.number, trial.params) == (before.number, before.params)
        assert trial.state == state and trial.intermediate_values == reports
        assert trial.user_attrs == attrs and trial.distributions == SPACE
        assert trial.value == (3.0 if state == TrialState.PRUNED else value)
        assert abs(trial.datetime_complete.timestamp() - time.time()) < 60


def test_what_is_recorded_is_read_back(tmp_path):
    """By a study, and by Optuna itself, whose value of a pruned trial is its last report."""
    with opened(tmp_path) as study:
        asked = fill(study)
        check(study.trials(), asked)
    with opened(tmp_path) as study:
        check(study.trials(), asked)
        assert len(study.finished_trials()) == len(ENDS)
    storage = JournalStorage(JournalFileBackend(str(tmp_path / JOURNAL)))
    trials = optuna.load_study(study_name="s", storage=storage).get_trials()
    assert trials[3].value == 4.0 and score(trials[3], "minimize") == 3.0
    assert score(trials[3], "maximize") == 1e300
    trials[3].value = 3.0
    check(trials, asked)


def test_a_torn_batch_is_cut(tmp_path):
    """At any byte: what was written together counts whole or not at all."""
    path = tmp_path / JOURNAL
    with opened(tmp_path) as study:
        before = path.stat().st_size
        fill(study)
    whole = path.read_bytes()
    last = whole.rindex(b"\n", 0, -1)  # where the last line begins
    for cut in (
        before + 1,
        before + 40,
        (before + len(whole)) // 2,
        last,
        last + 1,
        len(whole) - 1,
    ):
        path.write_bytes(whole[:cut])
        with opened(tmp_path) as study:
            assert len(study.finished_trials()) == 0
            assert {trial.state for trial in study.trials()} <= {TrialState.RUNNING}
            study.settings({"cut": cut})
        with opened(tmp_path) as study:
            assert study.settings({}) == {"cut": cut}
        for line in path.read_bytes().splitlines():
            json.loads(line)


def test_a_line_in_the_middle_that_is_no_json_is_refused(tmp_path):
    with opened(tmp_path) as study:
        fill(study)
    lines = (tmp_path / JOURNAL).read_bytes().splitlines(keepends=True)
    (tmp_path / JOURNAL).write_bytes(b"".join([lines[0], b"{\n", *lines[1:]]))
    assert "study.journal cannot be used: it is damaged" in refuse(tmp_path)


def test_a_stale_lock_does_not_hold_up(tmp_path):
    """The kernel frees it."""
    program = """
        import os, signal, sys
        from pathlib import Path
        from dlflax.files import file_lock
        sys.path.insert(0, "tests")
        from test_study import fill, opened
        with opened(Path(sys.argv[1])) as study:
            fill(study)
            lock = file_lock(Path(sys.argv[1], "study.journal.lock"))
            assert lock.__enter__()
            os.kill(os.getpid(), signal.SIGKILL)
    """
    command = [sys.executable, "-c", textwrap.dedent(program), str(tmp_path)]
    done = subprocess.run(command, check=False, cwd=Path(__file__).parents[1])
    assert done.returncode == -signal.SIGKILL
    clock = time.monotonic()
    with opened(tmp_path) as study:
        assert len(study.finished_trials()) == len(ENDS)
        study.settings({})
    assert time.monotonic() - clock < 5


def test_settings_are_those_of_the_beginning_and_trials_are_enqueued_once(tmp_path):
    first = {"learning_rate": 0.1, "layers": 3, "activation": "tanh"}
    for _ in range(2):
        with opened(tmp_path) as study:
            new = {"seed": 0, "space": [1e-5, None]}
            assert study.settings(new, [first, {"layers": 64}]) == new
    with opened(tmp_path) as study:
        assert study.settings({"seed": 1}) == new
        asked = study.ask(make_sampler("random", Space(SPACE), 0), SPACE, [None] * 3)
    assert asked[0].params == first and asked[1].params["layers"] == 64
    assert asked[1].params["learning_rate"] != 0.1 and asked[2].params["layers"] != 64


def refuse(*args, **options):
    """Returns the one sentence with which a study is refused."""
    with pytest.raises(InputError) as error, opened(*args, **options):
        pass
    text = str(error.value)
    assert "\n" not in text and text.endswith(".")
    return text


def test_one_process_has_the_folder(tmp_path):
    with opened(tmp_path):
        assert "in use by another sweep" in refuse(tmp_path)
    with opened(tmp_path):
        pass
    assert "--objective" in refuse(tmp_path, direction="maximize")
    with opened(tmp_path):  # the refused one has let go of it
        pass


def test_storages_that_cannot_be_used(tmp_path):
    (tmp_path / "text.db").write_text("no database\n" * 1000)
    assert "file is not a database" in refuse(tmp_path, f"sqlite:///{tmp_path / 'text.db'}")
    assert "unable to open" in refuse(tmp_path, f"sqlite:///{tmp_path / 'missing' / 'study.db'}")
    for url in ("mysql://user:secret@host/db", "mongodb://user:secret@host", "study.db"):
        text = refuse(tmp_path, url)
        assert "--storage" in text and "secret" not in text
    with opened(tmp_path, f"sqlite:///{tmp_path / '{braces}.db'}") as study:
        assert study.trials() == []
    (tmp_path / "study.db").touch()
    assert "study.db is of an earlier version" in refuse(tmp_path)


def test_sqlite_holds_the_same_as_the_journal(tmp_path):
    url = f"sqlite:///{tmp_path / 'a ? b.db'}".replace("?", "%3f")
    with opened(tmp_path, url) as study:
        asked = fill(study)
    with opened(tmp_path, url) as study:
        check(study.trials(), asked)


def test_a_password_is_not_shown():
    url = "postgresql+psycopg://me:se@cr:et@host:5432/db?password=other"
    assert without_password(url) == "postgresql+psycopg://me:***@host:5432/db?password=***"


def test_batches_cost_one_write(tmp_path, monkeypatch):
    writes, append = [], Journal.append_logs

    def count(self, logs):
        writes.append(self._batch is None)
        append(self, logs)

    with opened(tmp_path) as study:
        monkeypatch.setattr(Journal, "append_logs", count)
        fill(study)
    assert sum(writes) == 2  # asked, told


# PostgreSQL


@dataclasses.dataclass
class Server:
    """A PostgreSQL of our own, on loopback; as another user, since it refuses to run as root."""

    programs: Path
    folder: Path
    port: int
    user: str | None

    def popen(self, *command, **options):
        if self.user:
            group = pwd.getpwnam(self.user).pw_gid
            options |= {"user": self.user, "group": group, "extra_groups": []}
        return subprocess.Popen(command, cwd=self.folder, stdout=subprocess.DEVNULL, **options)

    def run(self, program, *arguments):
        with self.popen(self.programs / program, "-D", self.folder / "data", *arguments) as running:
            assert running.wait(timeout=60) == 0

    @contextlib.contextmanager
    def guarded(self):
        """Stops it when its input ends: with the tests, however they end."""
        stop = '"$0" stop -m immediate -D "$1"; rm -r "$1"'
        command = ["sh", "-c", f"cat; {stop}", self.programs / "pg_ctl", self.folder / "data"]
        with self.popen(*command, stdin=subprocess.PIPE, start_new_session=True):
            yield

    def start(self):
        options = f"-p {self.port} -k {self.folder} -c listen_addresses=127.0.0.1 -c fsync=off"
        self.run("pg_ctl", "start", "-w", "-l", self.folder / "log", "-o", options)

    def stop(self):
        self.run("pg_ctl", "stop", "-w", "-m", "fast")

    def url(self, database):
        return f"postgresql+psycopg://sweeper:secret@127.0.0.1:{self.port}/{database}"


def programs():
    found = shutil.which("initdb")
    versions = Path("/usr/lib/postgresql").glob("*/bin/initdb")
    newest = sorted(versions, key=lambda path: float(path.parts[-3]))
    return Path(found).parent if found else newest[-1].parent if newest else None


@pytest.fixture(scope="module")
def server():
    pytest.importorskip("psycopg")
    if programs() is None:
        pytest.skip("no PostgreSQL server here (Debian: apt-get install postgresql)")
    names = {user.pw_name for user in pwd.getpwall()}
    user = None if os.geteuid() else "postgres" if "postgres" in names else "nobody"
    with tempfile.TemporaryDirectory(prefix="dlflax_pg_", dir="/tmp") as name:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            server = Server(programs(), Path(name), free.getsockname()[1], user)
        if user:
            shutil.chown(name, user)
        server.run("initdb", "-A", "trust", "-U", "sweeper", "--no-sync")
        with server.guarded():
            server.start()
            yield server


@pytest.fixture
def url(server, request):
    """The address of a new, empty database."""
    name = re.sub(r"\W", "_", request.node.name)
    engine = sqlalchemy.create_engine(server.url("postgres"), isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        connection.exec_driver_sql(f"CREATE DATABASE {name}")
    engine.dispose()
    return server.url(name)


@pytest.mark.slow
def test_a_study_in_postgresql(server, url, tmp_path):
    with opened(tmp_path, url) as study:
        assert study.settings({"seed": 0}) == {"seed": 0}
        asked = fill(study)
    with opened(tmp_path, url) as study:
        check(study.trials(), asked)
        assert study.settings({}) == {"seed": 0}
        asked = study.ask(make_sampler("random", Space(SPACE), 0), SPACE, [None])
        server.stop()
        try:
            with pytest.raises(RunError, match="the 5 recorded trials are safe"), study.writing():
                study.report(5, {1: 0.5})
        finally:
            server.start()
    with opened(tmp_path, url) as study:
        assert len(study.finished_trials()) == len(ENDS)
        assert study.trials()[5].params == asked[0].params
    server.stop()
    try:
        assert "secret" not in refuse(tmp_path, url)
    finally:
        server.start()
