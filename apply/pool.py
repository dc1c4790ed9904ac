"""The pool of a session: prompts with candidates, their vectors on disk, and the pairs that can be asked about."""

import hashlib
import json
import random
from itertools import combinations
from pathlib import Path
from typing import NamedTuple

import pandas as pd
import torch

import questions
from lore.common import require
from lore.splits import load_split
from lore.text.embeddings import embed_split
from lore.text.input_rows import candidates_of, common_start, is_nothing, judgement, rows_of
from lore.text.spellings import as_asked, as_read

MOST_PAIRS = 20_000  # that are asked about; of larger pools some, drawn at random, as many of each prompt
CARRIED = ("prompt", "messages", "prompt_id")  # fields of a prompt that go into its answers
EXCERPT = 90  # characters of a prompt in a list


class Prompt(NamedTuple):
    """A row of the pool."""

    fields: dict  # as they stand in the file
    talks: list  # conversations of its candidates, those in other words
    candidates: list  # the same as they stand in the file
    rows: list  # of the table, one for each

    @property
    def asked(self):
        """The messages that all candidates begin with."""
        asked = self.talks[0]
        for talk in self.talks[1:]:
            asked = common_start(asked, talk)
        return asked[: min(map(len, self.talks)) - 1]  # a reply is a message at least

    @property
    def carried(self):
        """What goes into the rows of its answers."""
        return {name: self.fields[name] for name in CARRIED if not is_nothing(self.fields.get(name))}

    def reply(self, place):
        """The messages of a candidate behind what is asked."""
        return self.talks[place][len(self.asked) :]

    @property
    def title(self):
        """The beginning of its last message."""
        words = " ".join(self.asked[-1]["content"].split())
        return words if len(words) <= EXCERPT else f"{words[:EXCERPT]} .."


def read_pool(path):
    """The Prompts of a file, without vectors. InputError: a broken row; no two candidates anywhere."""
    prompts = []
    for where, fields in rows_of(path):
        different = {}
        for talk, candidate in zip(candidates_of(where, fields), fields["candidates"]):
            different.setdefault(as_read(talk), (talk, candidate))
        talks, candidates = [*zip(*different.values())]
        prompt = Prompt(fields, [*talks], [*candidates], [])
        if len(talks) > 1:
            replies = {"user_id": "a person", "chosen": candidates[0], "rejected": candidates[1]}
            judgement(where, prompt.carried | replies)  # what is written must be readable
        prompts.append(prompt)
    to_ask = any(len(prompt.talks) > 1 for prompt in prompts)
    require(to_ask, f"{path} has no prompt with two different candidates: nothing to ask about")
    return prompts


def embed_pool(folder, prompts, judgements, encoder):
    """Vectors of the candidates and of what was judged: the table (rows, d) and {as_read: row}.

    They are in a file of FOLDER whose name tells the model and the texts: made once.
    """
    talks = []
    for prompt in prompts:
        talks += prompt.talks
    for judged in judgements:  # behind those of the pool: answers to them change nothing
        talks += [judged.chosen, judged.rejected]
    different = {}
    for talk in talks:
        different.setdefault(as_read(talk), talk)
    conversations = [*different.values()]
    content = json.dumps([encoder.identity, conversations]).encode()
    path = Path(folder) / hashlib.sha256(content).hexdigest()[:16]
    embed_split(path, pd.DataFrame({"conversation": conversations}), encoder, ("conversation",))
    split = load_split(path, "the same command", ("conversation",))
    return split.table, dict(zip(different, split.frame["conversation"].tolist()))


class Pool(questions.Pool):
    """Prompts with the vectors of their candidates, and the pairs of these as questions.

    population (rows,): what replies are worth to all alike, in log-odds; places, prompt (n,): which
    candidates of which prompt the pairs are; number: of each pair of rows.
    """

    def __init__(self, prompts, table, row_of, basis, seed):
        self.row_of = row_of
        self.prompts = []
        for prompt in prompts:
            rows = [row_of[as_read(talk)] for talk in prompt.talks]
            self.prompts.append(prompt._replace(rows=rows))
        self.places, self.prompt = drawn_pairs(self.prompts, seed)
        pairs = []
        for number, (left, right) in zip(self.prompt.tolist(), self.places):
            rows = self.prompts[number].rows
            pairs.append((rows[left], rows[right]))
        super().__init__(table, pairs, basis.V, basis.prior)
        self.number = {frozenset(pair): number for number, pair in enumerate(pairs)}
        self.population = self.Z @ basis.prior.mean.double()  # (rows, K) @ (K,)

    def rows_of(self, judgements):
        """Rows of the table, chosen and rejected of each judgement, (n, 2). InputError: one has no vector."""
        rows = []
        for judged in judgements:
            for talk in (judged.chosen, judged.rejected):
                row = self.row_of.get(as_read(talk))
                reply = f"the reply {talk[-1]['content'][:60]!r}"
                require(row is not None, f"no vector of {reply}: start the session again")
                rows.append(row)
        return questions.rows_of_pairs(rows)


def drawn_pairs(prompts, seed):
    """Pairs of places among a prompt's candidates, each question once, and the number of its prompt (P,)."""
    generator = random.Random(seed)
    most = max(1, MOST_PAIRS // len(prompts))
    seen = set()
    places = []
    owner = []
    for number, prompt in enumerate(prompts):
        pairs = [*combinations(range(len(prompt.talks)), 2)]
        words = [*map(as_asked, prompt.talks)]
        for left, right in sorted(generator.sample(pairs, min(most, len(pairs)))):
            question = frozenset((words[left], words[right]))
            if question not in seen:
                seen.add(question)
                places.append((left, right))
                owner.append(number)
    return places, torch.tensor(owner)
