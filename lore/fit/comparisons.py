"""Who preferred what over what, in memory."""

from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import torch

from lore.common import InputError, require
from lore.splits import TABLE_ROWS, unfinite_rows

GATHERED = 256  # rows of X formed at a time: few enough to stay in the cache
ODD = -7046029254386353131  # a pair of numbers as one: the first times this, plus the second


@dataclass(frozen=True)
class Comparisons:
    """Pairs of C users, stacked and sorted by user: row numbers into a table until the last moment.

    table     (rows, d)  embeddings in the dtype of the file; or the differences, one row per pair
    user      (n,)       0 .. C-1, ascending: the y of Eq. 10
    user_ids  C strings  who they are
    chosen    (n,)       table row of the preferred reply; None where the table holds differences
    rejected  (n,)       table row of the other one; None likewise
    shot      (n,)       equal for pairs that few-shot draws take together (a dialogue);
                         None = each by itself
    prompt    (n,)       equal for pairs that are held out together, here and in other Comparisons;
                         None = those of the same two replies, in whichever order
    choice    (n,)       equal for pairs that are one vote: one reply preferred to each of several
                         others; None = each pair is one
    softmax              whether such a choice is one of a softmax over its replies, not of pairs
    """

    table: torch.Tensor
    user: torch.Tensor
    user_ids: tuple
    chosen: torch.Tensor | None = None
    rejected: torch.Tensor | None = None
    shot: torch.Tensor | None = None
    prompt: torch.Tensor | None = None
    choice: torch.Tensor | None = None
    softmax: bool = False

    def __post_init__(self):
        require((self.user.diff() >= 0).all(), "comparisons must be sorted by user")
        for user, count in zip(self.user_ids, self.counts.tolist()):
            require(count, f"user {user} has no pairs; leave this user out")
        if self.shot is not None:
            owned = torch.stack([self.shot, self.user.to(self.shot)])
            number, user = owned.unique(dim=1)  # (2, n) -> (2, shots)
            require(
                torch.equal(number, torch.arange(len(number))) and (user.diff() >= 0).all(),
                "shots are numbered 0, 1, .. without a gap, user by user, and each has one user",
            )

    # ----------------------------------------------------------------------------- from data ---

    @classmethod
    def from_list(cls, features):
        """Per-user (m_i, d) differences -> Comparisons.

        InputError: an empty user, unequal widths, NaN or infinity.
        """
        require(features, "no users: the list of per-user features is empty")
        d = features[0].shape[-1]
        for i, x in enumerate(features):
            words = f"user {i}: features of shape {tuple(x.shape)}, not (pairs, {d})"
            require(x.ndim == 2 and x.shape[1] == d, words)
        table = torch.cat(list(features))  # C x (m_i, d) -> (n, d)
        counts = torch.tensor([len(x) for x in features], device=table.device)
        user = torch.arange(len(features), device=table.device).repeat_interleave(counts)
        bad = unfinite_rows(table)
        if len(bad):
            raise InputError(f"user {user[bad[0]].item()}: features hold NaN or infinity")
        return cls(table, user, tuple(map(str, range(len(features)))))

    @classmethod
    def from_frame(cls, table, frame, user_ids=None, shot=None, prompt=None, choice=None, softmax=False):
        """Rows of a data frame (user_id, chosen, rejected) -> Comparisons of user_ids, in that order.

        shot, choice: the columns whose equal values make one shot, one vote of a user's pairs;
        prompt: the column that names the prompt of a pair; a name has the same number in all frames.
        """
        if user_ids is None:
            user_ids = sorted(frame["user_id"].unique())
        number = {user: i for i, user in enumerate(user_ids)}
        frame = frame[frame["user_id"].isin(number)]
        frame = frame.assign(user=frame["user_id"].map(number)).sort_values("user", kind="stable")
        user = row_numbers(frame, "user")
        shot, choice = (numbers_within_users(frame, name) for name in (shot, choice))
        if prompt is not None:
            prompt = numbers_of(frame[prompt])
        chosen = row_numbers(frame, "chosen")
        rejected = row_numbers(frame, "rejected")
        more = {"shot": shot, "prompt": prompt, "choice": choice, "softmax": softmax}
        return cls(table, user, tuple(user_ids), chosen, rejected, **more)

    # ----------------------------------------------------------------------------- what it has ---

    def __len__(self):
        return len(self.user)

    @property
    def num_features(self):
        return self.table.shape[1]

    @property
    def counts(self):
        """(C,) pairs of each user."""
        return torch.bincount(self.user, minlength=len(self.user_ids))

    @cached_property
    def votes(self):
        """(n,) how much each pair counts: 1, or 1 / (pairs of its choice)."""
        if self.choice is None:
            return torch.ones(len(self), dtype=torch.float64, device=self.user.device)
        return torch.bincount(self.choice).double().reciprocal()[self.choice]

    def terms(self, pair_weights, example):
        """What negative_log_likelihood takes beside Z and W: user, weight and the softmax's choice.

        pair_weights(user, votes) -> (n,), in the dtype of the example; all on its device
        """
        user = self.user.to(example.device)
        choice = self.choice.to(example.device) if self.softmax else None
        return user, pair_weights(self.user, self.votes).to(example), choice

    def expect(self, C, d):
        """InputError: not the number of users, or the width, that a model was made for."""
        size = len(self.user_ids), self.num_features
        words = f"data of {size[0]} users, width {size[1]} for a model of {C} users, width {d}"
        require(size == (C, d), words)

    @cached_property
    def item(self):
        """(n,) what each pair is about, as a number that is the same in all Comparisons: its prompt or,
        if none is given, its two embeddings in either order, x and -x being one pair."""
        if self.prompt is not None:
            return self.prompt.cpu()
        if self.chosen is None:
            blocks = [content(signless(rows)) for rows in self.table.split(TABLE_ROWS)]
            return torch.cat(blocks).cpu()
        replies = torch.cat([self.chosen, self.rejected])
        rows, which = replies.unique(return_inverse=True)
        number = torch.cat([content(self.table[block]) for block in rows.split(TABLE_ROWS)])
        chosen, rejected = number[which].view(2, -1)
        return (torch.minimum(chosen, rejected) * ODD + torch.maximum(chosen, rejected)).cpu()

    def prompts(self):
        """(n,) numbers 0, 1, ..: equal where items are."""
        return self.item.unique(return_inverse=True)[1]

    def differences(self, example, rows=slice(None)):
        """X = e(chosen) - e(rejected), (n, d), in the dtype and on the device of an example.

        Both are cast before they are subtracted: the difference of two bfloat16 is none.
        """
        if self.chosen is None:
            return self.table[rows].detach().to(example)
        pairs = torch.stack([self.chosen[rows], self.rejected[rows]], dim=1)  # (n, 2)
        X = example.new_empty(len(pairs), self.num_features)
        for out, block in zip(X.split(GATHERED), pairs.split(GATHERED)):
            chosen, rejected = block.T
            out.copy_(self.table.index_select(0, chosen))
            out.sub_(self.table.index_select(0, rejected).to(example))
        return X

    def subset(self, mask):
        """The pairs of a mask (n,), of which each user has some; dialogues are not kept together."""
        mask = mask.to(self.user.device)
        if self.chosen is None:
            parts = {"table": self.table[mask]}
        else:
            parts = {"chosen": self.chosen[mask], "rejected": self.rejected[mask]}
        prompt = None if self.prompt is None else self.prompt[mask.to(self.prompt.device)]
        choice = None if self.choice is None else self.choice[mask].unique(return_inverse=True)[1]
        user = self.user[mask]
        return replace(self, user=user, shot=None, prompt=prompt, choice=choice, **parts)

    def shuffled(self, seed):
        """The same pairs, in each of which a coin says who was preferred."""
        coin = torch.rand(len(self), generator=torch.Generator().manual_seed(seed)) < 0.5
        if self.chosen is None:
            sign = 1 - 2 * coin.to(self.table)  # (n,)
            return replace(self, table=self.table * sign.unsqueeze(1))
        chosen = torch.where(coin, self.rejected, self.chosen)
        return replace(self, chosen=chosen, rejected=torch.where(coin, self.chosen, self.rejected))


