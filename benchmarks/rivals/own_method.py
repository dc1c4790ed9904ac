"""A reader's own method, in a process that is given what a method may know: MODULE:FUNCTION, function(train, few).

train and few are splits_on_disk.Pairs; what the function gives are log-odds, (n,), that the left reply of each pair of
few.test is preferred. An error inside the function ends the study with its traceback and one line.
"""

import importlib
import os
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from lore.common import InputError, require
from lore.fit.evaluation import Cell
from lore.fit.likelihood import LOGIT_SCALE
from rivals import Entry
from rivals.splits_on_disk import load_for_method, save_for_method

BENCHMARKS = Path(__file__).resolve().parent.parent


# ------------------------------------------------------------------------------------------------
# In the study
# ------------------------------------------------------------------------------------------------


def check(method):
    """InputError: there is no such function."""
    with tempfile.TemporaryDirectory() as folder:
        in_a_process(method, Path(folder) / "answer")


def entries(method, groups, head, seed):
    """{method: Entry} of one population. InputError: no log-odds of all pairs; an error inside."""
    with tempfile.TemporaryDirectory() as folder:
        population = Path(folder) / "population"
        asked = save_for_method(population, groups, head)
        odds, seconds = in_a_process(method, Path(folder) / "answer", population)
    of_preferred = torch.where(torch.tensor(asked["left_preferred"].to_numpy()), odds, -odds)
    margins = torch.empty(len(asked), dtype=torch.float64)
    margins[torch.tensor(asked.index.to_numpy())] = LOGIT_SCALE * of_preferred.double()
    return {method: Entry.of(Cell(seed, None, method).scored({"unseen": margins}, groups), seconds)}


def in_a_process(method, answer, population=None):
    """log-odds, seconds. The process finds modules where the study was started; nothing else of it is shared."""
    path = os.pathsep.join([str(BENCHMARKS), str(BENCHMARKS.parent), os.environ.get("PYTHONPATH", "")])
    command = [sys.executable, "-P", __file__, method, answer]  # -P: not beside this file
    if population is not None:
        command.append(population)
    done = subprocess.run(command, env={**os.environ, "PYTHONPATH": path.strip(os.pathsep)}, check=False)
    words = f"--method {method} failed with status {done.returncode}; what it said stands above"
    require(answer.exists(), words)
    with safe_open(answer, "pt") as file:
        told = file.metadata()
    require(not told["error"], f"--method {method}: {told['error']}")
    return load_file(answer)["log_odds"], float(told["seconds"])


# ------------------------------------------------------------------------------------------------
# In the process
# ------------------------------------------------------------------------------------------------


def function_named(method):
    """InputError: no such module, nothing of that name in it, or no function."""
    module, _, name = method.partition(":")
    complete = module and name and not module.startswith(".")
    require(complete, "name it as module:function, for example my_method:fit of my_method.py")
    try:
        loaded = importlib.import_module(module)
    except ImportError as error:
        where = f"modules are looked for in {os.getcwd()} and among what is installed"
        raise InputError(f"{error}; {where}") from error
    require(hasattr(loaded, name), f"module {module} has no {name}")
    function = getattr(loaded, name)
    require(callable(function), f"{name} is a {type(function).__name__}, not a function")
    return function


def as_log_odds(answer, count):
    """(count,) float32. InputError: anything else."""
    try:
        odds = torch.as_tensor(answer).detach().cpu()
    except (TypeError, ValueError, RuntimeError) as error:
        raise InputError(f"it gave a {type(answer).__name__}, not {count} numbers ({error})") from error
    shape = tuple(odds.shape)
    require(shape == (count,), f"it gave numbers of shape {shape}, not ({count},): one a pair of few.test")
    require(odds.dtype not in (torch.bool, torch.complex64, torch.complex128), f"it gave {odds.dtype}s")
    odds = odds.float()
    for row in (~odds.isfinite()).nonzero().flatten().tolist()[:1]:
        raise InputError(f"it gave {odds[row].item()} for pair {row} of few.test")
    probabilities = odds.min() >= 0 and odds.max() <= 1 and odds.any()
    require(not probabilities, "all it gave lies between 0 and 1: log-odds are asked for, log(p / (1 - p))")
    return odds


def answer_to(method, population):
    """log-odds, seconds; the seeds are always the same."""
    function = function_named(method)
    if population is None:
        return torch.empty(0), 0.0
    train, few = load_for_method(population)
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)
    begin = time.perf_counter()
    answer = function(train, few)
    return as_log_odds(answer, len(few.test.left)), time.perf_counter() - begin


def main(method, answer, population=None):
    sys.path.insert(0, os.getcwd())
    error = ""
    odds = torch.empty(0)
    seconds = 0.0
    try:
        odds, seconds = answer_to(method, population)
    except InputError as mistake:
        error = str(mistake)
    save_file({"log_odds": odds.contiguous()}, answer, {"error": error, "seconds": str(seconds)})


if __name__ == "__main__":
    main(*sys.argv[1:])
