"""Sweeps that are killed, disks that fill up, databases that go away: every trial counts once."""

import contextlib
import dataclasses
import math
import os
import pwd
import re
import resource
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import tempfile
import textwrap
import threading
import time
from collections import Counter
from pathlib import Path

import optuna
import pytest
import sqlalchemy
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.storages import RDBStorage
from optuna.trial import TrialState

from dlflax.errors import InputError, RunError
from dlflax.tune import postgres
from dlflax.tune.broadcast import Broadcast
from dlflax.tune.rows import insert
from dlflax.tune.stores import open_study
from dlflax.tune.trial import Outcome, Trial, frozen

SPACE = {
    "learning_rate": FloatDistribution(1e-5, 1.0, log=True),
    "layers": IntDistribution(1, 64),
    "activation": CategoricalDistribution(["relu", "tanh"]),
}


def suggest(history, indices):
    """Depends on all that it may depend on; numbers that no rounding survives."""
    seen = sum(trial.value for trial in history if trial.state == TrialState.COMPLETE)
    rates = [0.1 / (3 + index + seen % 1) for index in indices]
    return [
        Trial(
            index,
            {"learning_rate": rate, "layers": index + 1, "activation": "tanh"},
            {"sampler:state": {"history": len(history)}},
        )
        for index, rate in zip(indices, rates, strict=True)
    ]


def train(batch):
    return [Outcome(t.params["learning_rate"] / 3, {1: 0.5, 2: 1 / 3}) for t in batch]


def sweep(store, count, total):
    while batch := store.take(suggest, count, total):
        store.record(batch, train(batch))
    return [trial.params for trial in store.trials()]


def open_(url, study="study", direction="minimize", log=print):
    return open_study(url, study, direction, SPACE, heartbeat=1, log=log)


@pytest.fixture
def file(tmp_path):
    return f"sqlite:///{tmp_path / 'study.db'}"


def optunas(url):
    """The trials as Optuna itself sees them, and optuna-dashboard."""
    seen = optuna.storages.RDBStorage(url)
    try:
        return seen.get_all_trials(seen.get_study_id_from_name("study"))
    finally:
        seen.engine.dispose()


def test_a_batch_goes_on_where_it_stopped(file):
    with open_(None) as memory:
        expected = sweep(memory, 4, 10)
    for killed_after in (1, 6):
        url = file.replace("study", f"study_{killed_after}")
        with open_(url) as store:
            while left := killed_after - len(store.trials()):
                batch = store.take(suggest, 4, 10)[:left]
                store.record(batch, train(batch))
        with open_(url) as store:
            assert sweep(store, 4, 10) == expected
            assert store.take(suggest, 4, 10) == [] and store.claim_finish(10) is None
            store.finish({})
            more = store.take(suggest, 4, 12)  # the same command with more trials
            assert [trial.index for trial in more] == [10, 11]
        assert [trial.params for trial in optunas(url)] == expected
        assert [trial.number for trial in optunas(url)] == list(range(10))


OUTCOMES = [
    Outcome(math.inf, {1: 0.5, 2: math.inf}, attrs={"diverged_at": 2, "values": [1, None]}),
    Outcome(-math.inf, {1: -math.inf}, seconds=100.5),
    Outcome(0.1 + 0.2, {epoch: 1 / epoch for epoch in range(1, 9)}, attrs={"ünïcode": {"a": "b"}}),
    Outcome(1e-300, {1: 1e300}, pruned=True),
]


def test_what_is_recorded_is_read_back(file):
    """By us and by Optuna itself."""
    with open_(file) as store:
        batch = store.take(suggest, 4, 4)
        store.record(batch, OUTCOMES)
        written = store.trials()
    with open_(file) as store:
        for found in (store.trials(), optunas(file)):
            for trial, taken, outcome, mine in zip(found, batch, OUTCOMES, written, strict=True):
                mine._trial_id = trial._trial_id
                assert trial == mine
                assert (trial.params, trial.system_attrs) == (taken.params, taken.system_attrs)
                assert (trial.value, trial.state) == (outcome.value, outcome.state)
                assert trial.intermediate_values == outcome.intermediate
                assert trial.user_attrs == outcome.attrs and trial.distributions == SPACE
                assert trial.duration.total_seconds() == outcome.seconds
                assert abs(trial.datetime_complete.timestamp() - time.time()) < 60
        assert store.seconds() == 100.5


