"""How well rewards predict people's choices: each pair, then each user (Eq. 15 before its mean)."""

from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F

from lore.fit.doubt import Projected, posterior_variance, tempered
from lore.fit.groups import SEEN_USERS
from lore.fit.likelihood import LOGIT_SCALE, margins
from lore.fit.mixtures import Deviations, Fit
from lore.fit.product import project

ALL_SHOTS = 0  # as a number of shots: everything known of a user
BINS = 10  # of equal width, between .5 and 1, of the probability given to the likelier reply

LORE = ""  # the fit itself; the other variants are baselines, in the order of the table
POPULATION = "population mixture"
ANOTHER = "another user's"
SHUFFLED = "shuffled labels"
SHARED_OWN = "shared + own"
ALONE = "each user alone"
VARIANTS = (LORE, POPULATION, ANOTHER, SHUFFLED, SHARED_OWN, ALONE)
TESTED = ("seen", "unseen")  # the groups whose pairs no fit has seen


class Setting(NamedTuple):
    """What the fits of a sweep differ in."""

    seed: int
    alpha: float | None
    K: int | str


class Outcomes(NamedTuple):
    """How a fit did on the pairs of one group."""

    user: np.ndarray  # (n,) ascending
    item: np.ndarray  # (n,) Comparisons.item
    right: np.ndarray  # (n,) 1 where x . r > 0; a mean where there are several trials
    log_loss: np.ndarray  # (n,) -log P; likewise
    calibration_error: float
    choice: np.ndarray | None = None  # (n,) which choice each pair is of; None = each by itself


class Cell(NamedTuple):
    """One fit, or a baseline, with everybody's mixtures, and how it does with each user once it is scored."""

    seed: int
    alpha: float | None
    K: int | str
    accuracy: dict | None = None  # group -> (C,) array: Eq. 15 before the mean over users
    users: dict | None = None  # group -> C user ids
    variant: str = LORE
    shots: int | None = None
    std_trials: dict | None = None  # group -> std over trials of the mean over users
    fit: Fit | None = None  # V, and the mixtures and deviations of the seen users
    W_unseen: torch.Tensor | None = None  # (C', K)
    deviations_unseen: Deviations | None = None
    outcomes: dict | None = None  # group -> Outcomes
    both_sides: dict | None = None  # tested group -> items_on_both_sides
    best: bool | None = None  # whether held-out prompts speak for this rank; None = not asked
    held_out: float | None = None  # what they say of it: accuracy (adam) or gain in log P (ridge)

    @property
    def setting(self):
        return Setting(self.seed, self.alpha, self.K)

    def scored(self, margins, groups, both_sides=None):
        """The same cell with what the margins of all pairs of some groups say: {name: (n,)}."""
        scored = self._replace(accuracy={}, users={}, outcomes={}, both_sides=both_sides)
        for name, margin in margins.items():
            group = getattr(groups, name)
            share = share_right(margin, group.user.to(margin.device), len(group.user_ids))
            scored.accuracy[name] = share.cpu().numpy()
            scored.users[name] = group.user_ids
            scored.outcomes[name] = outcomes_of(margin, group)
        return scored


def fitted_cell(setting, fit, people):
    """A Fit and the Mixtures of the unseen users as a Cell, to be scored."""
    mixtures = {"W_unseen": people.W.float(), "deviations_unseen": people.deviations}
    return Cell(**setting._asdict(), fit=fit, **mixtures)


# ------------------------------------------------------------------------------------------------
# Pairs and users
# ------------------------------------------------------------------------------------------------


def share_right(margin, user, num_users):
    """Share of each user's pairs with x @ V @ w > 0, strictly; Eq. 15. (n,), (n,) -> (C,)"""
    right = (margin > 0).double()
    sums = right.new_zeros(num_users).index_add_(0, user, right)
    return sums / torch.bincount(user, minlength=num_users)


def log_losses(margin):
    """-log P of each pair. (n,)"""
    return -F.logsigmoid(margin.double() / LOGIT_SCALE)


def calibration_error(margin):
    """Expected calibration error over BINS: of all pairs, how far confidence is from being right.

    sum over bins of |share right - mean confidence| * share of the pairs, with confidence
    sigmoid(|margin| / LOGIT_SCALE) (Guo et al. 2017, eq. 3).
    """
    margin = margin.flatten().double()
    confidence = torch.sigmoid(margin.abs() / LOGIT_SCALE)
    off = (margin > 0).double() - confidence
    number = ((confidence - 0.5) * 2 * BINS).long().clamp(0, BINS - 1)
    sums = off.new_zeros(BINS).index_add_(0, number, off)
    return (sums.abs().sum() / len(margin)).item()


