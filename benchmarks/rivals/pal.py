"""PAL-A: r_u(e) = -|f(e) - f(Q' softmax(w_u))|^2, people between prototypes in the space of embeddings.

f: d -> 512 -> 512 with GELU; Q (B, d), rows of unit length. Adam: f and Q at 1e-4 with weight decay .01, w at 5e-3.
New people: w alone, AdamW. Departure: batches of 4 pairs where there are few, larger ones above STEPS steps an epoch.
"""

from functools import partial

import torch
from measure import Clock
from torch import nn

from rivals import bradley_terry, replies, rival_of

B = 2
WIDTH = 512
EPOCHS = 10
BATCH = 4
STEPS = 400  # an epoch, at most
RATE = 1e-4
DECAY = 0.01
PERSON_RATE = 5e-3
NEW_STEPS = 200


class Pal(nn.Module):
    def __init__(self, d, people):
        super().__init__()
        self.f = nn.Sequential(nn.Linear(d, WIDTH), nn.GELU(), nn.Linear(WIDTH, WIDTH))
        self.Q = nn.Parameter(nn.functional.normalize(torch.randn(B, d), dim=1))
        self.w = nn.Parameter(torch.randn(people, B))

    def log_odds(self, chosen, rejected, w):
        """r_u(e_c) - r_u(e_r), people as logits w (n, B). (n,)"""
        ideal = self.f(w.softmax(1) @ self.Q)  # (n, B) @ (B, d)
        return distance(self.f(rejected), ideal) - distance(self.f(chosen), ideal)


def distance(point, ideal):
    return (point - ideal).square().sum(1)


def fit(groups, head, seed):
    clock = Clock()
    torch.manual_seed(seed)
    chosen, rejected = replies(groups.train)
    user = groups.train.user
    model = Pal(chosen.shape[1], len(groups.train.user_ids))
    shared = {"params": [*model.f.parameters(), model.Q], "lr": RATE, "weight_decay": DECAY}
    adam = torch.optim.Adam([shared, {"params": [model.w], "lr": PERSON_RATE}])
    batch = max(BATCH, -(-len(user) // STEPS))
    for _ in range(EPOCHS):
        for rows in torch.randperm(len(user)).split(batch):
            adam.zero_grad()
            odds = model.log_odds(chosen[rows], rejected[rows], model.w[user[rows]])
            bradley_terry(odds).backward()
            adam.step()
    of_group = lambda group, w: model.log_odds(*replies(group), w[group.user])
    return rival_of("PAL", groups, of_group, model.w, partial(new_people, model), clock(), B)


def new_people(model, few):
    """w (C, B) by NEW_STEPS over everybody's pairs at once; each person's path is their own."""
    chosen, rejected = replies(few)
    with torch.no_grad():
        chosen = model.f(chosen)
        rejected = model.f(rejected)
    w = torch.randn(len(few.user_ids), B).requires_grad_()
    m = few.counts[few.user]
    adam = torch.optim.AdamW([w], lr=PERSON_RATE)
    for _ in range(NEW_STEPS):
        ideal = model.f(w.softmax(1) @ model.Q)[few.user]
        odds = distance(rejected, ideal) - distance(chosen, ideal)
        adam.zero_grad()
        (-nn.functional.logsigmoid(odds) / m).sum().backward()
        adam.step()
    return w.detach()
