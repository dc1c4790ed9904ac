"""What is a person's own: e_i of the ridge model, as coefficients on the person's own pairs."""

from typing import NamedTuple

import torch

from lore.comparisons import Comparisons

ROWS_AT_ONCE = 2**22  # numbers of X that are formed at a time


class Own(NamedTuple):
    """e_i = sum_j a_j x_j over the pairs j of person i, for people 0, 1, ..

    The pairs are kept as row numbers into their table, so that all e_i together, (people, d), are
    never formed.
    """

    pairs: Comparisons
    user: torch.Tensor  # (n,) ascending: whose each pair is; some people may have none
    a: torch.Tensor  # (n,), or (n, draws) of several fits to some of the pairs each

    def rewards(self, person):
        """e_i of one person, float32. (d,), or (d, draws)"""
        first, last = stretch(self.user, person)
        like = torch.zeros((), device=self.a.device)
        X = self.pairs.differences(like, slice(first, last))
        return X.T @ self.a[first:last].float()  # (d, m) @ (m,)

    def margins(self, test):
        """x . e_i of each pair of `test`, Comparisons of the same people. (n,), or (n, draws)"""
        like = torch.zeros((), device=self.a.device)
        user = test.user.to(like.device)
        parts = []
        for person in range(len(test.user_ids)):
            first, last = stretch(user, person)
            X = test.differences(like, slice(first, last))
            parts.append(X @ self.rewards(person))
        return torch.cat(parts)


def stretch(user, person):
    """First row of a person, and the one after the last; user (n,) is ascending."""
    ends = torch.tensor([person, person + 1], device=user.device)
    return torch.searchsorted(user, ends).tolist()


def grams(pairs, rows, real, like):
    """x . x' of all pairs of each of several people: rows (people, m) of `pairs` -> (people, m, m).

    real (people, m): which rows are not there to fill up; G is 0 where one of two is not.
    """
    m = rows.shape[1]
    size = max(1, ROWS_AT_ONCE // (m * pairs.num_features))
    parts = []
    for some, there in zip(rows.split(size), real.split(size)):
        X = pairs.differences(like, some.flatten().to(pairs.user.device))
        X = X.view(len(some), m, -1) * there.unsqueeze(2)  # (people, m, d)
        parts.append((X @ X.mT).double())
    return torch.cat(parts)
