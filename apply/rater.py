"""Somebody who answers questions on a page: what the basis makes of the answers so far, and what to ask next."""

import random
from typing import NamedTuple

import pandas as pd
import torch

from leave_one_out import adapt
from lore.fit.comparisons import Comparisons, numbers_of
from lore.fit.likelihood import LOGIT_SCALE
from lore.fit.mixtures import EVERYBODY, solve_mixtures
from lore.text.input_rows import judgement

CHOSEN = "chosen"
RANDOM = "random"
BOTH = "both"
RULES = (CHOSEN, RANDOM, BOTH)  # how questions come about; both: a coin says it of each, and nobody is told


class Question(NamedTuple):
    """A pair as it is put to somebody."""

    pair: int  # of the pool
    turned: bool  # whether its second reply stands left
    rule: str


class Rater:
    """A person of a session.

    rows: theirs of SESSIONS, in the order of their answers; unsure: their "cannot say".
    chosen, rejected (n,): rows of the table; products (rows, n): table @ x of each answer, where people
    may have something of their own.
    """

    def __init__(self, user, pool, basis, rows, unsure, rule, seed):
        self.user = user
        self.pool = pool
        self.basis = basis
        self.rule = rule
        self.seed = seed
        self.rows = []
        self.unsure = [*unsure]
        self.prompt_ids = []
        self.chosen = torch.empty(0, dtype=torch.long)
        self.rejected = torch.empty(0, dtype=torch.long)
        self.products = pool.table.new_empty(len(pool.table), 0)
        self.learn(rows)

    def learn(self, rows):
        """Take in further answers."""
        pairs = []
        for row in rows:
            said = judgement(f"an answer of {self.user}", row)
            pairs.append(self.pool.rows_of([said.chosen, said.rejected]))
            self.prompt_ids.append(said.prompt_id)
        self.rows += rows
        chosen, rejected = torch.tensor(pairs, dtype=torch.long).view(-1, 2).T
        self.chosen = torch.cat([self.chosen, chosen])
        self.rejected = torch.cat([self.rejected, rejected])
        if self.basis.deviation_spread:
            table = self.pool.table
            X = table[chosen] - table[rejected]  # (new, d)
            self.products = torch.cat([self.products, table @ X.T], 1)  # (rows, d) @ (d, new)
        self.advance()

    def pass_over(self, row):
        """Take in a "cannot say"."""
        self.unsure.append(row)
        self.advance()

    def advance(self):
        """Fit the person anew, and choose the next question."""
        everything = torch.arange(len(self.rows))
        self.fit = self.fitted(everything)
        self.rewards = self.rewards_by(self.fit, everything)  # (rows,)
        self.question = self.next_question()

    @property
    def turn(self):
        """How many questions they have dealt with."""
        return len(self.rows) + len(self.unsure)

    # ------------------------------------------------------------------------------------ what is learned ---

    def comparisons(self, numbers):
        """Some of the answers."""
        prompt = numbers_of(pd.Series(self.prompt_ids))[numbers]
        user = torch.zeros(len(numbers), dtype=torch.long)
        sides = self.chosen[numbers], self.rejected[numbers]
        return Comparisons(self.pool.table, user, (self.user,), *sides, prompt=prompt)

    def fitted(self, numbers):
        """Mixtures of one person who is known by some of the answers."""
        pairs = self.comparisons(numbers) if len(numbers) else None
        scores = self.pool.scores
        Z = (scores[self.chosen[numbers]] - scores[self.rejected[numbers]]) * LOGIT_SCALE  # (n, K)
        user = torch.zeros(len(numbers), dtype=torch.long)
        return solve_mixtures(Z, user, 1, self.basis.prior, pairs, spread=True)

    def rewards_by(self, fit, numbers):
        """What each reply is worth to the person of a fit to some of the answers, in log-odds. (rows,)"""
        rewards = self.pool.scores @ fit.W[0]  # (rows, K) @ (K,)
        if self.products.shape[1]:
            own = self.products[:, numbers] @ fit.a.float()  # (rows, n) @ (n,)
            rewards = rewards + own.double() / LOGIT_SCALE
        return rewards

    def foretold(self):
        """Leave-one-out, as adapt.py has it: {right, population, of, word}, None without an answer."""
        if not self.rows:
            return None
        count = len(self.rows)
        newcomers = adapt(self.basis, self.comparisons(torch.arange(count)))
        right = round(count * float(newcomers.accuracy[0]))
        population = round(count * float(newcomers.population[0]))
        return {"right": right, "population": population, "of": count, "word": newcomers.word(0)}

    def prompts_in_order(self):
        """Numbers of the prompts, those first where their best reply gains most over the population's, and
        these gains in log-odds."""
        pool = self.pool
        best = self.rewards.new_full((len(pool.prompts),), -torch.inf)
        best.scatter_reduce_(0, pool.owner, self.rewards[pool.candidates], "amax")
        gains = best - self.rewards[pool.populations_best]  # (prompts,)
        gains, order = gains.sort(descending=True, stable=True)
        return order.tolist(), gains.tolist()

    # ----------------------------------------------------------------------------------- what is asked next ---

    def free(self):
        """Whether each pair may be asked about: none twice, no prompt again before all others. (P,)"""
        pool = self.pool
        free = torch.ones(len(pool.pairs), dtype=torch.bool)
        for pair in zip(self.chosen.tolist(), self.rejected.tolist()):
            number = pool.number.get(frozenset(pair))
            if number is not None:
                free[number] = False
        for row in self.unsure:
            number = pool.number.get(frozenset(row_numbers(pool, row)))
            if number is not None:
                free[number] = False
        touched = torch.zeros(len(pool.prompts), dtype=torch.bool)
        touched[pool.prompt[~free]] = True
        fresh = free & ~touched[pool.prompt]
        return fresh if fresh.any() else free

    def next_question(self):
        """The same in every process for the same answers; None where all has been asked."""
        free = self.free().nonzero().flatten()
        if not len(free):
            return None
        coin = random.Random(f"{self.seed} {self.user} {self.turn}")
        turned = coin.random() < 0.5
        rule = coin.choice((CHOSEN, RANDOM)) if self.rule == BOTH else self.rule
        if rule == CHOSEN:
            pair = free[self.telling()[free].argmax()]
        else:
            pair = free[coin.randrange(len(free))]
        return Question(int(pair), turned, rule)

    def telling(self):
        """By how much an answer to each pair raises log det of what is known. (P,)

        Where two rules are compared, the chosen questions know of answers to such questions alone.
        """
        numbers = torch.arange(len(self.rows))
        fit = self.fit
        rewards = self.rewards
        if self.rule == BOTH:
            numbers = torch.tensor([n for n, row in enumerate(self.rows) if row["rule"] == CHOSEN]).long()
            fit = self.fitted(numbers)
            rewards = self.rewards_by(fit, numbers)
        prior = self.basis.prior
        left, right = self.pool.pairs.T
        asked = torch.stack([self.chosen[numbers], self.rejected[numbers]])
        z = self.pool.z - self.pool.z.mean(1, keepdim=True)  # along the simplex
        scores = self.pool.scores[asked[0]] - self.pool.scores[asked[1]]
        Z = scores - scores.mean(1, keepdim=True)  # (n, K)
        shared = 0 if prior.strength == EVERYBODY else 1 / prior.strength
        variance = shared * z.square().sum(1)  # (P,)
        across = shared * z @ Z.T  # (P, K) @ (K, n)
        within = shared * Z @ Z.T
        if self.pool.square is not None:
            unit = (prior.deviation_spread / LOGIT_SCALE) ** 2
            products = self.products[:, numbers].double()
            variance = variance + unit * self.pool.square
            across = across + unit * (products[left] - products[right])
            within = within + unit * (products[asked[0]] - products[asked[1]])
        p = torch.sigmoid(fit.logits)
        noise = torch.diag(1 / (p * (1 - p)).clamp_min(1e-9))
        L = torch.linalg.cholesky(within + noise)
        seen = torch.linalg.solve_triangular(L, across.T, upper=False)  # (n, P)
        variance = (variance - seen.square().sum(0)).clamp_min(0)
        p = torch.sigmoid(rewards[left] - rewards[right])
        return torch.log1p(p * (1 - p) * variance)


def row_numbers(pool, row):
    """Rows of the table of a "cannot say"."""
    said = judgement("an answer that nobody had", row | {"chosen": row["left"], "rejected": row["right"]})
    return pool.rows_of([said.chosen, said.rejected])
