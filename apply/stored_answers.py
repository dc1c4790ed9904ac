"""The answers that people were taken into a basis by, kept in its file: Basis.answers and Basis.answered.

To them more can be added, from them the next question follows, and what they say is not asked again.
"""

from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from outputs import is_filled
from safetensors.torch import save_file

from leave_one_out import adapt
from lore.common import InputError, written_whole
from lore.fit.basis import load_basis, save_basis
from lore.fit.comparisons import Comparisons, numbers_of
from lore.fit.groups import names_of
from lore.fit.likelihood import LOGIT_SCALE
from lore.text.spellings import as_asked
from newcomers import extend, pairs_of, people_rows, require_new, to_fit

# of Basis.answered: who among basis.everybody; rows of Basis.answers; a number for the prompt, one for both texts
COLUMNS = ("person", "chosen", "rejected", "prompt", "text")
BASIS = "basis.safetensors"  # in a folder of what a session has learned


class StoredAnswers(NamedTuple):
    """Who preferred what, with the vectors of the replies."""

    table: torch.Tensor  # (rows, d)
    frame: pd.DataFrame  # a line an answer: user_id, and COLUMNS behind the first

    @classmethod
    def of(cls, pairs, judgements):
        """Those of Comparisons that embedded_pairs has made of these Judgements."""
        frame = pd.DataFrame({"user_id": np.array(pairs.user_ids, dtype=object)[pairs.user.numpy()]})
        for name in ("chosen", "rejected", "prompt"):
            frame[name] = getattr(pairs, name).numpy()
        by_user = sorted(judgements, key=lambda judged: judged.user_id)  # as Comparisons have them
        frame["text"] = text_numbers([(judged.chosen, judged.rejected) for judged in by_user])
        return cls(pairs.table, frame)

    @classmethod
    def in_basis(cls, basis):
        """Those of all people in a Basis of whom it holds any."""
        if basis.answered is None:
            return cls(basis.V.new_zeros(0, len(basis.V)), pd.DataFrame(columns=["user_id", *COLUMNS[1:]]))
        frame = pd.DataFrame(basis.answered.numpy(), columns=[*COLUMNS])
        frame["user_id"] = np.array(basis.everybody, dtype=object)[frame["person"]]
        return cls(basis.answers, frame[["user_id", *COLUMNS[1:]]])

    @property
    def users(self):
        return {*self.frame["user_id"]}

    @property
    def keys(self):
        """{(user, number of the texts)}, which no two answers share."""
        return {*zip(self.frame["user_id"], self.frame["text"])}

    def of_users(self, users):
        return self._replace(frame=self.frame[self.frame["user_id"].isin(users)])

    def not_of_users(self, users):
        return self._replace(frame=self.frame[~self.frame["user_id"].isin(users)])

    def and_then(self, later):
        """These and later ones, without what is there again."""
        table = torch.cat([self.table, later.table.to(self.table)]) if len(self.table) else later.table
        moved = {name: later.frame[name] + len(self.table) for name in ("chosen", "rejected")}
        frame = pd.concat([self.frame, later.frame.assign(**moved)], ignore_index=True)
        return StoredAnswers(table, frame.drop_duplicates(["user_id", "text"]))

    def pairs(self):
        """Comparisons, sorted by user."""
        frame = self.frame.sort_values("user_id", kind="stable")
        prompt = torch.tensor(frame["prompt"].to_numpy(dtype=np.int64))
        return replace(Comparisons.from_frame(self.table, frame), prompt=prompt)

    def vectors(self):
        """Those that the answers need alone, (rows, d), and which of them each has, the preferred one first (n, 2)."""
        pairs = torch.tensor(self.frame[["chosen", "rejected"]].to_numpy(dtype=np.int64))
        rows, numbers = pairs.unique(return_inverse=True)
        return self.table[rows], numbers

    def stored_in(self, basis):
        """The Basis with these answers in place of its own."""
        frame = self.frame.assign(person=basis.positions(self.frame["user_id"]))
        answered = torch.tensor(frame[[*COLUMNS]].to_numpy(dtype=np.int64))
        answers, answered[:, 1:3] = self.vectors()
        return basis._replace(answers=answers, answered=answered)


def text_numbers(pairs):
    """A number for the texts of each pair of conversations, in its order, however they are spelled. A list."""
    texts = [f"{as_asked(first)} {as_asked(second)}" for first, second in pairs]
    return numbers_of(pd.Series(texts, dtype=object)).tolist()


def require_kept(path, basis, judgements):
    """Before a basis with these Judgements added is written. InputError: answers in the file there would be lost."""
    if not is_filled(path):
        return
    numbers = text_numbers([(judged.chosen, judged.rejected) for judged in judgements])
    coming = {*zip([judged.user_id for judged in judgements], numbers)}
    lost = StoredAnswers.in_basis(load_basis(path)).keys - StoredAnswers.in_basis(basis).keys - coming
    if lost:
        user, _ = min(lost)
        text = f"{path} has {len(lost)} answers, such as of {user}, which would be lost"
        raise InputError(f"{text}; take it as --basis, or name another file")


def taken_in(basis, pairs, judgements, anew=False):
    """(the Basis with the people of these Comparisons and Judgements in it, what is said of each as people_rows).

    What they have answered before counts as well, unless they are fitted anew.
    """
    earlier = StoredAnswers.in_basis(basis)
    answers = StoredAnswers.of(pairs, judgements)
    users = answers.users
    if not anew:
        answers = added(earlier.of_users(users), answers)
    pairs = answers.pairs()
    newcomers = adapt(basis, pairs)
    rows = people_rows(pairs, newcomers)
    extended = extend(basis, pairs, newcomers, rows)
    return earlier.not_of_users(users).and_then(answers).stored_in(extended), rows


def added(earlier, answers):
    """All answers of people, of some of whom there are earlier ones; says of whom, and what tells nothing new."""
    if not earlier.users:
        return answers
    together = earlier.and_then(answers)
    again = len(earlier.frame) + len(answers.frame) - len(together.frame)
    print(f"answered before: {len(earlier.users)} people{names_of(earlier.users)}, {len(earlier.frame)} x")
    print(f"left out: {again} x a judgement that the basis holds already")
    return together


def write_people(folder, basis, pool, judgements):
    """FOLDER/basis.safetensors, as adapt.py writes it, and a head for each person of Judgements on a pool.

    A head is score.weight (1, d), V w + e over LOGIT_SCALE: the last shard of export.py's folder. -> rows of
    adapt.py's table. InputError: somebody stands in the basis by now.
    """
    require_new(judgements, basis, "the basis")
    judgements = to_fit(judgements)
    pairs = pairs_of(judgements, pool.table, *pool.rows_of(judgements).T.numpy())
    with_people, said = taken_in(basis, pairs, judgements)
    save_basis(Path(folder) / BASIS, with_people)
    heads = with_people.rewards(pairs.user_ids).T / LOGIT_SCALE  # (P, d)
    for number, user in enumerate(pairs.user_ids):
        with written_whole(Path(folder) / f"head_{number:03d}.safetensors") as file:
            head = {"score.weight": heads[[number]]}
            save_file(head, file, {"format": "pt", "user_id": user})
    return said
