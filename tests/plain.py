"""python tests/plain.py MODULE FLAGS: as `python -m MODULE FLAGS` does, but without figures.

For tests in which a process is the point, and not what it draws.
"""

import runpy
import sys

from dlflax.report import figures

figures.draw = lambda *_: {}
sys.path[0] = ""
del sys.argv[0]
runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
