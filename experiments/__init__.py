"""The shipped experiments, each one command: python -m experiments.mnist."""

import os
import signal
import sys
import threading

if sys.argv[:1] == ["-m"] and threading.current_thread() is threading.main_thread():
    # Ctrl-C during the imports, which take seconds; later dlflax.run.signals handles it
    def _exit(*_):
        os.write(2, b"error: interrupted.\n")
        os._exit(130)

    signal.signal(signal.SIGINT, _exit)
