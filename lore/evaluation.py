"""Accuracy of every user: Eq. 15 before its mean over users."""

from typing import NamedTuple

import torch

from lore.likelihood import margins
from lore.mixtures import Fit
from lore.product import project

ALL_SHOTS = 0  # as a number of shots: everything known of a user

LORE = ""  # the fit itself; the other variants are baselines, in the order of the table
POPULATION = "population mixture"
ANOTHER = "another user's"
SHUFFLED = "shuffled labels"
ALONE = "each user alone"
VARIANTS = (LORE, POPULATION, ANOTHER, SHUFFLED, ALONE)


class Setting(NamedTuple):
    """What the fits of a sweep differ in."""

    seed: int
    alpha: float | None
    K: int | str


class Fitted(NamedTuple):
    """One fit with everybody's mixtures, to be scored."""

    setting: Setting
    fit: Fit  # V and the W of the seen users
    W_unseen: torch.Tensor  # (C', K)
    variant: str = LORE


class Cell(NamedTuple):
    """One fit, or a baseline, and how it did with each user."""

    seed: int
    alpha: float | None
    K: int | str
    accuracy: dict  # group -> (C,) array: Eq. 15 before the mean over users
    users: dict  # group -> C user ids
    variant: str = LORE
    shots: int | None = None
    std_trials: dict | None = None  # group -> std over trials of the mean over users
    fit: Fit | None = None
    W_unseen: torch.Tensor | None = None  # (C', K)

    @property
    def setting(self):
        return Setting(self.seed, self.alpha, self.K)


def share_right(margin, user, num_users):
    """Share of each user's pairs with x @ V @ w > 0, strictly; Eq. 15. (n,), (n,) -> (C,)"""
    right = (margin > 0).double()
    sums = right.new_zeros(num_users).index_add_(0, user, right)
    return sums / torch.bincount(user, minlength=num_users)


def score(fitted, groups):
    """A Cell for each Fitted."""
    accuracies = [{} for _ in fitted]
    for name, group in groups._asdict().items():
        Zs = project(group, [one.fit.V for one in fitted])  # (n, d) @ (d, K) -> (n, K)
        for one, Z, accuracy in zip(fitted, Zs, accuracies):
            W = one.fit.W if name in ("train", "seen") else one.W_unseen
            user = group.user.to(Z.device)
            right = share_right(margins(Z, W, user), user, len(group.user_ids))
            accuracy[name] = right.cpu().numpy()
    users = {name: group.user_ids for name, group in groups._asdict().items()}
    cells = []
    for one, accuracy in zip(fitted, accuracies):
        found = {"fit": one.fit, "W_unseen": one.W_unseen}
        cells.append(Cell(*one.setting, accuracy, users, one.variant, **found))
    return cells


def best_cell(population, groups, seed):
    """The planted rewards and mixtures themselves (Planted): nobody can know better."""
    W = torch.stack([population.W[user] for user in groups.train.user_ids])  # (N, K)
    W_unseen = torch.stack([population.W[user] for user in groups.unseen.user_ids])
    best = Fitted(Setting(seed, None, "best"), Fit(population.V, W), W_unseen)
    return score([best], groups)[0]
