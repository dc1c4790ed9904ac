"""A sweep from outside: the settings that it fits, checked, and its results as arrays."""

import itertools
from typing import NamedTuple

import numpy as np

from lore.common import require
from lore.fit.comparisons import check_rank
from lore.fit.evaluation import LORE, VARIANTS, Setting
from lore.fit.groups import Groups


class Recipe(NamedTuple):
    """How the fits of a sweep are made."""

    model_class: type  # LoRe or LoRe_regularized, of the solver adam
    device: object  # torch.device or its name
    num_iterations: int
    few_shot_learning_rate: float
    learning_rate: float = 0.5
    few_shot_iterations: int = 500
    solver: str = "adam"
    weigh: str = "pairs"  # of the ridge solver


def grid_of(solver, K_list, alpha_list, seeds):
    """The grid of a sweep, seeds outer, ranks inner. InputError: an unknown solver, a value twice."""
    require(solver in ("adam", "ridge"), f"solver = {solver!r}: adam, as published, or ridge")
    if solver == "ridge" and any(alpha_list):
        print(f"alpha_list = {[*alpha_list]} is not used: the ridge solver chooses its own pull")
        alpha_list = [0.0]
    grid = list(itertools.starmap(Setting, itertools.product(seeds, alpha_list, K_list)))
    names = {setting._replace(alpha=f"{setting.alpha:g}") for setting in grid}  # as in files and tables
    words = "K_list, alpha_list or seeds holds a value twice (of an alpha six digits count)"
    require(len(names) == len(grid), words)
    return grid


def fittable(grid, V_ref, num_features):
    """The settings that can be fitted: K = 0 needs a head. InputError: a rank that cannot be, none."""
    for setting in grid:
        check_rank(setting.K, num_features, smallest=0)
    settings = [setting for setting in grid if setting.K > 0 or V_ref is not None]
    words = "an empty list, or K = 0 alone for embeddings without a reference head"
    require(settings, f"nothing to fit: {words}")
    if len(settings) < len(grid):
        print("K = 0 is left out: these embeddings come without a reference head")
    return settings


class Accuracies(NamedTuple):
    """Accuracies (Eq. 15), an entry per (alpha, K), alpha outer; (seeds, entries) if seeds are given.

    The last four are the spread over users, np.std of the per-user accuracies. Differs from the
    published code: no factor of 0.25. NaN for K = 0 without a reference head.
    """

    train: np.ndarray  # seen users, the pairs they were fitted on
    seen: np.ndarray  # seen users, new prompts
    few_shot_train: np.ndarray  # unseen users, their few-shot pairs
    unseen: np.ndarray  # unseen users, new prompts
    train_std: np.ndarray
    seen_std: np.ndarray
    few_shot_train_std: np.ndarray
    unseen_std: np.ndarray


class RunResult(Accuracies):
    """The eight arrays and, beside them, `cells`: every fit and baseline with each user's accuracy.

    `cells` is no ninth field: eight names can be assigned the result of `run`, as published.
    """

    cells = ()

    @classmethod
    def of(cls, cells, grid, shape):
        """shape: of the arrays, () or (seeds,) and then the entries."""
        table = np.full((8, len(grid)), np.nan)
        for cell in cells:
            if cell.variant == LORE:
                per_user = [cell.accuracy[name] for name in Groups._fields]
                column = [*map(np.mean, per_user), *map(np.std, per_user)]
                table[:, grid.index(cell.setting)] = column
        result = cls(*table.reshape(8, *shape, -1))
        result.cells = sorted(cells, key=lambda cell: VARIANTS.index(cell.variant))
        return result


class FewShotAccuracies(NamedTuple):
    """(alphas, ranks, shots) arrays: accuracy, mean over users and trials, and its std over trials."""

    few_shot_train: np.ndarray
    few_shot_train_std: np.ndarray
    unseen: np.ndarray
    unseen_std: np.ndarray


class FewShotResult(FewShotAccuracies):
    """The four arrays, and `cells`: one per (alpha, K, shots), each user's mean over trials."""

    cells = ()

    @classmethod
    def of(cls, cells, grid, K_list, num_shots):
        """NaN for the settings that have no cell."""
        table = np.full((4, len(grid), len(num_shots)), np.nan)
        for cell in cells:
            column = []
            for name in ("few_shot_train", "unseen"):
                column += [cell.accuracy[name].mean(), cell.std_trials[name]]
            table[:, grid.index(cell.setting), num_shots.index(cell.shots)] = column
        result = cls(*table.reshape(4, -1, len(K_list), len(num_shots)))
        result.cells = cells
        return result