def test_rows_are_those_that_optuna_writes(tmp_path):
    """Every table of its, to the last column."""
    taken = suggest([], list(range(len(OUTCOMES))))
    trials = [frozen(*each) for each in zip(taken, [SPACE] * len(taken), OUTCOMES, strict=True)]
    contents = []
    for name in ("ours", "optunas"):
        storage = RDBStorage(f"sqlite:///{tmp_path / name}")
        study = optuna.create_study(storage=storage, study_name="study")
        for number, trial in enumerate(trials):
            trial.number = number
            if name == "optunas":
                storage.create_new_trial(study._study_id, trial)
        if name == "ours":
            insert(storage, study._study_id, trials)
        storage.engine.dispose()
        with contextlib.closing(sqlite3.connect(tmp_path / name)) as database:
            contents.append(list(database.iterdump()))
    assert contents[0] == contents[1]


def test_settings_are_those_of_the_beginning(file):
    with open_(file) as store:
        assert store.settings({"seed": 0, "space": [1e-5, None]}) == {
            "seed": 0,
            "space": [1e-5, None],
        }
    with open_(file) as store:
        assert store.settings({"seed": 1}) == {"seed": 0, "space": [1e-5, None]}


def refused(url, **options):
    """The one sentence with which the storage is refused."""
    with pytest.raises(InputError) as error, open_(url, **options):
        pass
    text = str(error.value)
    assert "\n" not in text and text.endswith(".") and "--storage" in text
    return text


def test_one_process_has_the_file(file):
    with open_(file):
        assert "in use by another process" in refused(file)
    with open_(file):
        pass
    assert "--objective" in refused(file, direction="maximize")
    with open_(file):  # the refused one has let go of it
        pass


def test_files_that_cannot_be_used(tmp_path):
    (tmp_path / "text.db").write_text("no database\n" * 1000)
    assert "file is not a database" in refused(f"sqlite:///{tmp_path / 'text.db'}")
    assert "No such file" in refused(f"sqlite:///{tmp_path / 'missing' / 'study.db'}")
    (tmp_path / "folder").mkdir()
    assert "unable to open" in refused(f"sqlite:///{tmp_path / 'folder'}")
    for url in ("mysql://user:secret@host/db", "sqlite:///", "sqlite:///:memory:", "study.db"):
        assert "postgresql+psycopg://" in refused(url) and "secret" not in refused(url)
    with open_(f"sqlite:///{tmp_path / '{braces}.db'}") as store:
        assert store.trials() == []


def test_a_file_that_may_not_be_written(file, tmp_path, monkeypatch):
    with open_(file):
        pass
    connect = sqlalchemy.create_engine
    readonly = lambda url, **_: connect(f"{url.replace('///', '///file:')}?mode=ro&uri=true")  # noqa: E731
    monkeypatch.setattr(sqlalchemy.engine, "create_engine", readonly)
    assert "readonly database" in refused(file)


def test_a_disk_that_fills_up(file, tmp_path):
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    with pytest.raises(RunError) as error, open_(file) as store:
        size = (tmp_path / "study.db").stat().st_size + 2**13
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
        try:
            sweep(store, 4, 800)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
    safe = int(re.search(r"first (\d+) trials are safe", str(error.value))[1])
    assert 4 <= safe < 800
    with open_(file) as store:
        assert [trial.number for trial in store.trials()] == list(range(safe))
        assert store.take(suggest, 4, 800)[0].index == safe


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


WORKER = """
    import faulthandler, sys, time
    faulthandler.dump_traceback_later(60, exit=True)
    from tests.test_stores import SPACE, suggest, train, open_

    def log(*words):
        print(*words, flush=True)

    url, total, seconds, finishing = sys.argv[1], *map(float, sys.argv[2:])
    with open_(url, log=log) as store:
        while batch := store.take(suggest, 4, int(total)):
            log("batch", *[trial.index for trial in batch])
            time.sleep(seconds)
            store.record(batch, train(batch))
        results = store.claim_finish(int(total))
        if results is None:
            log("finishing")
            time.sleep(finishing)
            store.finish({"trials": len(store.trials())})
        else:
            log("results", results)
"""


