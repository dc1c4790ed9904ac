"""Somebody who answers questions on a page: what the basis makes of the answers so far, and what to ask next."""

import random
from typing import NamedTuple

import torch
from pool import Prompt

from leave_one_out import adapt
from lore.text.input_rows import judgements_of
from questions import CHOSEN, RANDOM, WAYS, Posterior, most_telling, rewards_by
from stored_answers import StoredAnswers

BOTH = "both"
RULES = (*WAYS, BOTH)  # how questions come about; both: a coin says it of each, and nobody is told


class Question(NamedTuple):
    """Two candidates of a prompt as they are put to somebody."""

    prompt: Prompt
    left: int  # place among the candidates
    right: int
    rule: str

    @property
    def shown(self):
        """The messages that somebody sees, who is not told the rule."""
        replies = {"left": self.prompt.reply(self.left), "right": self.prompt.reply(self.right)}
        return {"asked": self.prompt.asked} | replies


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
        self.rows = rows
        self.unsure = unsure
        self.rule = rule
        self.seed = seed
        self.judgements = judgements_of((f"an answer of {user}", row) for row in rows)
        self.known = pool.rows_of(self.judgements)
        self.posterior = Posterior.of(pool, self.known)
        self.fit = self.posterior.mixtures
        self.rewards = rewards_by(pool, self.known, self.fit)
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
        answers = StoredAnswers.of(self.judgements, self.pool.table, *self.known.T)
        newcomers = adapt(self.basis, answers.pairs())
        right = round(count * float(newcomers.accuracy[0]))
        population = round(count * float(newcomers.population[0]))
        return {"right": right, "population": population, "of": count, "word": newcomers.word(0)}

    def prompts_in_order(self):
        """Numbers of the prompts, those first where their best reply gains most over the population's, and
        these gains in log-odds."""
        rewards = self.rewards.tolist()
        population = self.pool.population.tolist()
        gains = []
        for prompt in self.pool.prompts:
            populations_best = max(prompt.rows, key=population.__getitem__)
            gains.append(max(rewards[row] for row in prompt.rows) - rewards[populations_best])
        order = sorted(range(len(gains)), key=gains.__getitem__, reverse=True)
        return order, [gains[number] for number in order]

    # ----------------------------------------------------------------------------------- what is asked next ---

    def free(self):
        """Whether each pair may be asked about: none twice, no prompt again before all others. (P,)"""
        pool = self.pool
        passed = []
        for row in self.unsure:
            passed.append(("no answer", row | {"chosen": row["left"], "rejected": row["right"]}))
        free = torch.ones(len(pool.pairs), dtype=torch.bool)
        for pair in [*self.known.tolist(), *pool.rows_of(judgements_of(passed)).tolist()]:
            number = pool.number.get(frozenset(pair))
            if number is not None:
                free[number] = False
        fresh = free & ~torch.isin(pool.prompt, pool.prompt[~free])
        return fresh if fresh.any() else free

    def next_question(self):
        """The same in every process for the same answers; None where all has been asked."""
        free = self.free()
        if not free.any():
            return None
        coin = random.Random(f"{self.seed} {self.user} {self.turn}")
        turned = coin.random() < 0.5
        rule = coin.choice(WAYS) if self.rule == BOTH else self.rule
        telling = self.telling(free) if rule == CHOSEN else []
        if not telling:
            rule = RANDOM
            telling = [coin.choice(free.nonzero().flatten().tolist())]
        left, right = self.pool.places[telling[0]]
        prompt = self.pool.prompts[self.pool.prompt[telling[0]]]
        return Question(prompt, right, left, rule) if turned else Question(prompt, left, right, rule)

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
