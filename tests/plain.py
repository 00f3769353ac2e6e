"""python tests/plain.py MODULE FLAGS: as `python -m MODULE FLAGS` does, but without figures; with
FILE.py in place of MODULE, as `python FILE.py FLAGS` does.

For tests in which a process is the point, and not what it draws.
"""

import runpy
import sys

from dlflax.report import figures

figures.draw = lambda *_: {}
sys.path[0] = ""
del sys.argv[0]
if sys.argv[0].endswith(".py"):
    runpy.run_path(sys.argv[0], run_name="__main__")
else:
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