class Worker:
    """A process that takes part in a sweep."""

    def __init__(self, arguments, **environment):
        command = [sys.executable, "-W", "error", "-c", textwrap.dedent(WORKER)]
        self.process = subprocess.Popen(
            [*command, *map(str, arguments)], text=True, cwd=Path(__file__).parents[1],
            env={**os.environ, **environment}, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip
        self.lines = []

    def wait_for(self, word):
        while not (self.lines and self.lines[-1].startswith(word)):
            line = self.process.stdout.readline()
            assert line, "\n".join(self.lines)
            self.lines.append(line.strip())

    def send(self, number):
        self.process.send_signal(number)

    def finish(self):
        """All that it said. It must end well."""
        out, _ = self.process.communicate(timeout=60)
        self.lines += out.splitlines()
        assert self.process.returncode == 0, "\n".join(self.lines)
        return self.lines


@contextlib.contextmanager
def workers(url, total, seconds, finishing):
    """One for each of the seconds that a batch, of four trials, and finishing take."""
    zones = ["America/New_York", "Asia/Tokyo", "UTC"]
    started = [
        Worker([url, total, *each], PGTZ=zones[n], TZ=zones[-n])
        for n, each in enumerate(zip(seconds, finishing, strict=True))
    ]
    try:
        yield started
    finally:
        for worker in started:
            worker.process.kill()
            worker.process.communicate()


def complete(url):
    """How often every index is COMPLETE."""
    return Counter(
        trial.user_attrs["index"] for trial in optunas(url) if trial.state == TrialState.COMPLETE
    )


def once(total):
    return dict.fromkeys(range(total), 1)


@pytest.mark.slow
def test_workers_that_are_killed_or_freeze(url):
    """All three start at once, on an empty database, and call different time zones theirs."""
    with workers(url, 20, [60, 5, 0.5], [0, 0, 60]) as (killed, frozen, lives):
        killed.wait_for("batch")
        killed.send(signal.SIGKILL)
        frozen.wait_for("batch")
        frozen.send(signal.SIGSTOP)
        with open_(url) as other, other._storage.engine.connect() as transaction:
            transaction.exec_driver_sql("SELECT * FROM trials FOR UPDATE")  # one that froze as well
            lives.wait_for("finishing")
            transaction.invalidate()
        frozen.send(signal.SIGCONT)
        frozen.wait_for("another worker finishes")
        lives.send(signal.SIGKILL)
        said = frozen.finish()
        assert sum("was given up" in line for line in said) == 4 and said[-1] == "finishing", said
    assert complete(url) == once(20)
    failed = [trial for trial in optunas(url) if trial.state == TrialState.FAIL]
    with open_(url) as store:
        kept = {trial.user_attrs["index"]: trial.params for trial in store.trials()}
        assert len(failed) == 8 and len(kept) == 20
        assert all(kept[trial.user_attrs["index"]] == trial.params for trial in failed)
        assert store.take(suggest, 4, 20) == []
        assert store.claim_finish(20) == {"trials": 20}
        assert [trial.index for trial in store.take(suggest, 4, 22)] == [20, 21]


@pytest.mark.slow
def test_the_database_goes_away(server, url, monkeypatch):
    """For longer than a silence that means death: nobody is given up for it."""
    with open_(url) as third, workers(url, 20, [0.3, 0.3], [0, 0]) as both:
        batch = third.take(suggest, 1, 20)
        for worker in both:
            worker.wait_for("batch")
        server.stop()
        try:
            time.sleep(5)
            with monkeypatch.context() as patch:
                patch.setattr(postgres, "HOUR", -1.0)
                with pytest.raises(RunError, match="away for an hour"):
                    third.trials()
        finally:
            server.start()
        assert third.take(suggest, 1, 20) == batch  # before the workers have noticed
        for worker in both:
            worker.wait_for("nothing left")
            assert sum("the database is away" in line for line in worker.lines) == 1
            assert sum("the database is back" in line for line in worker.lines) == 1
        assert silence(url, batch[0]) < 3
        third.record(batch, train(batch))
        for worker in both:
            worker.finish()
        assert len(third.trials()) == 20 and 5 < third.seconds() < 60
    assert complete(url) == once(20)
    assert len(optunas(url)) == 20


def silence(url, trial):
    """Seconds since the last heartbeat."""
    engine = sqlalchemy.create_engine(url)
    ask = f"""SELECT now() AT TIME ZONE 'UTC' - heartbeat FROM trial_heartbeats
        WHERE trial_id = {trial.id}"""
    with engine.connect() as connection:
        since = connection.exec_driver_sql(ask).scalar()
    engine.dispose()
    return since.total_seconds()


@pytest.mark.slow
def test_one_worker_finishes(url):
    said, results = [], []
    with open_(url) as first, open_(url, log=said.append) as second:
        assert first.claim_finish(0) is None
        waiting = threading.Thread(target=lambda: results.append(second.claim_finish(0)))
        waiting.start()
        time.sleep(1.5)
        assert not results and len(said) == 1 and "waiting for its results" in said[0]
        first.finish({"test": {"accuracy": 0.5, "loss": None}})
        waiting.join()
        assert results == [{"test": {"accuracy": 0.5, "loss": None}}]
        assert first.claim_finish(0) == results[0] and second.claim_finish(1) is None


def test_what_is_taken_is_given_back(url):
    with open_(url) as store:
        assert store.settings({"seed": 0}) == {"seed": 0}
        with pytest.raises(KeyboardInterrupt), open_(url) as stopped:
            assert stopped.settings({"seed": 1}) == {"seed": 0}
            taken = stopped.take(suggest, 3, 8)
            raise KeyboardInterrupt
        again = store.take(suggest, 4, 8)
        assert [trial.id for trial in again[:3]] == [trial.id for trial in taken]
        assert [trial.params for trial in again[:3]] == [trial.params for trial in taken]
        assert [trial.index for trial in again] == [0, 1, 2, 3]
        store.record(again, OUTCOMES)
        for trial, taken, outcome in zip(store.trials(), again, OUTCOMES, strict=True):
            assert (trial.params, trial.system_attrs) == (taken.params, taken.system_attrs)
            assert (trial.value, trial.state) == (outcome.value, outcome.state)
            assert trial.intermediate_values == outcome.intermediate
            assert trial.user_attrs == {"index": taken.index, **outcome.attrs}


def test_a_trial_that_kills_its_worker_is_tried_four_times(url):
    """Each FAIL is set as by a worker that dies before it queues the trial again."""
    database = optuna.storages.RDBStorage(url)
    with open_(url) as store:
        for _ in range(4):
            good, bad = store.take(suggest, 2, 2) if _ == 0 else (None, *store.take(suggest, 2, 2))
            if good:
                store.record([good], train([good]))
            assert bad.index == 1
            database.set_trial_state_values(bad.id, TrialState.FAIL)
            store._mine.clear()
        assert store.take(suggest, 2, 2) == []
        assert [trial.state.name for trial in store.trials()] == ["COMPLETE", "FAIL"]
    database.engine.dispose()


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["enqueued", "waiting", "asked", "failed", "ours, failed"])
def test_trials_of_others_are_left_alone(url, kind):
    """As the dashboard's or a script's; and one of ours that somebody set to FAIL."""
    database = optuna.storages.RDBStorage(url)
    with open_(url) as store:
        first = store.take(suggest, 2, 4)
        store.record(first, train(first))
        study = optuna.load_study(study_name=store._name, storage=database)
        if kind == "enqueued":
            study.enqueue_trial({"learning_rate": 0.5})
        elif kind == "asked":
            study.ask()
        else:
            attrs = {"index": 2} if "ours" in kind else {}
            study.add_trial(optuna.trial.create_trial(state=TrialState.WAITING, user_attrs=attrs))
        if "failed" in kind:
            database.set_trial_state_values(study.trials[-1]._trial_id, TrialState.FAIL)
        for trial in store.trials():
            trial._validate()  # or no sampler of Optuna takes it
        seen = [trial.number for trial in store.trials()]
        assert seen == ([0, 1, 2] if "ours" in kind else [0, 1])
        again = store.take(suggest, 4, 4)
        assert [trial.index for trial in again] == [2, 3]
        if "ours" not in kind:
            store.record(again, train(again))
            assert store.take(suggest, 4, 4) == [] and store.seconds() > 0
    database.engine.dispose()


