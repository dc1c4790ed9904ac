"""Which pairs to ask a new person about: D-optimal design from the Hessian of (R2), and a trial of it."""

from typing import NamedTuple

import torch

from lore.likelihood import LOGIT_SCALE
from lore.mixtures import solve_mixtures

WAYS = ("chosen", "random")  # how the questions of the trial come about
SURE = 1.96  # standard errors of a difference that is called one


class Trial(NamedTuple):
    """Accuracy on other pairs of planted people after 0, 1, .. N questions."""

    right: dict  # way -> (trials, N + 1)
    best: torch.Tensor  # (trials,) of who knows the planted mixture

    def rows(self):
        """One dict per number of questions: mean of each way and its standard error."""
        rows = []
        for asked in range(self.right["random"].shape[1]):
            row = {"questions": asked, "best": self.best.mean().item()}
            for way in WAYS:
                row[way] = self.right[way][:, asked].mean().item()
                row[f"{way}_error"] = standard_error(self.right[way][:, asked])
            rows.append(row)
        return rows

    def difference(self):
        """[mean, low, high] of chosen minus random questions after all of them."""
        gained = (self.right["chosen"] - self.right["random"])[:, -1]
        half = SURE * standard_error(gained)
        return [gained.mean().item(), gained.mean().item() - half, gained.mean().item() + half]


def standard_error(values):
    return (values.std() / len(values) ** 0.5).item()


def most_telling(z, prior, count):
    """The `count` pairs whose answers raise log det of the posterior's Hessian most, one after the other.

    z (pairs, K): log-odds of each pair under each basis reward. The Hessian of (R2) along the simplex,
    at the population's mixture, is strength * I + sum of p (1 - p) z z' over the pairs asked: a person's
    answers do not enter, so that all questions can be chosen beforehand. -> numbers, what each adds.
    """
    K = z.shape[1]
    B = torch.linalg.qr(torch.eye(K, K - 1, dtype=torch.float64) - 1 / K)[0]  # (K, K - 1)
    p = torch.sigmoid(z.double() @ prior.mean.double())  # (pairs, K) @ (K,)
    x = (p * (1 - p)).sqrt().unsqueeze(1) * (z.double() @ B)  # (pairs, K - 1)
    covariance = torch.eye(K - 1, dtype=torch.float64) / prior.strength
    free = torch.ones(len(z), dtype=torch.bool)
    numbers = []
    added = []
    for _ in range(min(count, len(z))):
        told = torch.log1p(((x @ covariance) * x).sum(1))  # determinant lemma
        number = int(torch.where(free, told, -1).argmax())
        seen = covariance @ x[number]
        covariance = covariance - torch.outer(seen, seen) / (1 + x[number] @ seen)
        free[number] = False
        numbers.append(number)
        added.append(told[number].item())
    return numbers, added


def try_out(z, prior, W, count, trials, seed):
    """Planted people mix the basis as W (people, K) do and answer questions of half a pool -> Trial.

    Each trial draws a person, a half of the pool to ask about, the random questions and the answers; on
    the other half, right is the probability that the planted person agrees with the prediction.
    """
    generator = torch.Generator().manual_seed(seed)
    z = z.double()
    W = W.double()
    fits = {way: ([], []) for way in WAYS}
    people = torch.randint(len(W), (trials,), generator=generator)
    tests = []
    for w in W[people]:
        order = torch.randperm(len(z), generator=generator)
        ask, test = order.tensor_split(2)
        tests.append(test)
        says_first = torch.rand(len(z), generator=generator) < torch.sigmoid(z @ w).float()
        signed = torch.where(says_first, 1.0, -1.0).unsqueeze(1) * z  # as chosen minus rejected
        chosen, _ = most_telling(z[ask], prior, count)
        for way, asked in (("chosen", ask[chosen]), ("random", ask[: len(chosen)])):
            for size in range(1, len(chosen) + 1):
                fits[way][0].append(signed[asked[:size]])
                fits[way][1].append(size)
    right = {}
    for way, (answers, sizes) in fits.items():
        user = torch.arange(len(sizes)).repeat_interleave(torch.tensor(sizes))
        found = solve_mixtures(torch.cat(answers) * LOGIT_SCALE, user, len(sizes), prior).W
        found = found.view(trials, -1, z.shape[1])
        start = prior.mean.double().expand(trials, 1, -1)  # before any question
        found = torch.cat([start, found], dim=1)  # (trials, N + 1, K)
        right[way] = torch.stack([*map(agreement, found, W[people], (z[test] for test in tests))])
    best = [agreement(w[None], w, z[test])[0] for w, test in zip(W[people], tests)]
    return Trial(right, torch.stack(best))


def agreement(found, w, z):
    """Mean probability that a person w (K,) agrees with predictions by found (fits, K). (fits,)"""
    first = torch.sigmoid(z @ w)  # (pairs, K) @ (K,)
    says_first = z @ found.T > 0  # (pairs, fits)
    return torch.where(says_first, first.unsqueeze(1), 1 - first.unsqueeze(1)).mean(0)
