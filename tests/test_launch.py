"""Every launcher keeps the same contract: results, errors, lost workers, shared arrays."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from dlflax.errors import InputError
from dlflax.tune.launch import WorkerLost, open_launcher
from dlflax.tune.launch.launcher import Inline
from dlflax.tune.launch.local import places

CORES = len(os.sched_getaffinity(0))
WAIT = 60  # seconds


def add(a, b):
    return a + b


def refuse(text):
    raise InputError(text)


class Odd(Exception):
    """Cannot be pickled: its arguments are not those of its instances."""

    def __init__(self, a, b):
        super().__init__(f"{a} and {b}")


def raise_odd():
    raise Odd(1, 2)


def kill_itself(number):
    os.kill(os.getpid(), number)
    time.sleep(60)


def stop_itself(file):
    Path(file).write_text(str(os.getpid()))
    kill_itself(signal.SIGSTOP)


def meet(folder, me, other):
    """True if another call runs at the same time."""
    Path(folder, me).touch()
    end = time.monotonic() + 20
    while not (there := Path(folder, other).exists()) and time.monotonic() < end:
        time.sleep(0.01)
    return there


def devices_and_cores(folder, me, other):
    import jax

    assert meet(folder, me, other)
    return jax.default_backend(), len(jax.devices()), sorted(os.sched_getaffinity(0))


def read(data):
    tree = data()
    assert data() is tree
    image = tree["train"]["image"]
    return float(image.sum()), image.flags.writeable, str(tree["low"].dtype), tree["empty"].shape


def jax_sum(x):
    import jax

    return float(jax.jit(lambda x: (x * 2).sum())(x))


def unpicklable():
    return lambda: None


def processes():
    """The command lines of the processes below this one."""
    found, parents = {}, [os.getpid()]
    while parents:
        for task in Path(f"/proc/{parents.pop()}/task").glob("*/children"):
            for pid in map(int, task.read_text().split()):
                parents.append(pid)
                command = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode()
                # a zombie has no command line; multiprocessing's tracker ends with this process
                if command and "resource_tracker" not in command:
                    found[pid] = command
    return found


def wait_for(condition, seconds=10):
    end = time.monotonic() + seconds
    while not condition() and time.monotonic() < end:
        time.sleep(0.02)
    assert condition(), processes()


@pytest.fixture(scope="class")
def launcher(request, tmp_path_factory):
    """The launcher of a suite. Nothing is left of it when its tests are over."""
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("XLA_FLAGS", raising=False)
        patch.setenv("PYTHONPATH", os.pathsep.join(sys.path))
        before = processes()
        with request.cls.make(tmp_path_factory.mktemp("sweep")) as launcher:
            yield launcher
        wait_for(lambda: processes().keys() <= before.keys())
        assert not list(launcher.folder.glob("data*"))


class Suite:
    """The contract, for two workers."""

    def test_result(self, launcher):
        futures = [launcher.submit(add, k, 1) for k in range(5)]
        assert [future.result(WAIT) for future in futures] == [1, 2, 3, 4, 5]

    def test_errors(self, launcher):
        with pytest.raises(InputError) as caught:
            launcher.submit(refuse, "no such flag").result(WAIT)
        assert str(caught.value) == "no such flag"
        with pytest.raises(Exception, match="1 and 2"):
            launcher.submit(raise_odd).result(WAIT)

    def test_shared_arrays(self, launcher):
        import ml_dtypes

        arrays = {
            "train": {"image": np.ones((3, 4), np.float32)},
            "low": np.ones((2,), ml_dtypes.bfloat16), "empty": np.ones((0, 3)),
        }  # fmt: skip
        futures = [launcher.submit(read, launcher.share(arrays)) for _ in range(2)]
        for future in futures:
            total, writeable, dtype, shape = future.result(WAIT)
            assert (total, dtype, shape) == (12, "bfloat16", (0, 3))
            assert writeable == isinstance(launcher, Inline)


class SuiteOfProcesses(Suite):
    def test_two_at_once(self, launcher, tmp_path):
        assert launcher.width == 2
        futures = [launcher.submit(meet, tmp_path, *pair) for pair in ("ab", "ba")]
        assert [future.result(WAIT) for future in futures] == [True, True]

    def test_killed(self, launcher):
        with pytest.raises(WorkerLost) as caught:
            launcher.submit(kill_itself, signal.SIGKILL).result(WAIT)
        assert "\n" not in str(caught.value)
        assert launcher.submit(add, 1, 2).result(WAIT) == 3

    def test_ended(self, launcher, tmp_path):
        """Both workers stop: none of them is needed again, and a call that waits has room."""
        files = [tmp_path / "a", tmp_path / "b"]
        futures = [launcher.submit(stop_itself, file) for file in files]
        waits = launcher.submit(add, 1, 2)
        wait_for(lambda: all(file.exists() and file.read_text() for file in files), WAIT)
        start = time.monotonic()
        for future in futures:
            launcher.end(future)
            with pytest.raises(WorkerLost):
                future.result(1)
        assert time.monotonic() - start < 2
        assert waits.result(WAIT) == 3
        wait_for(lambda: not any(Path("/proc", file.read_text()).exists() for file in files))
        launcher.end(futures[0])  # it has ended already
        assert launcher.submit(add, 1, 2).result(WAIT) == 3


class TestInline(Suite):
    @staticmethod
    def make(folder):
        launcher = open_launcher("local", 1, folder, platform="cpu", devices=CORES)
        assert isinstance(launcher, Inline) and launcher.width == 1
        return launcher


@pytest.mark.skipif(CORES < 2, reason="one core")
class TestLocal(SuiteOfProcesses):
    @staticmethod
    def make(folder):
        return open_launcher("local", 2, folder, platform="cpu", devices=CORES)

    def test_cores(self, launcher, tmp_path):
        futures = [launcher.submit(devices_and_cores, tmp_path, *pair) for pair in ("ab", "ba")]
        (first, one, cores), (second, two, others) = [future.result(WAIT) for future in futures]
        assert first == second == "cpu" and one == two == len(cores) == len(others) == CORES // 2
        assert not set(cores) & set(others)
        assert len(os.sched_getaffinity(0)) == CORES

    def test_what_cannot_be_pickled(self, launcher):
        with pytest.raises(Exception, match="pickle"):
            launcher.submit(unpicklable).result(WAIT)
        with pytest.raises(Exception, match="pickle"):
            launcher.submit(add, lambda: None, 1).result(WAIT)

    def test_end_before_it_began(self, launcher, tmp_path):
        futures = [launcher.submit(meet, tmp_path, *pair) for pair in ("ac", "bc")]
        waits = launcher.submit(add, 1, 2)
        launcher.end(waits)
        with pytest.raises(WorkerLost):
            waits.result(1)
        (tmp_path / "c").touch()
        assert [future.result(WAIT) for future in futures] == [True, True]

    def test_interrupt(self, launcher):
        """Ctrl-C goes to all processes of a terminal; the parent decides."""
        pid = launcher.submit(os.getpid).result(WAIT)
        os.kill(pid, signal.SIGINT)
        assert launcher.submit(add, 1, 2).result(WAIT) == 3
        assert Path("/proc", str(pid)).exists()


# of the processes that submitit and Ray leave to the end of Python
QUIET = pytest.mark.filterwarnings(
    "ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning"
)


@QUIET
@pytest.mark.slow
class TestSubmitit(SuiteOfProcesses):
    @staticmethod
    def make(folder):
        pytest.importorskip("submitit")
        from dlflax.tune.launch.slurm import Slurm

        class Processes(Slurm):
            """Jobs are processes of this machine, as in submitit's own tests."""

            def _make_executor(self, submitit, folder, options):
                return submitit.LocalExecutor(folder)

            def _cancel(self, jobs):
                for job in jobs:
                    job.cancel()
                while not all(job.done() for job in jobs):
                    time.sleep(0.05)

            def _states(self, jobs):
                return {job.job_id: job.state for job in jobs if job.done()}

        return Processes(2, folder, {}, print)


