"""Prompts held out of a fit, and what they say of it: the evidence on which the ridge solver chooses."""

import torch

from lore.common import require
from lore.fit.groups import shuffled_positions
from lore.processes import agreed

FOLDS = 3  # of the prompts
FEW_PAIRS = 10  # known of a seen user who stands for a new one
ASKED = 300  # people, at most, by whom o and the strength are chosen
ASKED_PAIRS = 100  # of each of them, at most
SURE = 1.5  # standard errors by which held-out prompts must speak for something


class Folds:
    """Which pairs each fit of a search leaves out: a share of the prompts, with all their pairs."""

    def __init__(self, train, seed, device):
        self.prompt = train.prompts().to(device)  # (n,)
        generator = torch.Generator().manual_seed(seed)
        order = torch.randperm(int(self.prompt.max()) + 1, generator=generator).to(device)
        words = f"to choose a ridge, at least {FOLDS} are needed"
        require(len(order) >= FOLDS, f"{len(order)} different prompts to train on; {words}")
        self.number = order[self.prompt] % FOLDS  # (n,) of the fit that leaves a pair out
        self.fitted = [self.number != fold for fold in range(FOLDS)]  # masks (n,)
        user = train.user.to(device)
        self.few = []  # of the fitted ones, those by which seen people pose as new: masks (n,)
        choice = None if train.choice is None else train.choice.to(device)
        for fitted in self.fitted:
            self.few.append(some_of_each(user, fitted, FEW_PAIRS, generator, choice))
        people = torch.randperm(len(train.user_ids), generator=generator)[:ASKED].to(device)
        asked = torch.isin(user, people)
        of_choice = 1 if choice is None else len(choice) / len(choice.unique())  # pairs
        most = max(1, ASKED_PAIRS // of_choice)
        self.asked = some_of_each(user, asked, most, generator, choice)  # mask (n,)

    def held_out(self, by_fold):
        """What each fold says of all pairs, FOLDS x (n,) -> what is said by who left it out. (n,)"""
        return torch.stack(by_fold).gather(0, self.number.unsqueeze(0))[0]


def some_of_each(user, among, most, generator, choice=None):
    """Of the pairs of a mask (n,), so many of each user at most, drawn at random: a mask (n,).

    choice (n,): so many choices, with all their pairs.
    """
    rows = among.nonzero().flatten()
    unit = torch.arange(len(rows))
    if choice is not None:
        unit = choice[rows].unique(return_inverse=True)[1].cpu()
    owner = torch.zeros(int(unit.max()) + 1, dtype=torch.long).scatter_(0, unit, user[rows].cpu())
    positions = shuffled_positions(owner, 1, generator)[0][unit].to(user.device)
    drawn = torch.zeros_like(among)
    drawn[rows[positions < most]] = True
    return drawn


def mean_gain(gained, weight, clusters):
    """By how much log P of held-out pairs is larger in the weighted mean, and its standard error.

    gained, weight: (n,); clusters: numberings (n,) of what was drawn at random, such as prompts and
    users; the largest of their errors is returned.
    """
    share = weight / weight.sum()
    gained = torch.where(weight > 0, gained, 0)
    mean = (share * gained).sum()
    off = share * (gained - mean)
    errors = []
    for drawn in clusters:
        sums = off.new_zeros(len(drawn)).index_add_(0, drawn, off)
        errors.append(sums.norm().item())
    return agreed((mean.item(), max(errors)))


def is_clear(gain, sure=SURE):
    mean, error = gain
    return mean > sure * error


def surest(gains):
    """The largest of some (gain, standard error) that are clear of none; None where none is."""
    clear = [i for i, gain in enumerate(gains) if is_clear(gain)]
    return max(clear, key=lambda i: gains[i][0], default=None)
