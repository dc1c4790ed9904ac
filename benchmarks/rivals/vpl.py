"""VPL over frozen embeddings: a person is a latent z, inferred from known pairs by an encoder; no fit for new people.

    each known pair [e_c; e_r] -> MLP of 3 x 512, one self-attention over the person's pairs, mean -> mu, log variance,
    both cut to +-1;  z = mu + std eps, then of length sqrt(512);  r_z(e) = MLP [e; z]
    mean of -log P + beta KL(q || N(0, I)), beta on a cosine from 0, AdamW, cosine with warm-up, 2 epochs

As published, z = mu, not of that length, when people are tested: a mismatch of theirs.
"""

import itertools
import math
from functools import partial

import torch
from measure import Clock
from torch import nn

from rivals import bradley_terry, replies, rival_of, rows_by_user

WIDTH = 512
CONTEXT = 8
BATCH = 32
EPOCHS = 2
RATE = 1e-4
DECAY = 1e-3
WARM_UP = 0.03
BETA = 0.01
CYCLE = 10_000  # steps in which beta grows


def layers(*widths):
    parts = []
    for before, after in itertools.pairwise(widths):
        parts += [nn.Linear(before, after), nn.LeakyReLU(0.2)]
    return parts


class Vpl(nn.Module):
    def __init__(self, d):
        super().__init__()
        self.pair = nn.Sequential(*layers(2 * d, WIDTH, WIDTH, WIDTH)[:-1])
        self.q, self.k, self.v = (nn.Linear(WIDTH, WIDTH) for _ in range(3))
        self.mu = nn.Linear(WIDTH, WIDTH)
        self.logvar = nn.Linear(WIDTH, WIDTH)
        self.reward = nn.Sequential(*layers(d + WIDTH, WIDTH, WIDTH), nn.Linear(WIDTH, 1))

    def encode(self, pairs):
        """[e_c; e_r] of known pairs, (people, m, 2d) -> mu, log variance, (people, WIDTH) each."""
        h = self.pair(pairs)
        weights = (self.q(h) @ self.k(h).mT / math.sqrt(WIDTH)).softmax(-1)  # (people, m, m)
        h = (weights @ self.v(h)).mean(1)
        return self.mu(h).clamp(-1, 1), self.logvar(h).clamp(-1, 1)

    def log_odds(self, chosen, rejected, z):
        reward = lambda e: self.reward(torch.cat([e, z], 1)).squeeze(1)
        return reward(chosen) - reward(rejected)


def divergence(mu, logvar):
    """KL(N(mu, exp(logvar)) || N(0, I)), mean over people."""
    return 0.5 * (mu.square() + logvar.exp() - logvar - 1).sum(1).mean()


def fit(groups, head, seed):
    clock = Clock()
    torch.manual_seed(seed)
    chosen, rejected = replies(groups.train)
    pairs = torch.cat([chosen, rejected], 1)
    user = groups.train.user
    counts = groups.train.counts
    first = counts.cumsum(0) - counts
    model = Vpl(chosen.shape[1])
    adam = torch.optim.AdamW(model.parameters(), lr=RATE, weight_decay=DECAY)
    total = EPOCHS * math.ceil(len(user) / BATCH)
    number = 0
    for _ in range(EPOCHS):
        for rows in torch.randperm(len(user)).split(BATCH):
            whose = user[rows]
            context = (torch.rand(len(rows), CONTEXT) * counts[whose, None]).long()
            mu, logvar = model.encode(pairs[first[whose, None] + context])
            z = mu + (logvar / 2).exp() * torch.randn_like(mu)
            z = math.sqrt(WIDTH) * nn.functional.normalize(z, dim=1)
            beta = BETA * (1 - math.cos(math.pi * min(1, number / CYCLE))) / 2
            loss = bradley_terry(model.log_odds(chosen[rows], rejected[rows], z))
            for part in adam.param_groups:
                part["lr"] = RATE * share(number, total)
            adam.zero_grad()
            (loss + beta * divergence(mu, logvar)).backward()
            adam.step()
            number += 1
    seconds = clock()
    of_group = lambda group, z: model.log_odds(*replies(group), z[group.user])
    z = everybody(model, groups.train)
    return rival_of("VPL", groups, of_group, z, partial(everybody, model), seconds, WIDTH)


def share(number, total):
    """Of the learning rate: linear warm-up, then a cosine."""
    warm = WARM_UP * total
    if number < warm:
        return (number + 1) / (warm + 1)
    return 0.5 * (1 + math.cos(math.pi * (number - warm) / max(1, total - warm)))


@torch.no_grad()
def everybody(model, group):
    """mu of each person's known pairs. (C, WIDTH)"""
    pairs = torch.cat(replies(group), 1)
    return torch.cat([model.encode(pairs[rows][None])[0] for rows in rows_by_user(group.user)])
