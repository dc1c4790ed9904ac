"""Rivals of LoRe over fixed embeddings, one module each, written from the equations of their papers.

    fit(groups, head, seed) -> Rival        groups: lore.fit.groups.Groups; head: (d, 1) or None

All use what the published code does by default; where one departs from it, its first lines say how and why.
InputError: a rival that cannot take the data, or whose fit diverges. Beside them: LoRe itself (ours.py), a
reader's own method (own_method.py) on the published splits (splits_on_disk.py), the data sets (data_sets.py),
results that outlast a crash (parts.py), and what is said of all of them (overview.py).
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from measure import timed

from lore.common import require
from lore.fit.evaluation import TESTED, Cell
from lore.fit.groups import SEEN_USERS
from lore.fit.likelihood import LOGIT_SCALE


class Rival(NamedTuple):
    """What a rival makes of all pairs, and what that took."""

    log_odds: dict  # group -> (n,) of the reply that was preferred over the other
    seconds: float  # to fit the seen people
    seconds_new: float  # to take in all the unseen ones
    numbers: int  # stored of each person


class Entry(NamedTuple):
    """How one method did on one population or split."""

    cell: Cell  # scored on the pairs that no fit has seen
    seconds: float  # to fit the seen people; of a reader's own method all that it took
    seconds_new: float | None = None  # to take in one person; None = not told apart
    numbers: int | None = None  # stored per person; likewise
    rank: int | None = None  # that held-out prompts spoke for, where a method asks them

    @classmethod
    def of(cls, cell, *facts):
        """Of a cell scored on all groups. What nobody asks for here is left out: the fit, training pairs."""
        tested = {}
        for name in ("accuracy", "users", "outcomes"):
            by_group = getattr(cell, name)
            tested[name] = {group: by_group[group] for group in TESTED if group in by_group}
        return cls(Cell(cell.seed, None, cell.K, **tested), *facts)


def entry_of(rival, name, groups, seed):
    """The Entry of a Rival."""
    margins = {group: LOGIT_SCALE * odds.float() for group, odds in rival.log_odds.items()}
    cell = Cell(seed, None, name).scored(margins, groups)
    seconds_new = rival.seconds_new / len(groups.unseen.user_ids)
    return Entry.of(cell, rival.seconds, seconds_new, rival.numbers)


def differences(group):
    """X (n, d) = e(chosen) - e(rejected), float32, and whose each is (n,)."""
    return group.differences(torch.zeros(())), group.user


def replies(group):
    """e(chosen), e(rejected), (n, d) each. InputError: only their differences are known."""
    require(group.chosen is not None, "only differences of embeddings are known; both are needed")
    return group.table[group.chosen].float(), group.table[group.rejected].float()


def rows_by_user(user):
    """The rows of each person, as a list of (m_i,) tensors; user (n,) ascending."""
    return torch.arange(len(user)).split(torch.bincount(user).tolist())


def bradley_terry(log_odds):
    """Mean of -log P. (n,) -> scalar"""
    return -F.logsigmoid(log_odds).mean()


def rival_of(name, groups, log_odds, seen, new_people, seconds, numbers):
    """The Rival by log_odds(group, what is known of its people): of the seen ones, whose fit took so many seconds,
    and of the unseen ones new_people(their known pairs), which is timed here.

    InputError: the fit of the rival of this name has diverged.
    """
    unseen, seconds_new = timed(new_people, groups.few_shot_train)
    result = {}
    for group_name, group in groups._asdict().items():
        with torch.no_grad():
            result[group_name] = log_odds(group, seen if group_name in SEEN_USERS else unseen)
        require(result[group_name].isfinite().all(), f"{name} diverged ({group_name})")
    return Rival(result, seconds, seconds_new, numbers)
