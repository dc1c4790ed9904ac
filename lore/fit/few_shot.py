"""How much is known of a new user: draws of shots, and the accuracy that comes of each."""

import torch

from lore.common import InputError
from lore.fit.evaluation import ALL_SHOTS, Cell, outcomes_of, share_right, through_others
from lore.fit.groups import shuffled_places
from lore.fit.likelihood import LOGIT_SCALE, margins, user_mean_weights
from lore.fit.mixtures import Deviations


def draw_shots(few, num_shots, trials, seed):
    """Every user's shots in a random order per trial, of which the first s are taken.

    A shot is a pair, or the pairs that share a number in few.shot. -> row (drawn,) of `few`, problem
    (drawn,) ascending: number of the (trial, number of shots, user) that it is drawn for.
    InputError: more shots than a user has, a number twice, nothing to draw.
    """
    shot = torch.arange(len(few)) if few.shot is None else few.shot  # (n,)
    owner = few.user.cpu()  # (n,)
    shot_user = torch.zeros(shot.max() + 1, dtype=torch.long).scatter_(0, shot, owner)  # (shots,)
    check_shots(few, torch.bincount(shot_user), num_shots, trials)
    generator = torch.Generator().manual_seed(seed)
    place = shuffled_places(shot_user, trials, generator)[:, shot]  # (trials, n)
    limits = [len(few) if shots == ALL_SHOTS else shots for shots in num_shots]
    taken = place.unsqueeze(1) < torch.tensor(limits).view(1, -1, 1)  # (trials, S, n)
    trial, s, row = taken.nonzero(as_tuple=True)
    problem = (trial * len(num_shots) + s) * len(few.user_ids) + owner[row]
    return row, problem


def check_shots(few, known, num_shots, trials):
    """known (C,): shots of each user."""
    if trials < 1 or not num_shots:
        raise InputError(
            "trials and num_shots: at least one draw of at least one number of shots is needed"
        )
    if len({*num_shots}) < len(num_shots):
        raise InputError("num_shots holds a value twice")
    for user, count in zip(few.user_ids, known.tolist()):
        for shots in num_shots:
            if not ALL_SHOTS <= shots <= count:
                raise InputError(
                    f"shots = {shots}: user {user} has {count} to draw from; use 1..{known.min()}"
                )


def terms_drawn(pairs, user, row, like):
    """`terms` of the rows `row` (n,; None = all) of `pairs`, drawn for the users `user` (n,)."""
    if row is None:
        return pairs.terms(user_mean_weights, like)
    weight = user_mean_weights(user, pairs.votes[row])
    choice = None
    if pairs.softmax:  # one that is drawn for two is two
        both = torch.stack([user, pairs.choice[row]])  # (2, n)
        choice = both.unique(dim=1, return_inverse=True)[1].to(like.device)
    return user.to(like.device), weight.to(like), choice


def score_draws(setting, fit, num_shots, found, drawn, test, groups):
    """Cells of one fit, one for each number of shots.

    found: Mixtures of all problems, trials * S * C of them; drawn: Z, row and problem of the drawn
    pairs; test: Z of the test pairs.
    """
    few = groups.few_shot_train
    unseen = groups.unseen
    C = len(few.user_ids)
    S = len(num_shots)
    Z, row, problem = drawn
    problem = problem.to(Z.device)
    W = found.W.to(Z)
    known = margins(Z, W, problem) if found.deviations is None else LOGIT_SCALE * found.logits
    user = unseen.user.to(Z.device)
    tested = []
    for w in W.view(-1, C, W.shape[1]):  # of one trial and number of shots
        tested.append(margins(test, w, user))
    tested = torch.stack(tested, dim=1)  # (n, trials * S)
    if found.deviations is not None:
        draws = problem // C
        a = found.a.new_zeros(len(few), tested.shape[1])
        a[row.to(a.device), draws] = found.a
        tested = tested + Deviations(few, few.user.to(a.device), a).margins(unseen)

    share = share_right(known, problem, len(W)).view(-1, S, C)  # (trials, S, C)
    by_draw = [share_right(margin, user, C) for margin in tested.T]
    share_of_test = torch.stack(by_draw).view(-1, S, C)
    tested = tested.view(len(user), -1, S)  # (n, trials, S)
    users = {"few_shot_train": few.user_ids, "unseen": unseen.user_ids}
    both = {"few_shot_train": share.cpu().numpy(), "unseen": share_of_test.cpu().numpy()}
    both_sides = {"unseen": through_others(groups.train, unseen, same_users=False)}
    for s, shots in enumerate(num_shots):
        by_user = {name: of_all[:, s].mean(0) for name, of_all in both.items()}  # (C,)
        std_trials = {name: of_all.mean(2).std(0)[s] for name, of_all in both.items()}
        outcomes = {"unseen": outcomes_of(tested[:, :, s], unseen)}
        more = {"outcomes": outcomes, "both_sides": both_sides, "fit": fit}
        yield Cell(*setting, by_user, users, shots=shots, std_trials=std_trials, **more)
