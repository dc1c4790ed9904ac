"""Who is seen and who is not, and which prompts are trained on: drawn by a seed, for everybody at once."""

import numpy as np

from lore.common import InputError
from lore.comparisons import Comparisons, Groups


def prompts_apart(frame, share, seed, column="prompt"):
    """(train, test) rows of a frame: a share of its prompts, with all their comparisons, on one side."""
    prompts = np.random.default_rng(seed).permutation(sorted(frame[column].unique()))
    to_train = frame[column].isin(prompts[: round(share * len(prompts))])
    return frame[to_train], frame[~to_train]


def people_apart(train, test, least, most, few, seed, people="people"):
    """Half of the people seen, half unseen -> Groups, each tested on all of their test pairs.

    train, test: Splits with a column `prompt`; at most `most` pairs of a seen person train, and `few`
    of an unseen one are known, drawn by `seed` as the people are. InputError: fewer than two people
    have `least` pairs on each side.
    """
    enough = busy(train, least) & busy(test, least)
    if len(enough) < 2:
        raise InputError(
            f"{len(enough)} {people} have {least} comparisons on each side; lower --min_comparisons"
        )
    everybody = np.random.default_rng(seed).permutation(sorted(enough)).tolist()
    half = len(everybody) // 2
    seen, unseen = sorted(everybody[:half]), sorted(everybody[half:])
    shuffled = train.frame.sample(frac=1, random_state=seed).groupby("user_id")
    return Groups(
        Comparisons.from_frame(train.table, shuffled.head(most), seen, prompt="prompt"),
        Comparisons.from_frame(test.table, test.frame, seen, prompt="prompt"),
        Comparisons.from_frame(train.table, shuffled.head(few), unseen, prompt="prompt"),
        Comparisons.from_frame(test.table, test.frame, unseen, prompt="prompt"),
    )


def busy(side, least):
    """The people with at least so many comparisons on a side."""
    counts = side.frame["user_id"].value_counts()
    return set(counts.index[counts >= least])


def print_groups(groups, people):
    for name, group in groups._asdict().items():
        sizes = f"{len(group.user_ids):5} {people} {len(group):7} comparisons"
        print(f"{name:15} {sizes}, d = {group.num_features}")