def test_servers_that_cannot_be_used(server, monkeypatch):
    wrong = server.url("missing")
    assert 'database "missing" does not exist' in refused(wrong)
    nowhere = wrong.replace(str(server.port), "1")
    assert "refused" in refused(nowhere)
    assert "%40" in refused(wrong.replace("secret", "sec@1:secret"))
    assert "port" in refused(wrong.replace(str(server.port), "port"))
    for bad in (
        wrong,
        nowhere,
        wrong.replace("secret", "sec@1:secret"),
        f"{wrong}?password=secret",
    ):
        text = refused(bad.replace("secret", "s{e}cret"))
        assert "cret" not in text and "sec@" not in text
    monkeypatch.setitem(sys.modules, "psycopg", None)
    assert "pip install 'dlflax[postgres]'" in refused(wrong)


# What every store promises, one claim a test.

STORES = ("memory", "sqlite", "postgres", "of all hosts")


@pytest.fixture(params=STORES)
def opened(request, tmp_path):
    """Opens the one study, again and again but in memory; closes it at the end."""
    kind, stack, made = request.param, contextlib.ExitStack(), []
    address = {
        "memory": lambda: None,
        "sqlite": lambda: f"sqlite:///{tmp_path / 'study.db'}",
        "postgres": lambda: request.getfixturevalue("url"),
        "of all hosts": lambda: f"sqlite:///{tmp_path / 'hosts.db'}",
    }[kind]()

    def open_again():
        if kind == "memory" and made:
            return made[0]
        stack.close()
        maker = Broadcast if kind == "of all hosts" else open_study
        store = stack.enter_context(maker(address, "study", "minimize", SPACE, 1.0, print))
        made.append(store)
        return store

    with stack:
        yield open_again