def outcomes_of(margin, group):
    """Outcomes of the margins of all pairs of a group: (n,), or (n, trials)."""
    by_trial = margin.view(len(margin), -1)
    right = (by_trial > 0).double().mean(1)
    log_loss = log_losses(by_trial).mean(1)
    arrays = (group.user, group.item, right, log_loss)
    choice = None if group.choice is None else group.choice.cpu().numpy()
    return Outcomes(*[array.cpu().numpy() for array in arrays], calibration_error(margin), choice)


# ------------------------------------------------------------------------------------------------
# Fits
# ------------------------------------------------------------------------------------------------


def score_cells(cells, groups):
    """The same cells, scored on all groups."""
    Zs = {}
    by_group = {}
    for name, group in groups._asdict().items():
        Zs[name] = project(group, [cell.fit.V for cell in cells])  # (n, d) @ (d, K) -> (n, K)
        is_seen = name in SEEN_USERS
        by_group[name] = []
        for cell, Z in zip(cells, Zs[name]):
            W = cell.fit.W if is_seen else cell.W_unseen
            deviations = cell.fit.deviations if is_seen else cell.deviations_unseen
            by_group[name].append(person_margins(Z, W, deviations, group))
    of_few = zip(Zs["few_shot_train"], by_group["few_shot_train"])
    of_unseen = zip(Zs["unseen"], by_group["unseen"])
    by_group["unseen"] = []
    for cell, known, (Z, margin) in zip(cells, of_few, of_unseen):
        by_group["unseen"].append(allowing_for_doubt(cell.fit.prior, known, Z, margin, groups))
    both_sides = items_on_both_sides(groups)
    scored = []
    for cell, *margins_of_cell in zip(cells, *by_group.values()):
        scored.append(cell.scored(dict(zip(by_group, margins_of_cell)), groups, both_sides))
    return scored


def person_margins(Z, W, deviations, group):
    """x . r_i of each pair of a group, r_i = V w_i + e_i; without deviations e_i = 0. (n,)"""
    margin = margins(Z, W, group.user.to(Z.device))
    return margin if deviations is None else margin + deviations.margins(group)


def allowing_for_doubt(prior, known, Z, margin, groups):
    """Margins (n,) of the unseen users' pairs, smaller where little is known of them, as the prior says.

    known: Z (m, K) and margins (m,) of their few-shot pairs; Z (n, K).
    """
    if prior is None or not prior.doubt:
        return margin
    Z_known, margin_known = known
    few = Projected.whole(groups.few_shot_train, Z_known)
    votes = groups.few_shot_train.votes.to(margin.device).unsqueeze(1)
    test = Projected.whole(groups.unseen, Z)
    variance = posterior_variance(prior, few, margin_known.unsqueeze(1), votes, test)
    return tempered(margin, variance.flatten(), prior.doubt)


def items_on_both_sides(groups):
    """{tested group: [items of it that V was fitted to through other users, all its items]}."""
    return {
        "seen": through_others(groups.train, groups.seen, same_users=True),
        "unseen": through_others(groups.train, groups.unseen, same_users=False),
    }


def through_others(train, test, same_users):
    """[items of `test` that users of `train` other than the tested one have, all items of `test`]."""
    items, number = train.item.unique(return_inverse=True)
    C = len(train.user_ids)
    item_and_user = (number * C + train.user.cpu()).unique()  # as one number
    people = torch.bincount(item_and_user // C, minlength=len(items))  # who were asked about each
    number = torch.searchsorted(items, test.item).clamp_max(len(items) - 1)
    asked = torch.where(items[number] == test.item, people[number], 0)
    if same_users:
        asked = asked - torch.isin(number * C + test.user.cpu(), item_and_user).long()
    return [len(test.item[asked > 0].unique()), len(test.item.unique())]


def best_cells(planted, groups, seed):
    """The planted rewards and mixtures themselves (Planted): nobody can know better. [] of real people."""
    if planted is None:
        return []
    W = torch.stack([planted.W[user] for user in groups.train.user_ids])  # (N, K)
    W_unseen = torch.stack([planted.W[user] for user in groups.unseen.user_ids])
    best = Cell(seed, None, "best", fit=Fit(planted.V, W), W_unseen=W_unseen)
    return score_cells([best], groups)
