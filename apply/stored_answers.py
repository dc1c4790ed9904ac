"""People taken into a saved basis, and the answers that they were taken in by: Basis.answers and Basis.answered.

To them more can be added, from them the next question follows, and what they say is not asked again.
"""

from dataclasses import replace
from math import isfinite
from operator import attrgetter
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from outputs import is_filled, require_ours

from leave_one_out import adapt
from lore.common import InputError, require
from lore.fit.basis import load_basis, stacked_deviations
from lore.fit.comparisons import Comparisons, numbers_of
from lore.fit.groups import names_of
from lore.text.input_rows import first_times
from lore.text.spellings import as_asked
from saved_basis import embedded

# of Basis.answered: who among basis.everybody; rows of Basis.answers; a number for the prompt, one for both texts
COLUMNS = ("person", "chosen", "rejected", "prompt", "text")
PAIR = attrgetter("chosen", "rejected")  # conversations of a Judgement


# ------------------------------------------------------------------------------------------------
# Judgements
# ------------------------------------------------------------------------------------------------


def require_new(judgements, basis, path, back=(), advice="give new people other ids"):
    """InputError: somebody stands in the basis already, but for those of `back`, who may come again."""
    there = {user.casefold(): user for user in basis.everybody}
    for each in judgements:
        user = there.get(each.user_id.casefold())
        if user is not None and not (user == each.user_id and user in back):
            raise InputError(f"{each.file_and_line}: {path} has a user {user} already; {advice}")


def to_fit(judgements):
    """Those that tell something new and are not of a test side; prints what is left out, and whom."""
    fitted = [each for each in judgements if each.side != "test"]
    if len(fitted) < len(judgements):
        count = len(judgements) - len(fitted)
        nobody = {each.user_id for each in judgements} - {each.user_id for each in fitted}
        print(f"left out: {count} x of a test side (split), {len(nobody)} people{names_of(nobody)}")
    require(fitted, "every comparison is of a test side (split): none is left to fit")
    return [fitted[number] for number in first_times(fitted)]


def answer_keys(judgements):
    """{(user, number of the texts)} of Judgements."""
    return {*zip(map(attrgetter("user_id"), judgements), text_numbers(map(PAIR, judgements)))}


def text_numbers(pairs):
    """A number for the texts of each pair of conversations, in its order, however they are spelled. A list."""
    texts = [f"{as_asked(first)} {as_asked(second)}" for first, second in pairs]
    return numbers_of(pd.Series(texts, dtype=object)).tolist()


# ------------------------------------------------------------------------------------------------
# Answers
# ------------------------------------------------------------------------------------------------


class StoredAnswers(NamedTuple):
    """Who preferred what, with the vectors of the replies."""

    table: torch.Tensor  # (rows, d)
    frame: pd.DataFrame  # a line an answer: user_id, and COLUMNS behind the first

    @classmethod
    def of(cls, judgements, table, chosen, rejected):
        """Those of Judgements, whose replies are these rows of a table."""
        told = pd.DataFrame(judgements)
        columns = {"chosen": chosen.numpy(), "rejected": rejected.numpy()}
        columns["prompt"] = numbers_of(told["prompt_id"]).numpy()
        columns["text"] = text_numbers(map(PAIR, judgements))
        return cls(table, told[["user_id"]].assign(**columns))

    @classmethod
    def embed(cls, judgements, encoder):
        """The same, the replies of which are still texts."""
        rows = [(each.file_and_line, each, PAIR(each)) for each in judgements]
        table, numbers = embedded(rows, encoder)
        return cls.of(judgements, table, *torch.stack(numbers, 1))

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


def require_kept(path, basis, users, answers=None):
    """Before a basis with these people added is written.

    answers: keys of those that are added, None: others may go. InputError: a file is there that is no such
    basis, or holds people or answers that would be lost.
    """

    def is_ours(file):
        there = load_basis(file)
        return there.words is not None and torch.equal(there.V, basis.V)

    require_ours(path, is_ours)
    if not is_filled(path):
        return
    there = load_basis(path)
    hint = "would be lost; take it as --basis, or name another file"
    lost = {*there.everybody} - {*basis.everybody, *users}
    if lost:
        raise InputError(f"{path} has {len(lost)} people, such as {min(lost)}, who {hint}")
    if answers is not None:
        lost = StoredAnswers.in_basis(there).keys - StoredAnswers.in_basis(basis).keys - answers
    if lost:
        raise InputError(f"{path} has {len(lost)} answers, such as of {min(lost)[0]}, which {hint}")


# ------------------------------------------------------------------------------------------------
# People
# ------------------------------------------------------------------------------------------------


def taken_in(basis, answers, anew=False):
    """(the Basis with the people of these StoredAnswers in it, what is said of each as people_rows).

    What they have answered before counts as well, unless they are fitted anew.
    """
    users = answers.users
    earlier = StoredAnswers.in_basis(basis)
    if anew:
        earlier = earlier.of_users({*basis.everybody} - users)
    together = earlier.and_then(answers)
    before = earlier.of_users(users)
    if before.users:
        again = len(earlier.frame) + len(answers.frame) - len(together.frame)
        print(f"answered before: {len(before.users)} people{names_of(before.users)}, {len(before.frame)} x")
        print(f"left out: {again} x a judgement that the basis holds already")
    pairs = together.of_users(users).pairs()
    newcomers = adapt(basis, pairs)
    rows = people_rows(pairs, newcomers)
    return together.stored_in(extend(basis, pairs, newcomers, rows)), rows


def people_rows(pairs, newcomers):
    """One dict per person."""
    columns = {
        "user_id": pairs.user_ids,
        "pairs": pairs.counts.tolist(),
        "mixture": newcomers.mixtures.W.tolist(),
        "spread": newcomers.mixtures.spread.tolist(),
        "gap": newcomers.mixtures.gap.tolist(),
        "leave_one_out": newcomers.accuracy.tolist(),
        "population": newcomers.population.tolist(),
        "gain": newcomers.gain.tolist(),
        "gain_error": [error if isfinite(error) else None for error in newcomers.error.tolist()],
        "prompts_left_out": newcomers.prompts.tolist(),
        "word": [*map(newcomers.word, range(len(pairs.user_ids)))],
    }
    return [dict(zip(columns, values)) for values in zip(*columns.values())]


def extend(basis, pairs, newcomers, rows):
    """The basis with these people where they were, new ones behind the others, and what is said of them."""
    mixtures = newcomers.mixtures
    there = {*basis.everybody}
    new = [user for user in pairs.user_ids if user not in there]
    more = {"unseen_ids": (*basis.unseen_ids, *new)}
    more["mean"] = basis.prior.mean  # that of the fit, whoever changes
    positions = basis._replace(unseen_ids=more["unseen_ids"]).positions(pairs.user_ids)
    parameters = {"W": mixtures.W.float()}
    if mixtures.deviations is not None:
        parameters["E"] = stacked_deviations(mixtures.deviations, pairs.user_ids)
    for name, values in parameters.items():
        before = [getattr(basis, name), getattr(basis, f"{name}_unseen")]
        everybody = torch.cat([*before, values.new_zeros(len(new), values.shape[1])])
        everybody[positions] = values
        more[name], more[f"{name}_unseen"] = everybody.tensor_split([len(basis.user_ids)])
    for name, column in (("pairs", "pairs"), ("words", "word")):
        said = {row["user_id"]: row[column] for row in rows}
        more[name] = (getattr(basis, name) or {}) | said
    return basis._replace(**more)
