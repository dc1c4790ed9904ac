"""Who is seen and who is not, and which prompts are trained on: drawn by a seed, for everybody at once."""

from typing import NamedTuple

import numpy as np
import torch

from lore.common import require
from lore.fit.comparisons import Comparisons, pack

SEEN_USERS = ("train", "seen")  # the groups of seen users; the other two are of unseen ones
NAMED = 8  # ids in a printed line


class Groups(NamedTuple):
    """train, seen: seen users' pairs, fitted and tested; few_shot_train, unseen: the same of unseen users."""

    train: Comparisons
    seen: Comparisons
    few_shot_train: Comparisons
    unseen: Comparisons

    @property
    def sizes(self):
        """N, N_unseen: how many people are seen, and how many are not."""
        return len(self.train.user_ids), len(self.unseen.user_ids)

    def checked(self, N, N_unseen):
        """Packed. InputError: other than N or N_unseen users, or in training others than in test;
        different widths."""
        groups = Groups(*map(pack, self))
        d = groups.train.num_features
        for name, group in groups._asdict().items():
            if name in SEEN_USERS:
                users, expected = groups.train.user_ids, N
            else:
                users, expected = groups.few_shot_train.user_ids, N_unseen
            count = len(group.user_ids)
            words = f"{name}: {count} users; expected the same {expected} in training and test"
            require(count == expected and group.user_ids == users, words)
            words = f"{name}: embeddings of width {group.num_features}, train: {d}"
            require(group.num_features == d, words)
        return groups


def prompts_apart(frame, share, seed, column="prompt"):
    """(train, test) rows of a frame: a share of its prompts, with all their comparisons, on one side."""
    prompts = np.random.default_rng(seed).permutation(sorted(frame[column].unique()))
    to_train = frame[column].isin(prompts[: round(share * len(prompts))])
    return frame[to_train], frame[~to_train]


def people_apart(train, test, least, most, few, seed, people="people", choice=None, **columns):
    """Half of the people seen, half unseen -> Groups, each tested on all of their test pairs.

    train, test: Splits; at most `most` pairs of a seen person train, and `few` of an unseen one are
    known, drawn by `seed` as the people are. choice: the column whose equal values are one choice
    among several replies; then choices are counted, and drawn, not pairs. columns: as from_frame's;
    the prompt's is `prompt` unless another is named.
    InputError: fewer than two people have `least` on each side.
    """
    enough = busy(train, least, choice) & busy(test, least, choice)
    there = {*train.frame["user_id"], *test.frame["user_id"]}
    counted = "comparisons" if choice is None else "choices"
    if len(enough) < len(there):
        out = there - enough
        reason = f"with fewer than {least} {counted} on one of the sides (--min_{counted})"
        print(f"left out: {len(out)} of {len(there)} {people} {reason}{names_of(out)}")
    few_people = f"{len(enough)} {people} have {least} {counted} on each side"
    require(len(enough) > 1, f"{few_people}; lower --min_{counted}")
    everybody = np.random.default_rng(seed).permutation(sorted(enough)).tolist()
    half = len(everybody) // 2
    seen = sorted(everybody[:half])
    unseen = sorted(everybody[half:])
    shuffled = train.frame.sample(frac=1, random_state=seed)
    number = shot_numbers(shuffled, choice)
    for kind, users, limit in (("train", seen, most), ("few_shot", unseen, few)):
        require(limit > 0, f"--max_{kind} {limit}: of each person one is needed at least")
        beyond = int((shuffled["user_id"].isin(users) & (number >= limit)).sum())
        if beyond:
            print(f"left out: {beyond} comparisons to train on, of {people} beyond --max_{kind} {limit}")
    columns = {"prompt": "prompt", "shot": choice, "choice": choice} | columns
    return Groups(
        Comparisons.from_frame(train.table, shuffled[number < most], seen, **columns),
        Comparisons.from_frame(test.table, test.frame, seen, **columns),
        Comparisons.from_frame(train.table, shuffled[number < few], unseen, **columns),
        Comparisons.from_frame(test.table, test.frame, unseen, **columns),
    )


def names_of(people):
    """`: a, b, c and 9 more`, or nothing where there is nobody."""
    names = sorted(map(str, people))[:NAMED]
    more = f" and {len(people) - NAMED} more" if len(people) > NAMED else ""
    return f": {', '.join(names)}{more}" if names else ""


def shot_numbers(frame, choice):
    """Which of its person's rows each is, 0, 1, ..; which of the choices, where that is a column."""
    if choice is None:
        return frame.groupby("user_id").cumcount()
    first = frame[["user_id", choice]].drop_duplicates()
    first["number"] = first.groupby("user_id").cumcount()
    return frame[["user_id", choice]].merge(first, how="left").set_axis(frame.index)["number"]


def busy(side, least, choice=None):
    """The people with at least so many comparisons on a side, or so many choices."""
    frame = side.frame if choice is None else side.frame.drop_duplicates(["user_id", choice])
    counts = frame["user_id"].value_counts()
    return set(counts.index[counts >= least])


def print_groups(groups, people):
    for name, group in groups._asdict().items():
        sizes = f"{len(group.user_ids):5} {people} {len(group):7} comparisons"
        print(f"{name:15} {sizes}, d = {group.num_features}")


def shuffled_positions(user, trials, generator):
    """Position of each shot in a random order of its user's, 0 .. m_i - 1, in every trial.

    user (shots,) ascending -> (trials, shots)
    """
    keys = torch.rand(trials, len(user), generator=generator, dtype=torch.float64)
    order = (keys + user).argsort(dim=1)  # users stay in their stretches, their shots are shuffled
    number = torch.arange(len(user)) - torch.searchsorted(user, user)  # (shots,) within the user's
    return torch.empty_like(order).scatter_(1, order, number.expand(trials, -1))
