"""One study for several hosts that train one population: process 0 alone opens it."""

import contextlib

from dlflax import parallel
from dlflax.tune.stores import open_study


class Broadcast:
    """A store for several hosts that train one population: process 0 alone opens it,
    and every host gets what it answers. Takes what `open_study` takes."""

    def __init__(self, url, study, direction, *more):
        self.direction = direction
        self._given, self._study = (url, study, direction, *more), None
        self._open = contextlib.ExitStack()

    def __enter__(self):
        def enter():
            self._study = self._open.enter_context(open_study(*self._given))

        parallel.from_main(enter)
        return self

    def __exit__(self, *error):
        return self._open.__exit__(*error)

    def _ask(self, method, *args):
        return parallel.from_main(lambda: getattr(self._study, method)(*args))

    def trials(self):
        return self._ask("trials")

    def settings(self, new):
        return self._ask("settings", new)

    def take(self, suggest, count, total):
        return self._ask("take", suggest, count, total)

    def record(self, batch, outcomes):
        self._ask("record", batch, outcomes)

    def seconds(self):
        return self._ask("seconds")

    def claim_finish(self, total):
        return self._ask("claim_finish", total)

    def finish(self, results):
        self._ask("finish", results)
