"""What an answer tells, against the Hessian of (R2) written out; nothing is asked twice."""

import math

import pytest
import torch

from interviews import Interviewee, agreement_after_each
from lore.fit.likelihood import LOGIT_SCALE
from lore.fit.mixtures import EVERYBODY, Prior
from questions import RANDOM, Pool, Posterior, mixtures_of, most_telling, rewards_by

PRIORS = {
    "mixture": Prior(torch.tensor([0.5, 0.3, 0.2]), 1.5),
    "deviation": Prior(torch.tensor([0.5, 0.3, 0.2]), EVERYBODY, 40.0),
    "both": Prior(torch.tensor([0.5, 0.3, 0.2]), 1.5, 40.0),
}
KNOWN = torch.tensor([(0, 1), (5, 4), (20, 23)])  # the last one of no pair of the pool


def pool_of(prior, d=6, pairs=12):
    torch.manual_seed(0)
    table = torch.randn(2 * pairs, d)
    return Pool(table, torch.arange(2 * pairs - 4).view(-1, 2), LOGIT_SCALE * torch.randn(d, 3), prior)


class Dense:
    """The posterior over (w along the simplex, e): gradients of all log-odds, and the Hessian."""

    def __init__(self, pool, posterior):
        prior = pool.prior
        self.B = torch.linalg.qr(torch.eye(3, 2, dtype=torch.float64) - 1 / 3)[0]
        spread = max(prior.deviation_spread, 1e-4)
        strength = min(prior.strength, 1e9)
        ridge = [strength] * 2 + [spread**-2] * pool.table.shape[1]
        self.g = self.gradients(pool, pool.pairs)
        self.H = torch.diag(torch.tensor(ridge, dtype=torch.float64))
        for g, logit in zip(self.gradients(pool, KNOWN), posterior.mixtures.logits):
            self.H += torch.sigmoid(logit) * torch.sigmoid(-logit) * torch.outer(g, g)

    def gradients(self, pool, pairs):
        x = (pool.table[pairs[:, 0]] - pool.table[pairs[:, 1]]).double()
        return torch.cat([x @ pool.V.double() @ self.B, x], 1) / LOGIT_SCALE

    def covariance(self):
        return self.g @ torch.linalg.inv(self.H) @ self.g.T


def regret(mean, variance):
    """Expected loss of who decides by the sign of the mean of a normal distribution."""
    s = variance.sqrt()
    normal = torch.distributions.Normal(0.0, 1.0)
    density = normal.log_prob(mean / s).exp()
    return s * density - mean.abs() * normal.cdf(-mean.abs() / s)


@pytest.mark.parametrize("name", PRIORS)
def test_the_posterior_is_that_of_the_hessian_and_what_is_told_lowers_the_regret(name):
    pool = pool_of(PRIORS[name])
    posterior = Posterior.of(pool, KNOWN)
    dense = Dense(pool, posterior)

    def assert_is_of_the_hessian(posterior):
        S = dense.covariance()
        assert torch.allclose(posterior.variance, S.diagonal(), rtol=1e-4, atol=1e-5)
        assert torch.allclose(posterior.covariance, S[:, pool.targets].float(), rtol=1e-4, atol=1e-4)
        return S, S.diagonal()

    S, variance = assert_is_of_the_hessian(posterior)
    rewards = rewards_by(pool, KNOWN, posterior.mixtures)
    assert torch.allclose(rewards[pool.pairs] @ torch.tensor([1.0, -1.0]).double(), posterior.mean, atol=1e-4)
    c = torch.sigmoid(posterior.mean) * torch.sigmoid(-posterior.mean)
    small = 1e-4  # of the step that an answer takes, since what is told is a slope
    lower = S.square() / (1 / c + variance).unsqueeze(1)  # (questions, pairs)
    fall = regret(posterior.mean, variance) - regret(posterior.mean, variance - small * lower)
    worth = posterior.worth(pool)
    assert worth.tolist() == pytest.approx((fall.mean(1) / small).tolist(), rel=2e-2)
    (number,), (told,) = most_telling(pool, posterior)
    assert told == worth[number] == worth.max()
    # and once it is answered as expected
    dense.H += c[number] * torch.outer(dense.g[number], dense.g[number])
    assert_is_of_the_hessian(posterior.asked(pool, number))


def test_nothing_is_asked_again_however_it_is_put():
    pool = pool_of(PRIORS["both"], d=40)
    (first,), _ = most_telling(pool, Posterior.of(pool, []))
    left, right = pool.pairs[first]
    again = torch.stack([pool.table[left], pool.table[right], pool.table[left] * 1.01, pool.table[right]])
    table = torch.cat([pool.table, again, torch.zeros(2, 40)])
    rows = len(pool.table)
    more = [[rows, rows + 1], [rows + 1, rows], [rows + 2, rows + 3], [rows + 4, rows + 5]]
    pairs = torch.cat([pool.pairs, torch.tensor(more)])
    larger = Pool(table, pairs, pool.V, pool.prior)
    for known in ([(left, right)], [(right, left)]):
        numbers, told = most_telling(larger, Posterior.of(larger, known), count=99)
        assert sorted(numbers) == [i for i in range(len(pool.pairs)) if i != first]
        assert min(told) > 0
    numbers, _ = most_telling(larger, Posterior.of(larger, []), count=99)
    assert len(numbers) == len(pool.pairs)  # one of those that are alike, and not what tells nothing
    allowed = torch.arange(len(pairs)) < 3
    numbers, _ = most_telling(larger, Posterior.of(larger, []), count=99, allowed=allowed)
    assert {*numbers} == {0, 1, 2}
    nobody = Pool(table, pairs, pool.V, Prior(torch.tensor([0.5, 0.3, 0.2]), EVERYBODY))
    assert most_telling(nobody, Posterior.of(nobody, [(left, right)]), 3) == ([], [])


def test_people_side_by_side_are_each_alone():
    pool = pool_of(PRIORS["both"])
    known = [KNOWN, KNOWN[:0], KNOWN[:1]]
    for pairs, together in zip(known, mixtures_of(pool, known)):
        (alone,) = mixtures_of(pool, [pairs])
        for name in ("W", "logits", "a"):
            assert torch.allclose(getattr(alone, name), getattr(together, name), atol=1e-4)


def test_chosen_questions_tell_more_than_random_ones_where_a_few_pairs_matter():
    """All pairs of the pool but three lie in one direction, of which one answer tells enough."""
    torch.manual_seed(0)
    d = 8
    x = torch.zeros(30, d)
    x[:, 0] = 3 + 0.01 * torch.randn(30)
    x[27:] = 3 * torch.eye(d)[1:4]
    table = torch.cat([x, torch.zeros(30, d)])
    pairs = torch.stack([torch.arange(30), torch.arange(30, 60)], 1)
    prior = Prior(torch.ones(1), EVERYBODY, LOGIT_SCALE)
    pool = Pool(table, pairs, torch.zeros(d, 1), prior)
    people = []
    for _ in range(20):
        e = torch.randn(d)
        first = ((x @ e) > 0).double()
        answers = torch.where(first.bool()[:, None], pairs, pairs.flip(1))
        people.append(Interviewee(answers, torch.randperm(30), pairs[27:], first[27:]))
    chosen = agreement_after_each(pool, people, 4, "chosen")
    by_chance = agreement_after_each(pool, people, 4, RANDOM)
    assert chosen.shape == (20, 5) and chosen[:, 4].min() == 1
    assert by_chance[:, 4].mean() < 0.9 and math.isclose(chosen[:, 0].mean(), by_chance[:, 0].mean())
