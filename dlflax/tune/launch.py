"""stub"""

from typing import Literal

LauncherName = Literal["local", "slurm", "ray"]
import abc
import concurrent.futures


class WorkerLost(Exception):
    pass


class Launcher(abc.ABC):
    width = 1

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass


class Data:
    def __init__(self, tree):
        self.tree = tree

    def load(self):
        return self.tree


class Inline(Launcher):
    width = 1

    def __init__(self):
        pass

    def submit(self, function, /, *args):
        f = concurrent.futures.Future()
        try:
            f.set_result(function(*args))
        except Exception as e:
            f.set_exception(e)
        return f

    def share(self, arrays):
        return Data(arrays)

    def end(self, future):
        pass


def open_launcher(name, workers, folder, *, platform, devices, options=None, log=print):
    return Inline()
