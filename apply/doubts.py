"""How far the people of a basis are known, where it holds their answers: what is left of their log-odds."""

import torch

from lore.fit.comparisons import Comparisons
from lore.fit.doubt import Known, Projected, tempered
from stored_answers import StoredAnswers


class Doubts:
    """Of those of some users whose answers a Basis holds, if held-out prompts spoke for any doubt."""

    def __init__(self, basis, users):
        self.basis = basis
        self.known = {}
        answers = StoredAnswers.in_basis(basis)
        doubted = answers.users & {*users} if basis.doubt else ()
        for user in sorted(doubted):
            pairs = answers.of_users([user]).pairs()
            X = pairs.differences(basis.V)
            p = torch.sigmoid(basis.log_odds(X, [user]).double())  # (m, 1)
            self.known[user] = Known.of(self.directions(X), (p * (1 - p)).T)

    def columns(self, users):
        """Numbers of those of some users of whom something is known."""
        return [column for column, user in enumerate(users) if user in self.known] if self.known else []

    def directions(self, X):
        """Directions of some differences of vectors (m, d)."""
        pairs = Comparisons.from_list([X])
        return Projected.whole(pairs, X @ self.basis.V).of_person(self.basis.prior, slice(None))

    def tempered(self, user, chosen, rejected, log_odds):
        """The log-odds (t,) of pairs of vectors (t, d) that their mean probabilities have."""
        if user not in self.known:
            return log_odds
        variance = self.known[user].variance(self.directions(chosen.float() - rejected.float()))
        return tempered(log_odds, variance[:, 0], self.basis.doubt)
