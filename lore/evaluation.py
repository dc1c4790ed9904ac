"""Accuracy of every user (Eq. 15), baselines, intervals."""

import itertools
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F

from lore.lbfgs import minimise
from lore.likelihood import LOGIT_SCALE, margins, project, user_mean_weights
from lore.mixtures import Fit
from lore.ridge import FIRST_PASSES, HEAD_SPREAD, RidgeProblem, common_path

LORE = ""  # the fit itself; the others are baselines, in the order of the table
POPULATION, ANOTHER, SHUFFLED, ALONE = (
    "population mixture",
    "another user's",
    "shuffled labels",
    "each user alone",
)
MODELS = (LORE, POPULATION, ANOTHER, SHUFFLED, ALONE)
ALL_SHOTS = 0  # as a number of shots: everything known of a user
USERS_AT_ONCE = 16  # whose own rewards are fitted together
RESAMPLES = 2000  # of the users, for an interval
INTERVAL = (2.5, 97.5)  # its percentiles


class Cell(NamedTuple):
    """One fit, or a baseline, and how it did with each user."""

    seed: int | None
    alpha: float | None
    K: int | str
    accuracy: dict  # group -> (C,) array: Eq. 15 before the mean over users
    users: dict  # group -> C user ids
    model: str = LORE
    shots: int | None = None
    fit: Fit | None = None
    W_unseen: torch.Tensor | None = None  # (C', K)


def share_right(margin, user, num_users):
    """Share of each user's pairs with x @ V @ w > 0, strictly: Eq. 15 before the mean over users. (n,) -> (C,)"""
    right = (margin > 0).double()
    return right.new_zeros(num_users).index_add_(0, user, right) / torch.bincount(
        user, minlength=num_users
    )


def score(Vs, mixtures, groups):
    """Accuracy of every user under each V (d, K) with each of its (W, W_unseen): [[{group: (C,)}, ..], ..]"""
    scores = [[{} for _ in pairs] for pairs in mixtures]
    for (name, group), unseen in zip(groups._asdict().items(), (0, 0, 1, 1)):
        for Z, pairs, found in zip(project(group, Vs), mixtures, scores):
            user = group.user.to(Z.device)
            for pair, accuracy in zip(pairs, found):
                accuracy[name] = (
                    share_right(margins(Z, pair[unseen], user), user, len(group.user_ids))
                    .cpu()
                    .numpy()
                )
    return scores


def score_cells(fitted, variants, groups):
    """Cells of fits [((seed, alpha, K), fit, W_unseen), ..], each with its own list of (name, W, W_unseen)."""
    users, cells = {name: group.user_ids for name, group in groups._asdict().items()}, []
    mixtures = [[(W, W_unseen) for _, W, W_unseen in named] for named in variants]
    scores = score([fit.V for _, fit, _ in fitted], mixtures, groups)
    for (cell, fit, _), named, found in zip(fitted, variants, scores):
        for (name, W, W_unseen), accuracy in zip(named, found):
            cells.append(Cell(*cell, accuracy, users, name, None, fit._replace(W=W), W_unseen))
    return cells


def best_cell(population, groups, seed):
    """The planted rewards and mixtures themselves (Planted): nobody can know better."""
    W = torch.stack([population.W[user] for user in groups.train.user_ids])  # (N, K)
    W_unseen = torch.stack([population.W[user] for user in groups.unseen.user_ids])
    fitted = [((seed, None, "best"), Fit(population.V, W), W_unseen)]
    (cell,) = score_cells(fitted, [[(LORE, W, W_unseen)]], groups)
    return cell


def mixture_variants(K, fit, W_unseen, baselines):
    """(name, W, W_unseen): the fit's own and, as baselines, one mixture for all people and the last person's before."""
    variants = [(LORE, fit.W, W_unseen)]
    if baselines and K > 1:
        mean = fit.W.mean(0)  # of the people seen, for the unseen as well
        variants.append((POPULATION, mean.expand_as(fit.W), mean.expand_as(W_unseen)))
        variants.append((ANOTHER, fit.W.roll(1, dims=0), W_unseen.roll(1, dims=0)))
    return variants


def each_alone(groups, V_ref, seed, device):
    """A reward of each user's own, from their own pairs, with Bradley-Terry's ridge: a Cell of its own kind.

    loss of user i = Eq. 11 for x @ r_i with r_i = unit * (c_i * head + s * u_i), plus RidgeProblem's ridge over m_i.
    Only s is not their own: it is chosen for the seen users as fit_ridge does.
    """
    problem, accuracy = RidgeProblem(groups.train, V_ref, seed, device), {}
    s, _, _ = common_path(problem)
    for to_fit, to_test in (("train", "seen"), ("few_shot_train", "unseen")):
        data, test = getattr(groups, to_fit), getattr(groups, to_test)
        blocks = torch.arange(len(data.user_ids)).split(USERS_AT_ONCE)
        on_pairs, on_test = zip(*(alone(data, test, users, problem, s) for users in blocks))
        accuracy |= {to_fit: np.concatenate(on_pairs), to_test: np.concatenate(on_test)}
    users = {name: group.user_ids for name, group in groups._asdict().items()}
    return Cell(seed, None, "alone", accuracy, users, ALONE)


