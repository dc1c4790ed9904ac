"""How much is known of a new user: draws of shots, and the accuracy that comes of each."""

import torch

from lore.common import InputError
from lore.comparisons import shuffled_places
from lore.evaluation import ALL_SHOTS, Cell, share_right
from lore.likelihood import margins


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


def score_draws(setting, fit, num_shots, W, drawn, test, groups):
    """Cells of one fit, one for each number of shots.

    W: (trials * S * C, K) mixtures of all problems; drawn: Z and problem of the drawn pairs;
    test: Z of the test pairs; groups: of the draws and of the test.
    """
    few, unseen = groups
    shape = (-1, len(num_shots), len(few.user_ids))  # (trials, S, C)
    Z, problem = drawn
    problem = problem.to(Z.device)
    accuracy = {"few_shot_train": share_right(margins(Z, W, problem), problem, len(W))}
    user = unseen.user.to(Z.device)
    on_test = []
    for w in W.view(-1, len(unseen.user_ids), W.shape[1]):  # of one trial and number of shots
        on_test.append(share_right(margins(test, w, user), user, len(w)))
    accuracy["unseen"] = torch.cat(on_test)
    users = {"few_shot_train": few.user_ids, "unseen": unseen.user_ids}
    values = {name: share.view(shape).cpu().numpy() for name, share in accuracy.items()}
    for s, shots in enumerate(num_shots):
        by_user = {name: of_all[:, s].mean(0) for name, of_all in values.items()}  # (C,)
        std_trials = {name: of_all.mean(2).std(0)[s] for name, of_all in values.items()}
        yield Cell(*setting, by_user, users, shots=shots, std_trials=std_trials, fit=fit)