def test_a_store_gives_the_next_trials_in_order(opened):
    store = opened()
    first = store.take(suggest, 3, 5)
    assert [trial.index for trial in first] == [0, 1, 2]
    store.record(first, train(first))
    second = store.take(suggest, 3, 5)
    assert [trial.index for trial in second] == [3, 4]
    store.record(second, train(second))
    assert store.take(suggest, 3, 5) == []


def test_a_store_suggests_from_all_that_is_recorded(opened):
    with open_(None) as memory:
        expected = sweep(memory, 2, 6)
    assert sweep(opened(), 2, 6) == expected


def test_a_store_reads_back_what_was_recorded(opened):
    store = opened()
    batch = store.take(suggest, 4, 4)
    outcomes = [
        Outcome(math.inf, {1: 0.5, 2: math.inf}, attrs={"diverged_at": 2}),
        Outcome(0.1 + 0.2, {1: 1 / 3}, attrs={"values": [0.1, 0.2], "std": 0.05}),
        Outcome(0.5, {1: 0.5}, pruned=True),
        Outcome(1e-300),
    ]
    store.record(batch, outcomes)
    for trial, outcome in zip(opened().trials(), outcomes, strict=True):
        assert (trial.value, trial.state) == (outcome.value, outcome.state)
        assert trial.intermediate_values == outcome.intermediate
        assert outcome.attrs.items() <= trial.user_attrs.items()
        assert trial.distributions == SPACE


def test_a_store_numbers_its_trials_from_zero(opened):
    sweep(opened(), 2, 5)
    assert [trial.number for trial in opened().trials()] == list(range(5))


def test_a_store_keeps_the_settings_of_the_beginning(opened):
    first = {"seed": 0, "space": [1e-5, None]}
    assert opened().settings(first) == first
    assert opened().settings({"seed": 1}) == first


def test_a_store_counts_the_time(opened):
    store = opened()
    assert store.seconds() == 0
    sweep(store, 2, 4)
    assert store.seconds() >= 0


def test_a_store_lets_one_finish_and_then_goes_on(opened):
    store = opened()
    sweep(store, 2, 4)
    assert store.claim_finish(4) is None
    store.finish({"trials": 4})
    more = opened().take(suggest, 2, 6)
    assert [trial.index for trial in more] == [4, 5]


def test_a_store_trains_again_what_was_taken_and_not_recorded(opened):
    store = opened()
    taken = store.take(suggest, 3, 3)
    store.record(taken[:1], train(taken[:1]))
    again = opened().take(suggest, 3, 3)
    assert [trial.params for trial in again] == [trial.params for trial in taken[1:]]