def alone(data, test, users, problem, s):
    """Accuracies of some users in a row: on the pairs that they are fitted on, and on `test`. 2 x (users,)"""
    (X, user), (X_test, user_test) = (
        rows_of(pairs, users, problem.X.rest) for pairs in (data, test)
    )
    weight, m, U = user_mean_weights(user), torch.bincount(user), len(users)
    owner = torch.cat([torch.arange(U), torch.arange(U).repeat_interleave(problem.d)]).to(X.device)

    def rewards(theta):
        c, u = theta[:U].unsqueeze(1), theta[U:].view(U, -1)
        return (problem.unit * (c * problem.head.T + s * u)).float()  # (U, 1) * (1, d) + (U, d)

    def loss(theta):
        nll = -F.logsigmoid(margins(X, rewards(theta), user) / LOGIT_SCALE) * weight  # (n,)
        ridge = (theta[:U] / HEAD_SPREAD).square() + theta[U:].view(U, -1).square().sum(1)
        return nll.new_zeros(U).index_add_(0, user, nll) + ridge / (2 * m)

    r = rewards(minimise(loss, problem.head.new_zeros(U * (1 + problem.d)), owner, FIRST_PASSES))
    return [
        share_right(margins(x, r, y), y, U).cpu().numpy()
        for x, y in ((X, user), (X_test, user_test))
    ]


def rows_of(pairs, users, like):
    """X (n, d) of the pairs of some users in a row, and whose they are, counted from the first of them."""
    first, last = torch.searchsorted(
        pairs.user.cpu(), torch.stack([users[0], users[-1] + 1])
    ).tolist()
    return pairs.differences(like, slice(first, last)), (pairs.user[first:last] - users[0]).to(
        like.device
    )


def summarise(cells, over="seeds"):
    """One dict per (alpha, K, model, shots): for each group its mean accuracy, interval and, with several repeats, std.

    NAME is the mean over repeats of the mean over users; NAME_interval = [low, high] holds 95 % of what it is when the
    users are drawn anew with all their pairs and repeats (bootstrap); NAME_std_OVER is over the repeats. `seen` and
    `unseen` also have NAME_gain, the difference to Bradley-Terry of the same alpha on the same users, and
    NAME_over_shuffled, to the same fit on shuffled labels or to its opposite, whichever is right more often, as coins
    could have made either; each as [mean, low, high] of paired draws.
    """
    rows, summary = {}, []
    for cell in cells:
        rows.setdefault((cell.alpha, cell.K, cell.model, cell.shots), []).append(cell)
    for key, repeats in sorted(rows.items(), key=lambda row: MODELS.index(row[0][2])):
        alpha, K, model, shots = key
        row = {"alpha": alpha, "K": K, "model": model} | ({} if shots is None else {"shots": shots})
        for name in repeats[0].accuracy:
            values, drawn = mean_accuracies(repeats, name), resampled(repeats, name)
            row |= {
                name: np.mean(values).item(),
                f"{name}_interval": np.percentile(drawn, INTERVAL).tolist(),
            }
            if len(repeats) > 1:
                row[f"{name}_std_{over}"] = np.std(values).item()
        # of the same alpha; baselines without one are compared with the first alpha's
        bradley_terry = [
            k for k in rows if k[1:] == (1, LORE, shots) and alpha in (None, k[0]) and k != key
        ][:1]
        shuffled = [k for k in rows if k == (alpha, K, SHUFFLED, shots) and model == LORE]
        for difference, others in (("gain", bradley_terry), ("over_shuffled", shuffled)):
            for other, name in itertools.product(
                others, [name for name in ("seen", "unseen") if name in row]
            ):
                theirs = (
                    rows[other]
                    if other[2] != SHUFFLED
                    else [better_side(cell, name) for cell in rows[other]]
                )
                row[f"{name}_{difference}"] = paired_difference(repeats, theirs, name)
        summary.append(row)
    return summary


def mean_accuracies(repeats, name):
    return [float(cell.accuracy[name].mean()) for cell in repeats]


def better_side(cell, name):
    """The cell, or that of the opposite rewards where these are right more often than it is."""
    accuracy = cell.accuracy[name]
    return cell._replace(accuracy={name: accuracy if accuracy.mean() >= 0.5 else 1 - accuracy})


def paired_difference(repeats, others, name):
    """[mean, low, high] of how much better the cells of one row are than those of another, over the seeds of both."""
    seeds = {cell.seed for cell in repeats} & {cell.seed for cell in others}
    ours, theirs = ([cell for cell in row if cell.seed in seeds] for row in (repeats, others))
    low, high = np.percentile(resampled(ours, name) - resampled(theirs, name), INTERVAL).tolist()
    return [
        np.mean(mean_accuracies(ours, name)).item() - np.mean(mean_accuracies(theirs, name)).item(),
        low,
        high,
    ]


def resampled(repeats, name):
    """(RESAMPLES,) mean accuracies, over repeats and then users, when the users of all repeats are drawn anew."""
    everyone = {
        user: i
        for i, user in enumerate(sorted({user for cell in repeats for user in cell.users[name]}))
    }
    present, total = np.zeros((2, len(repeats), len(everyone)))
    for r, cell in enumerate(repeats):
        place = [everyone[user] for user in cell.users[name]]
        present[r, place], total[r, place] = 1, cell.accuracy[name]
    drawn = drawn_users(len(everyone))
    counted = drawn @ present.T  # (draws, users) @ (users, repeats)
    return np.nanmean(
        np.where(counted > 0, drawn @ total.T / np.maximum(counted, 1), np.nan), axis=1
    )


@lru_cache(maxsize=4)
def drawn_users(count):
    """(RESAMPLES, users) how often each of `count` users is drawn; always the same, so that differences are paired."""
    drawn = np.random.default_rng(0).multinomial(count, np.full(count, 1 / count), RESAMPLES)
    return drawn.astype(np.float64)
