"""How far the people of a basis are known, where it holds their answers: what is left of their log-odds."""

import torch

from lore.fit.doubt import Known, PersonPairs, tempered
from lore.fit.likelihood import LOGIT_SCALE
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
            self.known[user] = Known.of(basis.prior, self.pairs(X), (p * (1 - p)).T)

    def pairs(self, X):
        """PersonPairs of some differences of vectors (m, d)."""
        z = (X @ self.basis.V).double() / LOGIT_SCALE  # (m, d) @ (d, K)
        return PersonPairs(z, X if self.basis.deviation_spread else X[:, :0])

    def tempered(self, user, chosen, rejected, log_odds):
        """The log-odds (t,) of pairs of vectors (t, d) that their mean probabilities have."""
        if user not in self.known:
            return log_odds
        variance = self.known[user].variance(self.pairs(chosen.float() - rejected.float()))
        return tempered(log_odds, variance[:, 0], self.basis.doubt)