@QUIET
@pytest.mark.slow
class TestRay(SuiteOfProcesses):
    @staticmethod
    def make(folder):
        pytest.importorskip("ray")
        return open_launcher("ray", 2, folder, platform="cpu", devices=CORES)


SCRIPT = """
import sys
from dataclasses import dataclass
from pathlib import Path
from dlflax.tune.launch import open_launcher

@dataclass
class Experiment:
    rate: float

def double(experiment):
    return Experiment(2 * experiment.rate)

def main():
    with open_launcher("local", 2, Path("."), platform="cpu", devices=2) as launcher:
        print(launcher.submit(double, Experiment(4.0)).result(60))

if GUARD:
    main()
"""


@pytest.mark.slow
@pytest.mark.skipif(CORES < 2, reason="one core")
@pytest.mark.parametrize("words", [["my_experiment.py"], ["-m", "my_experiment"]])
def test_classes_of_the_script(words, tmp_path):
    script = SCRIPT.replace("GUARD", "__name__ == '__main__'")
    (tmp_path / "my_experiment.py").write_text(script)
    answer = subprocess.run(
        [sys.executable, *words], cwd=tmp_path, capture_output=True, text=True, timeout=60
    )
    assert answer.stdout == "Experiment(rate=8.0)\n", answer.stderr


