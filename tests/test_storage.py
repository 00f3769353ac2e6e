"""SQLite: what a kill leaves. A real PostgreSQL: workers that die, a database that goes away."""

import os
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import pytest
from optuna.distributions import FloatDistribution
from optuna.storages import RDBStorage
from optuna.trial import TrialState

from dlflax.errors import InputError, RunError
from dlflax.storage import Outcome, Trial, open_study

SPACE = {"x": FloatDistribution(0, 100)}


def suggest(history, indices):
    """A pure function of the two, as the real one."""
    return [Trial(i, {"x": (10 * len(history) + i) % 100.0}) for i in indices]


def open_local(path, direction="minimize"):
    return open_study(f"sqlite:///{path}", "study", direction, SPACE)


def outcomes(batch):
    return [Outcome(t.params["x"], {1: float("inf"), 2: 0.5}, t.index % 2 == 1) for t in batch]


def table(store):
    return [(t.number, t.state, t.value, t.params, t.intermediate_values) for t in store.trials()]


def test_a_killed_batch_is_asked_for_again_and_completed(tmp_path):
    with open_local(tmp_path / "whole.db") as store:
        while batch := store.take(suggest, 4, 10):
            store.record(batch, outcomes(batch))
        whole = table(store)
    with open_local(tmp_path / "whole.db") as store:
        assert table(store) == whole and len(whole) == 10
        assert store.take(suggest, 4, 10) == []
    for killed_after in range(10):
        path = tmp_path / f"{killed_after}.db"
        with open_local(path) as store:
            while len(store.trials()) < killed_after:
                batch = store.take(suggest, 4, 10)[: killed_after - len(store.trials())]
                store.record(batch, outcomes(batch))
        with open_local(path) as store:
            while batch := store.take(suggest, 4, 10):
                store.record(batch, outcomes(batch))
            assert table(store) == whole


def test_infinite_values_and_settings_come_back(tmp_path):
    with open_local(tmp_path / "a.db") as store:
        assert store.settings({"a": [1, 2]}) == {"a": [1, 2]}
        store.record([Trial(0, {"x": 1.0})], [Outcome(float("inf"), seconds=2.0, attrs={"b": 1})])
        assert store.seconds() == pytest.approx(2.0)
    with open_local(tmp_path / "a.db") as store:
        assert store.settings({"a": 3}) == {"a": [1, 2]}
        (trial,) = store.trials()
        assert trial.value == float("inf") and trial.user_attrs == {"b": 1}
        assert store.seconds() == pytest.approx(2.0)


def test_a_database_that_cannot_be_used_is_refused(tmp_path):
    (tmp_path / "text.db").write_text("this is not a database " * 100)
    with open_local(tmp_path / "mine.db"), pytest.raises(InputError, match="another process"):
        open_local(tmp_path / "mine.db")
    with pytest.raises(InputError, match="to minimize .* another --study"):
        open_local(tmp_path / "mine.db", "maximize")
    open_local(tmp_path / "mine.db").__exit__(None)  # the refused ones have let go of it
    for url, reason in [
        (f"sqlite:///{tmp_path}/text.db", "not a database"),
        (f"sqlite:///{tmp_path}/none/a.db", "No such file"),
        ("mysql://me:secret@host/db", "postgresql"),
        ("postgresql+psycopg://me:secret@127.0.0.1:1/db", "refused"),
    ]:
        with pytest.raises(InputError, match=reason) as error:
            open_study(url, "study", "minimize", SPACE)
        assert "secret" not in str(error.value) and "--storage" in str(error.value)


def test_a_failed_write_is_told(tmp_path):
    with pytest.raises(RunError, match="safe"), open_local(tmp_path / "a.db") as store:
        with sqlite3.connect(tmp_path / "a.db") as other:
            other.execute("DROP TABLE trial_params")
        store.record([Trial(0, {"x": 1.0})], [Outcome(1.0)])
        store.claim_finish(1)


# PostgreSQL

WORKER = """
import sys, time
from test_storage import SPACE, suggest
from dlflax.storage import Outcome, open_study
url, total, seconds = sys.argv[1], int(sys.argv[2]), float(sys.argv[3])
with open_study(url, "study", "minimize", SPACE, heartbeat=1) as store:
    while batch := store.take(suggest, 4, total):
        print("took", *(t.index for t in batch), flush=True)
        time.sleep(seconds)
        store.record(batch, [Outcome(t.params["x"], {1: 0.5}) for t in batch])
    results = store.claim_finish(total)
    if results is None:
        print("finishing", flush=True)
        time.sleep(seconds)
        store.finish({"best": 1})
    print("results", results, flush=True)
"""


