"""PReF: r_u(e) = lam_u . A e, started from a low-rank completion of who preferred what, then by maximum likelihood.

    start       matrix of pairs and people, +-1/2 where somebody chose, 0 elsewhere; ROUNDS of {rank-RANK
                reconstruction by SVD, the known put back, cut to +-1/2};
                then lam = V sqrt(S), features of a pair = U sqrt(S)
    likelihood  mean of -log P + FEATURES mean |A x|, by SGD
    new person  lam ~ N(0, 1), unregularised likelihood, A frozen, by SGD

Departures: the matrix is centred at 0, which the published one (at 1/2) is not; A starts from the least squares
that their 50 iterations towards U sqrt(S) aim at. Needs pairs that several people have judged.
"""

import torch
from measure import Clock

from lore.common import require
from rivals import bradley_terry, differences, rival_of

J = 6
RANK = 100
ROUNDS = 10
FEATURES = 0.02
RATE = 1e-3
STEPS = 500
BATCH = 64  # 32 accumulations of 2
NEW_RATE = 0.01
NEW_STEPS = 1000
OVERLAP = 1.5  # people per pair, below which the start means nothing


def log_odds(X, user, A, lam):
    return ((X @ A) * lam[user]).sum(1)  # (n, d) @ (d, J)


def completed(pair, sign, user, pairs, people):
    """(pairs, people) preferences of the first reply of each pair, between -1/2 and 1/2."""
    judged = torch.zeros(pairs, people, dtype=torch.bool)
    judged[pair, user] = True
    given = torch.zeros(pairs, people)
    given[pair, user] = sign / 2
    M = given
    for _ in range(ROUNDS):
        U, S, Vh = torch.linalg.svd(M, full_matrices=False)
        M = (U[:, :RANK] * S[:RANK]) @ Vh[:RANK]
        M = torch.where(judged, given, M).clamp(-0.5, 0.5)
    return M


def pairs_of(group):
    """Number of each row's pair, and +1 where its reply of the smaller row number was preferred. (n,), (n,)"""
    require(group.chosen is not None, "PReF: which pairs are the same is not known")
    pair = torch.stack([group.chosen, group.rejected]).sort(0).values
    number = pair.unique(dim=1, return_inverse=True)[1]
    return number, torch.where(group.chosen < group.rejected, 1.0, -1.0)


def start(group, X, user):
    """A (d, J), lam (C, J)."""
    pair, sign = pairs_of(group)
    count = int(pair.max()) + 1
    each = len(pair) / count
    few = f"PReF: {each:.1f} people judged each pair: no overlap to start from"
    require(each >= OVERLAP, few)
    M = completed(pair, sign, user, count, len(group.user_ids))
    U, S, Vh = torch.linalg.svd(M, full_matrices=False)
    root = S[:J].sqrt()
    target = U[:, :J] * root  # (pairs, J)
    first = torch.zeros(count, X.shape[1]).index_copy(0, pair, X * sign[:, None])
    ridge = 1e-3 * first.square().mean() * len(first)
    gram = first.T @ first + ridge * torch.eye(first.shape[1])
    return torch.linalg.solve(gram, first.T @ target), Vh[:J].T * root


def fit(groups, head, seed):
    clock = Clock()
    generator = torch.Generator().manual_seed(seed)
    X, user = differences(groups.train)
    A, lam = start(groups.train, X, user)
    A = A.contiguous().requires_grad_()
    lam = lam.contiguous().requires_grad_()
    sgd = torch.optim.SGD([A, lam], lr=RATE)
    for _ in range(STEPS):
        rows = torch.randint(len(X), (BATCH,), generator=generator)
        sgd.zero_grad()
        features = (X[rows] @ A).norm(dim=1).mean()
        (bradley_terry(log_odds(X[rows], user[rows], A, lam)) + FEATURES * features).backward()
        sgd.step()
    A = A.detach()
    of_group = lambda group, lam: log_odds(*differences(group), A, lam)
    of_few = lambda few: new_people(few, A, generator)
    return rival_of("PReF", groups, of_group, lam.detach(), of_few, clock(), J)


def new_people(few, A, generator):
    """lam (C, J) of the mean of each person's -log P, by NEW_STEPS of gradient descent."""
    X, user = differences(few)
    Z = X @ A  # (m, d) @ (d, J)
    lam = torch.randn(len(few.user_ids), J, generator=generator)
    m = few.counts[user]
    for _ in range(NEW_STEPS):
        p = torch.sigmoid(-(Z * lam[user]).sum(1)) / m
        lam = lam.index_add(0, user, NEW_RATE * p[:, None] * Z)
    return lam
