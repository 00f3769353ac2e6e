"""Time of the tests.

python -m pytest --junitxml tests.xml && python benchmarks/test_time.py tests.xml

prints the seconds of each test file, summed over workers, and the slowest tests.
"""

import argparse
import collections
from xml.etree import ElementTree


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("file", help="output of pytest --junitxml")
    parser.add_argument("--slowest", type=int, default=10)
    options = parser.parse_args()
    suite = next(ElementTree.parse(options.file).iter("testsuite"))
    seconds, count, tests = collections.Counter(), collections.Counter(), []
    for case in suite.iter("testcase"):
        name = case.get("classname").split(".")[1]
        seconds[name] += float(case.get("time"))
        count[name] += 1
        tests.append((float(case.get("time")), f"{name}::{case.get('name')}"))
    print(f"{suite.get('tests')} tests, {float(suite.get('time')):.0f} s; of all workers "
          f"{sum(seconds.values()):.0f} s")  # fmt: skip
    for name, total in seconds.most_common():
        print(f"{total:7.1f} s  {count[name]:4} tests  {name}")
    print(f"the {options.slowest} slowest:")
    for time, test in sorted(tests, reverse=True)[: options.slowest]:
        print(f"{time:7.1f} s  {test}")


if __name__ == "__main__":
    main()
