"""One person of a saved basis, from Python.

    from apply.person import Person, opened
    person = Person(*opened("basis.safetensors"))
    person.fit([{"prompt": "Name a fruit.", "chosen": "Quince.", "rejected": "There are many fruits."}])
    print(person.prefer("Name a tree.", "Oak.", "A tree? Well, there are many."))
    person.save("me.safetensors")

The top of the repository is where Python runs, or on PYTHONPATH.
"""

import sys
from collections.abc import Mapping
from pathlib import Path

FOLDER = Path(__file__).resolve().parent
sys.path += [str(FOLDER), str(FOLDER.parent)]  # behind what the program that imports this has there

import torch
import torch.nn.functional as F
from doubts import Doubts
from outputs import require_output
from scorer import Scorer

from lore.common import require
from lore.fit.basis import save_basis
from lore.text.input_rows import candidates_of, identifier, judgements_of, row_of
from saved_basis import opened
from stored_answers import StoredAnswers, require_kept, require_new, taken_in, to_fit

__all__ = ["Person", "opened"]


class Person:
    """r(prompt, reply) = e . (V w) / 100, log-odds: of somebody in a basis, or of somebody new, fitted to pairs.

    basis, encoder: of `opened`; several people may share an encoder. Somebody whom the basis does not
    know has the population's rewards until they are fitted. A prompt is a text or a list of messages,
    a reply too; pairs are dicts {prompt, chosen, rejected} as the rows of a file. InputError (a
    ValueError): what apply/adapt.py and apply/score.py refuse.
    """

    def __init__(self, basis, encoder, user_id="me"):
        self.basis = self.before = basis
        self.encoder = encoder
        self.user_id = identifier("Person", {"user_id": user_id}, "user_id")
        require(self.user_id is not None, "Person: user_id says nothing")

    def fit(self, pairs):
        """Minimise Eq. 11 over w, V frozen; a dict of what apply/adapt.py says of its people.

        Of somebody whom adapt.py or `save` has taken in before, the earlier pairs count as well.
        """
        judgements = self.judgements(pairs)
        require_new(judgements, self.before, "the basis", StoredAnswers.in_basis(self.before).users)
        answers = StoredAnswers.embed(to_fit(judgements), self.encoder)
        self.basis, (said,) = taken_in(self.before, answers)
        return said

    def rewards(self, prompt, candidates):
        """Log-odds of each reply to a prompt, a list of floats; beside those of other prompts they say nothing."""
        talks = self.talks(prompt, candidates)
        return self.scorer.rewards(talks, [self.known_as] * len(talks))

    def prefer(self, prompt, a, b):
        """P(the person prefers a to b), what is unsure of them allowed for."""
        margin, _ = self.margins(*self.talks(prompt, [a, b]))
        return torch.sigmoid(margin).item()

    def rank(self, prompt, candidates):
        """The candidates, the best for this person first."""
        rewards = self.rewards(prompt, candidates)
        order = sorted(range(len(rewards)), key=rewards.__getitem__, reverse=True)
        return [candidates[i] for i in order]

    def evaluate(self, pairs):
        """Accuracy (Eq. 15) and mean of -log P on pairs that no fit has seen, with the population's beside them."""
        judgements = self.judgements(pairs)
        talks = [each.chosen for each in judgements] + [each.rejected for each in judgements]
        found = {"pairs": len(judgements)}
        for name, margin in zip(("", "population_"), self.margins(*talks)):
            found[f"{name}accuracy"] = (margin > 0).double().mean().item()
            found[f"{name}log_loss"] = F.softplus(-margin).mean().item()
        return found

    def margins(self, *talks):
        """Log-odds of the first half of some conversations against the other, of the person and the population."""
        table = self.scorer.vectors(talks)
        pair = table.tensor_split(2)
        margins = []
        for user in (self.known_as, None):
            chosen, rejected = self.scorer.of_vectors(table, [user] * len(talks)).tensor_split(2)
            margins.append(chosen - rejected)
        margins[0] = Doubts(self.basis, [self.known_as]).tempered(self.known_as, *pair, margins[0])
        return margins

    @staticmethod
    def talks(prompt, candidates):
        """Conversations of a prompt with each reply."""
        return candidates_of("candidates", row_of("candidates", {"prompt": prompt, "candidates": candidates}))

    def save(self, path):
        """The basis with this person in it, which every script of apply/ reads."""
        require(self.basis is not self.before, f"{self.user_id} is fitted to nothing yet: call fit first")
        require_output(str(path), [], (".safetensors",))
        require_kept(path, self.before, {self.user_id})
        save_basis(path, self.basis)

    @property
    def scorer(self):
        return Scorer(self.basis, self.encoder)

    @property
    def known_as(self):
        """The id in the basis; None, the population, where it has none."""
        return self.user_id if self.user_id in self.basis.everybody else None

    def judgements(self, pairs):
        """Judgements of the person. InputError: no pair, what is none, somebody else's."""
        rows = []
        for number, pair in enumerate(pairs):
            where = f"pair {number}"
            kind = type(pair).__name__
            require(isinstance(pair, Mapping), f"{where} is a {kind}, no dict of prompt, chosen, rejected")
            row = row_of(where, pair)
            user = identifier(where, row, "user_id") or self.user_id
            require(user == self.user_id, f"{where}: user_id is {user}, and this is {self.user_id}")
            rows.append((where, row | {"user_id": user}))
        judgements = judgements_of(rows)
        require(judgements, "no pair that says what was preferred")
        return judgements
