"""Who preferred what over what, in memory."""

from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import torch

from lore.common import InputError
from lore.tables import TABLE_ROWS, unfinite_rows


@dataclass(frozen=True)
class Comparisons:
    """Pairs of C users, stacked and sorted by user. Row numbers into a table of embeddings until the last moment.

    table     (rows, d)  embeddings in the dtype of the file; or the differences themselves, one row per comparison
    user      (n,)       0 .. C-1, ascending: the y of Eq. 10
    user_ids  C strings  who they are
    chosen    (n,)       table row of the preferred reply; None where the table holds differences
    rejected  (n,)       table row of the other one; None likewise
    shot      (n,)       pairs that few-shot draws take together (a dialogue) share a number; None = each by itself
    prompt    (n,)       pairs that are held out together share a number; None = those of the same two replies
    """

    table: torch.Tensor
    user: torch.Tensor
    user_ids: tuple
    chosen: torch.Tensor | None = None
    rejected: torch.Tensor | None = None
    shot: torch.Tensor | None = None
    prompt: torch.Tensor | None = None

    def __post_init__(self):
        if (self.user.diff() < 0).any():
            raise InputError("comparisons must be sorted by user")
        for user, count in zip(self.user_ids, self.counts.tolist()):
            if count == 0:
                raise InputError(f"user {user} has no pairs; leave this user out")
        if self.shot is not None:
            number, user = torch.stack([self.shot, self.user.to(self.shot)]).unique(
                dim=1
            )  # (2, n) -> (2, shots)
            if (number != torch.arange(len(number))).any() or (user.diff() < 0).any():
                raise InputError(
                    "shots are numbered 0, 1, .. without a gap, user by user, and each has one user"
                )

    @classmethod
    def from_list(cls, features):
        """Per-user (m_i, d) differences -> Comparisons. InputError: empty user, unequal widths, NaN or infinity."""
        if not features:
            raise InputError("no users: the list of per-user features is empty")
        for i, x in enumerate(features):
            if x.ndim != 2 or x.shape[1] != features[0].shape[1]:
                raise InputError(
                    f"user {i}: features of shape {tuple(x.shape)}, not (pairs, {features[0].shape[1]})"
                )
        table = torch.cat(list(features))  # C x (m_i, d) -> (n, d)
        counts = torch.tensor([len(x) for x in features], device=table.device)
        user = torch.arange(len(features), device=table.device).repeat_interleave(counts)
        bad = unfinite_rows(table)
        if len(bad):
            raise InputError(f"user {user[bad[0]].item()}: features hold NaN or infinity")
        return cls(table, user, tuple(str(i) for i in range(len(features))))

    @classmethod
    def from_frame(cls, table, frame, user_ids=None, shot=None, prompt=None):
        """Rows of a data frame (user_id, chosen, rejected) -> Comparisons of user_ids, in that order.

        shot: the column whose equal values make one shot of a user's pairs; prompt: the one that names their prompt.
        """
        user_ids = tuple(sorted(frame["user_id"].unique()) if user_ids is None else user_ids)
        frame = frame[frame["user_id"].isin(user_ids)]
        number = {user: i for i, user in enumerate(user_ids)}
        user = torch.tensor(frame["user_id"].map(number).to_numpy(dtype=np.int64))
        order = user.argsort(stable=True)
        chosen, rejected = (
            torch.tensor(frame[c].to_numpy(dtype=np.int64))[order] for c in ("chosen", "rejected")
        )
        if shot is not None:
            names = frame[shot].to_numpy()[order]
            numbers = {}
            shot = torch.tensor(
                [numbers.setdefault(key, len(numbers)) for key in zip(user[order].tolist(), names)]
            )
        if prompt is not None:
            prompt = torch.from_numpy(
                np.unique(frame[prompt].to_numpy()[order], return_inverse=True)[1]
            )
        return cls(table, user[order], user_ids, chosen, rejected, shot, prompt)

    def __len__(self):
        return len(self.user)

    @property
    def num_features(self):
        return self.table.shape[1]

    @property
    def counts(self):
        """(C,) pairs of each user."""
        return torch.bincount(self.user, minlength=len(self.user_ids))

    def prompts(self):
        """(n,) numbers 0, 1, ..: equal where pairs share a prompt or, where none is given, both replies."""
        if self.prompt is not None:
            return self.prompt.unique(return_inverse=True)[1]
        if self.chosen is None:
            return torch.arange(len(self))
        replies = torch.stack([self.chosen, self.rejected], dim=1).sort(dim=1)[0]  # (n, 2)
        return replies.unique(dim=0, return_inverse=True)[1]

    def differences(self, like, rows=slice(None)):
        """X = e(chosen) - e(rejected), both cast before they are subtracted. (n, d), dtype and device of `like`."""
        if self.chosen is None:
            return self.table[rows].detach().to(like)
        pairs = torch.stack([self.chosen[rows], self.rejected[rows]], dim=1)  # (n, 2)
        X = like.new_empty(len(pairs), self.num_features)
        for out, block in zip(X.split(TABLE_ROWS), pairs.split(TABLE_ROWS)):
            chosen, rejected = block.T
            out.copy_(self.table[chosen]).sub_(self.table[rejected].to(like))
        return X

    def shuffled(self, seed):
        """The same pairs, in each of which a coin says who was preferred."""
        coin = torch.rand(len(self), generator=torch.Generator().manual_seed(seed)) < 0.5
        if self.chosen is None:
            return replace(self, table=self.table * (1 - 2 * coin.to(self.table)).unsqueeze(1))
        chosen, rejected = (
            torch.where(coin, self.rejected, self.chosen),
            torch.where(coin, self.chosen, self.rejected),
        )
        return replace(self, chosen=chosen, rejected=rejected)


def pack(features):
    """Comparisons as they are, a list of per-user (m_i, d) tensors as Comparisons."""
    return features if isinstance(features, Comparisons) else Comparisons.from_list(features)


class Groups(NamedTuple):
    """The four sets of comparisons of an experiment: two of seen users, two of unseen users."""

    train: Comparisons
    seen: Comparisons
    few_shot_train: Comparisons
    unseen: Comparisons

    def checked(self, N, N_unseen):
        """Packed. InputError: not N or N_unseen users, train and test of different users, different widths."""
        groups = Groups(*(pack(features) for features in self))
        for name, group, users, expected in zip(
            self._fields,
            groups,
            (groups.train,) * 2 + (groups.few_shot_train,) * 2,
            (N, N, N_unseen, N_unseen),
        ):
            if len(group.user_ids) != expected or group.user_ids != users.user_ids:
                raise InputError(
                    f"{name}: {len(group.user_ids)} users; expected the same {expected} in training and test"
                )
            if group.num_features != groups.train.num_features:
                raise InputError(
                    f"{name}: embeddings of width {group.num_features}, train: {groups.train.num_features}"
                )
        return groups


def shuffled_places(user, trials, generator):
    """Place of each shot in a random order of its own user's, 0 .. m_i - 1, per trial. (n,) -> (trials, n)"""
    keys = torch.rand(trials, len(user), generator=generator, dtype=torch.float64)
    order = (keys + user).argsort(dim=1)  # users stay in their stretches, their shots are shuffled
    first = torch.searchsorted(user, user)  # (n,) where each shot's user begins
    return torch.empty_like(order).scatter_(
        1, order, (torch.arange(len(user)) - first).expand(trials, -1)
    )
