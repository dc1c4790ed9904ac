"""What the benchmarks share: seconds, ratios of rounds, peak memory, verdicts, and the way to the code they measure."""

import argparse
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


def flags(docstring):
    """A parser whose --help begins with a script's docstring."""
    layout = argparse.RawDescriptionHelpFormatter
    return argparse.ArgumentParser(description=docstring, formatter_class=layout)


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


def in_turn(rounds, *ways):
    """Seconds of each way, a list of rounds each; within a round all ways run one after the other.

    ways: () -> seconds
    """
    spent = []
    for _ in range(rounds):
        spent.append([way() for way in ways])
    return [*zip(*spent)]


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


def verdict(reached):
    return "reached" if reached else "MISSED"


def judge(text, reached):
    print(f"{text}: {verdict(reached)}", flush=True)


def processor():
    """Its name, where the system tells, and whether MKL's strict mode is in force: both change seconds and bits."""
    told = Path("/proc/cpuinfo")
    lines = told.read_text().split("\n\n")[0].splitlines() if told.exists() else []
    facts = dict(line.replace("\t", "").split(":", 1) for line in lines)
    names = [name for name in ("model name", "cpu family", "model") if name in facts]
    cpu = ", ".join(name + facts[name] for name in names) or "an unnamed processor"
    mode = os.environ.get("MKL_CBWR", "not set")  # lore/__init__.py sets it on Intel's
    return f"{cpu}; MKL's strict mode is {'on' if 'STRICT' in mode else 'off'} (MKL_CBWR {mode})"
