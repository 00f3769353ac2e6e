"""The shipped experiments, each one command: python -m experiments.mnist."""

import os
import signal
import sys
import threading

if sys.argv[:1] == ["-m"] and threading.current_thread() is threading.main_thread():
    # Ctrl-C while the imports of a command take their seconds: no traceback. What the command
    # does with it from its start on is in dlflax.run.exit_codes.
    def _interrupted(*_):
        os.write(2, b"error: interrupted.\n")
        os._exit(130)

    signal.signal(signal.SIGINT, _interrupted)
