"""Small users, sweeps over them and splits, for the tests of several modules."""

from argparse import Namespace

import numpy as np
import pandas as pd
import torch
from conftest import random_users

from lore.fit.comparisons import Comparisons
from lore.fit.evaluation import LORE, Cell
from lore.fit.groups import Groups
from lore.fit.planted import planted_population
from lore.report import text_tables
from lore.report.statistics import summarise
from lore.splits import Split
from utils import run_few_shot_vary_shots

D, N, N_UNSEEN = 6, 5, 4
HEAD = torch.randn(D, 1, generator=torch.Generator().manual_seed(9))
GROUPS = (
    random_users([20, 12, 30, 9, 17], D, seed=1),
    random_users([40] * N, D, seed=2),
    random_users([8, 9, 12, 20], D, seed=3),
    random_users([40] * N_UNSEEN, D, seed=4),
)
QUICK = {"num_iterations": 60, "few_shot_iterations": 40}


def a_split(rows=6, d=4, dtype=torch.bfloat16):
    table = torch.randn(rows, d, generator=torch.Generator().manual_seed(0)).to(dtype)
    frame = pd.DataFrame({"user_id": ["b", "a", "b"], "prompt": list("pqr")})
    frame["chosen"] = [0, 2, 4]
    frame["rejected"] = [1, 3, 5]
    return Split(table, frame, torch.randn(d, 1), "tiny")


def planted(seed=0, scale=1.0, num_directions=3):
    """Groups of 40 seen and 20 unseen people who mix a few rewards, and the head."""
    args = Namespace(planted_features=16, planted_directions=num_directions, seed=seed)
    args.planted_concentration, args.planted_accuracy = 0.1, 0.92
    splits = planted_population(60, {"train": 40, "test": 40}, args)
    users = sorted(splits["train"].frame["user_id"].unique())
    groups = []
    for people, most in ((users[:40], 40), (users[40:], 10)):
        for side, pairs in (("train", most), ("test", 40)):
            table, frame = scale * splits[side].table, splits[side].frame
            frame = frame[frame["user_id"].isin(people)].groupby("user_id").head(pairs)
            groups.append(Comparisons.from_frame(table, frame, people, prompt="prompt"))
    return Groups(*groups), splits["train"].head


def assert_people_are_apart(groups):
    """Nobody is seen and unseen, and who is fitted is tested."""
    assert groups.train.user_ids == groups.seen.user_ids
    assert groups.few_shot_train.user_ids == groups.unseen.user_ids
    assert not {*groups.train.user_ids} & {*groups.unseen.user_ids}


def cell(accuracies, K=2, variant=LORE, seed=0, users=None):
    users = users or [f"u{i}" for i in range(len(accuracies))]
    return Cell(seed, 0.0, K, {"unseen": np.array(accuracies)}, {"unseen": tuple(users)}, variant)


def summarise_for_print(*cells):
    names = text_tables.GROUP_NAMES
    full = []
    for one in cells:
        accuracy = dict.fromkeys(names, one.accuracy["unseen"])
        full.append(one._replace(accuracy=accuracy, users=dict.fromkeys(names, one.users["unseen"])))
    return summarise(full)


def sweep(function, K_list, alpha_list, V=HEAD, groups=GROUPS, **options):
    return function(K_list, alpha_list, V, *groups, N, N_UNSEEN, "cpu", **{**QUICK, **options})


def accuracy(V, W, users):
    """Eq. 15, user by user."""
    return [((x @ V @ w) > 0).float().mean().item() for x, w in zip(users, W)]


def shots(trials=3, alpha_list=(0.0,), K_list=(2,), num_shots=(2, 5), V=HEAD, groups=GROUPS, **options):
    train, _, few, unseen = groups
    arguments = (trials, alpha_list, K_list, num_shots, train, few, unseen, V, N, N_UNSEEN, "cpu")
    return run_few_shot_vary_shots(*arguments, **QUICK, **options)
