"""How much is known of a new user: draws of shots, and the accuracy that comes of each."""

from typing import NamedTuple

import torch

from lore.common import require
from lore.fit.doubt import Projected, posterior_variance, tempered
from lore.fit.evaluation import ALL_SHOTS, Cell, outcomes_of, share_right, through_others
from lore.fit.groups import shuffled_positions
from lore.fit.likelihood import LOGIT_SCALE, margins, mean_weights
from lore.fit.mixtures import Deviations


class Draws(NamedTuple):
    """Few-shot pairs of the problems, one for each trial, number of shots and user, in this order."""

    problem: torch.Tensor  # (drawn,) ascending: number of the problem that a pair is drawn for
    users: int
    row: torch.Tensor | None = None  # (drawn,) of the pairs that are drawn from; None = all
    trials: int = 1
    num_shots: tuple = (ALL_SHOTS,)

    @property
    def axes(self):
        return self.trials, len(self.num_shots), self.users

    @property
    def problems(self):
        """How many there are."""
        return self.trials * len(self.num_shots) * self.users


def draw_shots(few, num_shots, trials, seed):
    """Every user's shots in a random order per trial, of which the first s are taken: Draws.

    A shot is a pair, or the pairs that share a number in few.shot.
    InputError: more shots than a user has, a number twice, nothing to draw.
    """
    shot = torch.arange(len(few)) if few.shot is None else few.shot  # (n,)
    user = few.user.cpu()  # (n,)
    shot_user = torch.zeros(shot.max() + 1, dtype=torch.long).scatter_(0, shot, user)  # (shots,)
    check_shots(few, torch.bincount(shot_user), num_shots, trials)
    generator = torch.Generator().manual_seed(seed)
    position = shuffled_positions(shot_user, trials, generator)[:, shot]  # (trials, n)
    limits = [len(few) if shots == ALL_SHOTS else shots for shots in num_shots]
    taken = position.unsqueeze(1) < torch.tensor(limits).view(1, -1, 1)  # (trials, S, n)
    trial, s, row = taken.nonzero(as_tuple=True)
    users = len(few.user_ids)
    problem = (trial * len(num_shots) + s) * users + user[row]
    return Draws(problem, users, row, trials, tuple(num_shots))


def check_shots(few, counts, num_shots, trials):
    """counts (C,): shots of each user."""
    words = "trials and num_shots: at least one draw of at least one number of shots is needed"
    require(trials >= 1 and num_shots, words)
    require(len({*num_shots}) == len(num_shots), "num_shots holds a value twice")
    least = counts.min()
    for user, count in zip(few.user_ids, counts.tolist()):
        for shots in num_shots:
            words = f"shots = {shots}: user {user} has {count} to draw from; use 1..{least}"
            require(ALL_SHOTS <= shots <= count, words)


def drawn_terms(pairs, draws, Z):
    """`terms` of the drawn pairs, for the users that are the problems; on the device of Z."""
    if draws.row is None:
        return pairs.terms(mean_weights, Z)
    weight = mean_weights(draws.problem, pairs.votes[draws.row])
    choice = None
    if pairs.softmax:  # one that is drawn for two is two
        choices = torch.stack([draws.problem, pairs.choice[draws.row]])  # (2, drawn)
        choice = choices.unique(dim=1, return_inverse=True)[1].to(Z.device)
    return draws.problem.to(Z.device), weight.to(Z), choice


def score_draws(setting, fit, mixtures, draws, Z, Z_test, groups):
    """Cells of one fit, one for each number of shots.

    mixtures: of all problems of `draws`; Z (drawn, K), Z_test (n, K): the drawn and the test pairs
    through V.
    """
    few = groups.few_shot_train
    unseen = groups.unseen
    trials, S, C = draws.axes
    drawn, tested = draw_margins(fit.prior, mixtures, draws, Z, Z_test, groups)
    user = unseen.user.to(Z.device)
    share_drawn = share_right(drawn, draws.problem.to(Z.device), draws.problems)
    share_tested = torch.stack([share_right(margin, user, C) for margin in tested.flatten(1).T])
    accuracy = {
        "few_shot_train": share_drawn.view(trials, S, C).cpu().numpy(),
        "unseen": share_tested.view(trials, S, C).cpu().numpy(),
    }
    users = {"few_shot_train": few.user_ids, "unseen": unseen.user_ids}
    both_sides = {"unseen": through_others(groups.train, unseen, same_users=False)}
    for s, shots in enumerate(draws.num_shots):
        by_user = {name: share[:, s].mean(0) for name, share in accuracy.items()}  # (C,)
        std_trials = {name: share.mean(2).std(0)[s] for name, share in accuracy.items()}
        outcomes = {"unseen": outcomes_of(tested[:, :, s], unseen)}
        scores = {"accuracy": by_user, "std_trials": std_trials, "outcomes": outcomes}
        more = {"users": users, "both_sides": both_sides, "fit": fit}
        yield Cell(**setting._asdict(), shots=shots, **scores, **more)


def draw_margins(prior, mixtures, draws, Z, Z_test, groups):
    """x . r_i of the drawn pairs, (drawn,), and of all test pairs in each draw, (n, trials, S)."""
    few = groups.few_shot_train
    trials, S, C = draws.axes
    W = mixtures.W.to(Z)
    user = groups.unseen.user.to(Z.device)
    # of one trial and number of shots after the other -> (n, trials * S)
    tested = torch.stack([margins(Z_test, w, user) for w in W.view(-1, C, W.shape[1])], dim=1)
    drawn = margins(Z, W, draws.problem.to(Z.device))

    def by_draw(values):
        """(drawn,) -> (pairs drawn from, trials * S), 0 where a pair is not drawn."""
        table = values.new_zeros(len(few), trials * S)
        table[draws.row.to(table.device), draws.problem.to(table.device) // C] = values
        return table

    if mixtures.deviations is not None:
        drawn = LOGIT_SCALE * mixtures.logits
        a = by_draw(mixtures.a)
        tested = tested + Deviations(few, few.user.to(a.device), a).margins(groups.unseen)
    if prior is not None and prior.doubt:
        Z_few = Z.new_zeros(len(few), Z.shape[1])
        Z_few[draws.row.to(Z.device)] = Z
        votes = by_draw(few.votes[draws.row].to(Z.device))
        known = Projected.whole(few, Z_few)
        test = Projected.whole(groups.unseen, Z_test)
        variance = posterior_variance(prior, known, by_draw(drawn), votes, test)
        tested = tempered(tested, variance, prior.doubt)
    return drawn, tested.view(len(user), trials, S)
