"""What the benchmarks share: seconds, ratios of rounds, peak memory, verdicts, and the way to the code they measure."""

import importlib.util
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
HERE = ROOT / "benchmarks"
sys.path.insert(0, str(ROOT))  # whoever has imported this module finds utils.py and lore/

from lore.common import require
from lore.settings import OneLineParser


def flags(docstring, **defaults):
    """A parser whose --help begins with a script's docstring; a flag of its type for each default."""
    parser = OneLineParser(docstring)
    for name, default in defaults.items():
        parser.add_argument(f"--{name}", type=type(default), default=default, help=f"[{default}]")
    return parser


def load_module(path):
    """A module of a script's folder, as "PRISM/people.py", by a name of its own: two folders have a people.py."""
    file = ROOT / path
    spec = importlib.util.spec_from_file_location(f"{file.parent.name}_{file.stem}", file)
    module = importlib.util.module_from_spec(spec)
    sys.path.insert(0, str(file.parent))  # for what it imports from beside it
    try:
        spec.loader.exec_module(module)
    finally:
        sys.path.remove(str(file.parent))
    return module


# ------------------------------------------------------------------------------------------------
# Seconds and gigabytes
# ------------------------------------------------------------------------------------------------


def timed(function, *arguments):
    """(what it returns, seconds)."""
    begin = time.perf_counter()
    result = function(*arguments)
    return result, time.perf_counter() - begin


def seconds(function, *arguments):
    return timed(function, *arguments)[1]


class Clock:
    """Seconds between calls."""

    def __init__(self):
        self.last = time.perf_counter()

    def __call__(self):
        before = self.last
        self.last = time.perf_counter()
        return self.last - before


def run_alone(script, *arguments):
    """A script in a process of its own: (seconds, its peak resident GB).

    A process starts with the peak of the one that started it: call this before memory is taken.
    InputError: it failed.
    """
    begin = time.perf_counter()
    process = subprocess.Popen([sys.executable, script, *map(str, arguments)])
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    words = f"{script} failed with status {process.returncode}; what it said stands above"
    require(process.returncode == 0, words)
    return time.perf_counter() - begin, usage.ru_maxrss / 2**20


# ------------------------------------------------------------------------------------------------
# What is said of them
# ------------------------------------------------------------------------------------------------


def ratio(slow, fast):
    """How many times as fast, round by round: the median, and a text of it with its range."""
    times = [a / b for a, b in zip(slow, fast)]
    median = statistics.median(times)
    return median, f"{median:.3g} x ({min(times):.3g} .. {max(times):.3g})"


def compare(name, rounds, slow, fast, target=None):
    """One line: median seconds of two ways that run in turn, and how many times as fast the second is.

    slow, fast: () -> seconds. Returns all three numbers.
    """
    fast()  # warms up
    spent = [(slow(), fast()) for _ in range(rounds)]
    of_slow, of_fast = zip(*spent)
    medians = statistics.median(of_slow), statistics.median(of_fast)
    times, told = ratio(of_slow, of_fast)
    line = f"{name:30} {medians[0]:9.3f} s {medians[1]:9.4f} s  {told}"
    if target:
        judge(f"{line}; target {target} x", times >= target)
    else:
        print(line, flush=True)
    return *medians, times


def judge(text, reached):
    print(f"{text}: {'reached' if reached else 'MISSED'}", flush=True)


def processor():
    """Its name, where the system tells, and whether MKL's strict mode is in force: both change seconds and bits."""
    told = Path("/proc/cpuinfo")
    lines = told.read_text().split("\n\n")[0].splitlines() if told.exists() else []
    facts = dict(line.replace("\t", "").split(":", 1) for line in lines)
    names = [name for name in ("model name", "cpu family", "model") if name in facts]
    cpu = ", ".join(name + facts[name] for name in names) or "an unnamed processor"
    mode = os.environ.get("MKL_CBWR", "not set")  # lore/__init__.py sets it on Intel's
    return f"{cpu}; MKL's strict mode is {'on' if 'STRICT' in mode else 'off'} (MKL_CBWR {mode})"