def numbers_within_users(frame, name):
    """A column's values of each user as numbers 0, 1, .., user by user as they occur. (n,)"""
    if name is None:
        return None
    of_user = frame.groupby(["user", name], sort=False, dropna=False)
    return torch.tensor(of_user.ngroup().to_numpy())


def numbers_of(names):
    """A column's values as numbers that depend on nothing but the text of each. (n,) int64"""
    from pandas.util import hash_array

    text = names.astype(str).to_numpy(dtype=object)
    return torch.from_numpy(hash_array(text).view(np.int64))


def signless(X):
    """Rows x of X (n, d) or -x, whichever begins with a positive number."""
    first = (X != 0).int().argmax(dim=1, keepdim=True)
    return X * X.gather(1, first).sign()


def content(rows):
    """A number for each row that is equal where all its values are. (n, d) -> (n,) int64

    The sum of its 32-bit words times random numbers, modulo 2^64.
    """
    words = (rows.double() + 0.0).view(torch.int32)  # -0.0 + 0.0 = 0.0; (n, 2d)
    generator = torch.Generator().manual_seed(0)
    limits = torch.iinfo(torch.int64)
    shape = (words.shape[1],)
    random = torch.randint(limits.min, limits.max, shape, generator=generator)
    return (words.long() * random.to(words.device)).sum(dim=1)


def pack(features):
    """Comparisons as they are, a list of per-user (m_i, d) tensors as Comparisons."""
    return features if isinstance(features, Comparisons) else Comparisons.from_list(features)


def row_numbers(frame, name):
    """A column of row numbers, (n,)."""
    return torch.tensor(frame[name].to_numpy(dtype=np.int64))


def check_rank(K, num_features, smallest):
    """InputError unless smallest <= K <= d."""
    limits = f"{smallest} and the width of the embeddings, {num_features}"
    require(smallest <= K <= num_features, f"K = {K}: a rank lies between {limits}")
