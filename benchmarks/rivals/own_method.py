"""A reader's own method, in a process that is given what a method may know: MODULE:FUNCTION, function(train, few).

train and few are splits_on_disk.Pairs; what the function gives are log-odds, (n,), that the left reply of each pair of
few.test is preferred. An error inside the function ends the study with its traceback.
"""

import importlib
import multiprocessing
import os
import random
import sys
from concurrent.futures import ProcessPoolExecutor

import numpy as np
import torch
from measure import timed

from lore.common import require, told_as
from lore.fit.evaluation import Cell
from lore.fit.likelihood import LOGIT_SCALE
from rivals import Entry
from rivals.splits_on_disk import pairs_for_method


def entries(method, groups, head, seed):
    """{method: Entry} of one population. InputError: no log-odds of all pairs; what the function raises."""
    train, few, asked = pairs_for_method(groups, head)
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as process:
        odds, seconds = process.submit(answer_to, method, train, few).result()
    of_preferred = torch.where(torch.tensor(asked["left_preferred"].to_numpy()), odds, -odds)
    margins = torch.empty(len(asked), dtype=torch.float64)
    margins[torch.tensor(asked.index.to_numpy())] = LOGIT_SCALE * of_preferred.double()
    return {method: Entry.of(Cell(seed, None, method).scored({"unseen": margins}, groups), seconds)}


def answer_to(method, train, few):
    """log-odds, seconds; the seeds are always the same."""
    function = function_named(method)
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)
    answer, seconds = timed(function, train, few)
    return as_log_odds(method, answer, len(few.test.left)), seconds


def function_named(method):
    """Of a module where the study was started, or that is installed. InputError: no such function."""
    module, _, name = method.partition(":")
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    form = "name it as module:function, for example my_method:fit of my_method.py here"
    with told_as(f"--method {method}", ImportError, ValueError, AttributeError, then=form):
        function = getattr(importlib.import_module(module), name)
    require(callable(function), f"--method {method}: a {type(function).__name__}, not a function")
    return function


def as_log_odds(method, answer, count):
    """(count,) float32. InputError: anything else."""
    with told_as(f"--method {method} gave a {type(answer).__name__}", TypeError, ValueError, RuntimeError):
        odds = torch.as_tensor(answer).detach().cpu()
    numbers = odds.shape == (count,) and not (odds.dtype == torch.bool or odds.is_complex())
    wanted = f"{count} log-odds, one a pair of few.test, are asked for"
    require(numbers, f"--method {method} gave {odds.dtype} of shape {tuple(odds.shape)}: {wanted}")
    odds = odds.float()
    require(odds.isfinite().all(), f"--method {method} gave NaN or infinity")
    probabilities = odds.min() >= 0 and odds.max() <= 1 and odds.any()
    why = "all it gave lies between 0 and 1: log-odds are asked for, log(p / (1 - p))"
    require(not probabilities, f"--method {method}: {why}")
    return odds
