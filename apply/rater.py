"""Somebody who answers questions on a page: what the basis makes of the answers so far, and what to ask next."""

import random
from typing import NamedTuple

import pandas as pd
import torch

from leave_one_out import adapt
from lore.fit.comparisons import Comparisons, numbers_of
from lore.text.input_rows import judgement
from questions import CHOSEN, RANDOM, WAYS, Posterior, most_telling, rewards_by, rows_of_pairs

BOTH = "both"
RULES = (*WAYS, BOTH)  # how questions come about; both: a coin says it of each, and nobody is told


class Question(NamedTuple):
    """A pair as it is put to somebody."""

    pair: int  # of the pool
    turned: bool  # whether its second reply stands left
    rule: str


class Rater:
    """A person of a session.

    rows: theirs of SESSIONS, in the order of their answers; unsure: their "cannot say".
    known (n, 2): rows of the pool's table, the preferred reply first; rewards (rows,): what each reply of
    the pool is worth to them, in log-odds; question: what is asked next, None where everything has been.
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
        self.known = rows_of_pairs([])
        self.learn(rows)

    def learn(self, rows):
        """Take in further answers."""
        pairs = []
        for row in rows:
            said = judgement(f"an answer of {self.user}", row)
            pairs.append(self.pool.rows_of([said.chosen, said.rejected]))
            self.prompt_ids.append(said.prompt_id)
        self.rows += rows
        self.known = torch.cat([self.known, rows_of_pairs(pairs)])
        self.advance()

    def pass_over(self, row):
        """Take in a "cannot say"."""
        self.unsure.append(row)
        self.advance()

    def advance(self):
        """Fit the person anew, and choose the next question."""
        self.posterior = Posterior.of(self.pool, self.known)
        self.fit = self.posterior.mixtures
        self.rewards = rewards_by(self.pool, self.known, self.fit)
        self.question = self.next_question()

    @property
    def turn(self):
        """How many questions they have dealt with."""
        return len(self.rows) + len(self.unsure)

    @property
    def last(self):
        """The row of the last question that they have dealt with."""
        return max((*self.rows, *self.unsure), key=lambda row: row["time"])

    # ------------------------------------------------------------------------------------ what is learned ---

    def foretold(self):
        """Leave-one-out, as adapt.py has it: {right, population, of, word}, None without an answer."""
        if not self.rows:
            return None
        count = len(self.rows)
        prompt = numbers_of(pd.Series(self.prompt_ids))
        user = torch.zeros(count, dtype=torch.long)
        pairs = Comparisons(self.pool.table, user, (self.user,), *self.known.T, prompt=prompt)
        newcomers = adapt(self.basis, pairs)
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
        unsure = [row_numbers(pool, row) for row in self.unsure]
        for pair in [*self.known.tolist(), *unsure]:
            number = pool.number.get(frozenset(pair))
            if number is not None:
                free[number] = False
        touched = torch.zeros(len(pool.prompts), dtype=torch.bool)
        touched[pool.prompt[~free]] = True
        fresh = free & ~touched[pool.prompt]
        return fresh if fresh.any() else free

    def next_question(self):
        """The same in every process for the same answers; None where all has been asked."""
        free = self.free()
        if not free.any():
            return None
        coin = random.Random(f"{self.seed} {self.user} {self.turn}")
        turned = coin.random() < 0.5
        rule = coin.choice(WAYS) if self.rule == BOTH else self.rule
        pairs = self.telling(free) if rule == CHOSEN else []
        if not pairs:
            rule = RANDOM
            pairs = [int(coin.choice(free.nonzero().flatten().tolist()))]
        return Question(pairs[0], turned, rule)

    def telling(self, free):
        """The pair whose answer would tell most, in a list; nothing where none tells anything.

        Where two rules are compared, the chosen questions know of answers to such questions alone.
        """
        posterior = self.posterior
        if self.rule == BOTH:
            known = [number for number, row in enumerate(self.rows) if row["rule"] == CHOSEN]
            posterior = Posterior.of(self.pool, self.known[known])
        numbers, _ = most_telling(self.pool, posterior, allowed=free)
        return numbers


def row_numbers(pool, row):
    """Rows of the table of a "cannot say"."""
    said = judgement("an answer that nobody had", row | {"chosen": row["left"], "rejected": row["right"]})
    return pool.rows_of([said.chosen, said.rejected])