class Server:
    def __init__(self, binaries, folder):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.binaries, self.folder = binaries, folder
        self.user = "postgres" if os.getuid() == 0 else None  # it refuses to run as root
        if self.user:
            shutil.chown(folder, self.user)
        self.run("initdb", "-D", f"{folder}/data", "-U", "me", "-A", "trust", "--no-sync")
        self.start()

    def run(self, program, *args):
        subprocess.run(
            [self.binaries / program, *args], user=self.user, cwd=self.folder, check=True,
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip

    def start(self):
        options = f"-p {self.port} -k {self.folder} -c listen_addresses=127.0.0.1 -F"
        self.run("pg_ctl", "-D", f"{self.folder}/data", "-w", "-o", options, "start")

    def stop(self):
        self.run("pg_ctl", "-D", f"{self.folder}/data", "-w", "-m", "fast", "stop")

    def database(self, name):
        self.run("createdb", "-h", "127.0.0.1", "-p", str(self.port), "-U", "me", name)
        return f"postgresql+psycopg://me:secret@127.0.0.1:{self.port}/{name}"


@pytest.fixture(scope="module")
def server():
    found = shutil.which("initdb") or next(
        iter(sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), reverse=True)), None
    )
    if found is None:
        pytest.skip("no PostgreSQL server here (Debian: apt-get install postgresql)")
    pytest.importorskip("psycopg", reason="no psycopg here: pip install 'dlflax[postgres]'")
    folder = Path(subprocess.check_output(["mktemp", "-d"], text=True).strip())
    server = None
    try:
        server = Server(Path(found).resolve().parent, folder)
        yield server
    finally:
        if server:
            server.stop()
        shutil.rmtree(folder)


@pytest.fixture
def start_worker():
    started = []

    def start(url, total, seconds):
        worker = subprocess.Popen(
            [sys.executable, "-c", WORKER, url, str(total), str(seconds)], text=True,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, cwd=Path(__file__).parent,
        )  # fmt: skip
        started.append(worker)
        return worker

    yield start
    for worker in started:
        worker.kill()
        worker.wait()
        worker.stdout.close()


def wait_for(worker, word):
    lines = []
    for line in worker.stdout:
        lines.append(line)
        if line.startswith(word):
            return line
    raise AssertionError("".join(lines))


def check(url, total, failed=0):
    """Every configuration once, none lost, none twice."""
    database = RDBStorage(url)
    trials = database.get_all_trials(database.get_study_id_from_name("study"))
    database.engine.dispose()
    complete = [t for t in trials if t.state == TrialState.COMPLETE]
    assert sorted(t.user_attrs["index"] for t in complete) == list(range(total))
    assert len(trials) - len(complete) == failed
    assert all(t.state == TrialState.FAIL for t in trials if t not in complete)
    with open_study(url, "study", "minimize", SPACE) as store:
        assert [t.state for t in store.trials()] == [TrialState.COMPLETE] * total
        assert store.claim_finish(total) == {"best": 1}


def test_the_trials_of_a_killed_worker_are_done_by_the_other(server, start_worker):
    url = server.database("killed")
    one, two = start_worker(url, 14, 0.3), start_worker(url, 14, 0.3)
    wait_for(one, "took")
    one.send_signal(signal.SIGKILL)
    out, _ = two.communicate(timeout=60)
    assert two.returncode == 0 and "results None" in out, out
    check(url, 14, failed=4)


def test_the_database_goes_away_and_comes_back(server, start_worker):
    url = server.database("away")
    workers = [start_worker(url, 12, 0.5) for _ in range(2)]
    wait_for(workers[0], "took")
    server.stop()
    time.sleep(1)
    server.start()
    outs = [worker.communicate(timeout=60)[0] for worker in workers]
    assert [worker.returncode for worker in workers] == [0, 0], outs
    assert "the database is away" in outs[0] and "the database is back" in outs[0]
    assert sorted("results None" in out for out in outs) == [False, True], outs
    check(url, 12)


def test_a_dead_finisher_is_replaced(server, start_worker):
    url = server.database("finisher")
    first = start_worker(url, 1, 30)
    wait_for(first, "took")
    time.sleep(0.5)
    first.send_signal(signal.SIGKILL)
    second = start_worker(url, 1, 1)
    wait_for(second, "finishing")
    second.send_signal(signal.SIGKILL)
    third = start_worker(url, 1, 0)
    assert wait_for(third, "results") == "results None\n"
    check(url, 1, failed=1)