@pytest.mark.slow
@pytest.mark.skipif(CORES < 2, reason="one core")
def test_script_without_a_guard(tmp_path):
    (tmp_path / "my_experiment.py").write_text(SCRIPT.replace("GUARD", "True"))
    command = [sys.executable, "my_experiment.py"]
    answer = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert answer.returncode == 1 and "`if __name__ == '__main__':`" in answer.stderr


@pytest.mark.slow
@pytest.mark.skipif(CORES < 2, reason="one core")
def test_workers_end_with_their_parent(tmp_path):
    """The parent is killed while one worker computes and the other one is stopped."""
    folders = os.pathsep.join([str(Path(__file__).parent), *sys.path])
    code = """
import sys, time
from pathlib import Path
from dlflax.tune.launch import open_launcher
from test_launch import meet, stop_itself
launcher = open_launcher("local", 2, Path("."), platform="cpu", devices=2)
launcher.submit(meet, ".", "met", "nobody")
launcher.submit(stop_itself, "stopped")
time.sleep(60)
"""
    before = processes()
    parent = subprocess.Popen(
        [sys.executable, "-c", code], cwd=tmp_path, env={**os.environ, "PYTHONPATH": folders}
    )
    files = [tmp_path / "met", tmp_path / "stopped"]
    wait_for(lambda: all(file.exists() for file in files), WAIT)
    workers = processes().keys() - before.keys() - {parent.pid}
    assert len(workers) == 2
    parent.kill()
    parent.wait()
    # an orphan stays a zombie where nobody collects it
    wait_for(lambda: not any(is_alive(pid) for pid in workers))


def is_alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.mark.parametrize(
    "name, workers, platform, options, words",
    [
        ("local", CORES + 1, "cpu", {}, f"--workers {CORES + 1}: this machine has {CORES} cores"),
        ("local", 9, "gpu", {}, f"--workers 9: this machine has {CORES} GPU devices"),
        ("ray", 2, "cpu", {"partition": "main"}, "partition: Ray has address"),
        ("ray", 2, "cpu", {"num_cpus": "many"}, "num_cpus=many must be 1"),
    ],
)
def test_what_cannot_be(name, workers, platform, options, words, tmp_path):
    with pytest.raises(InputError) as caught:
        open_launcher(name, workers, tmp_path, platform=platform, devices=CORES, options=options)
    assert words in str(caught.value)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name, package", [("slurm", "submitit"), ("ray", "ray")])
def test_missing_package(name, package, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(InputError, match=f"pip install 'dlflax.{name}.'"):
        open_launcher(name, 2, tmp_path, platform="cpu", devices=2)


def test_accelerators(monkeypatch):
    """One each, of those that this process may use."""
    monkeypatch.delenv("TPU_VISIBLE_CHIPS", raising=False)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,5")
    assert [place.env["CUDA_VISIBLE_DEVICES"] for place in places("gpu", 2, 2)] == ["2", "5"]
    chips = [place.env for place in places("tpu", 4, 4)]
    assert [env["TPU_VISIBLE_CHIPS"] for env in chips] == ["0", "1", "2", "3"]
    assert {env["TPU_PROCESS_BOUNDS"] for env in chips} == {"1,1,1"}
