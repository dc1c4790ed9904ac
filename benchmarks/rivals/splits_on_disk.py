"""One population as anybody can read it: PATH.safetensors and PATH.parquet, for a method in memory as `Pairs`.

What is left and what is right, and the order of the replies and of a person's pairs, follow from a hash of the vectors
alone: they are the same whichever reply was preferred, so nothing but `left_preferred` tells of that. One thing does
that no order hides: where a reply was preferred to several others, it is in all of their pairs. Who looks at one test
pair at a time cannot see that.
"""

import hashlib
import re
from typing import NamedTuple

import numpy as np
import torch

from lore.common import require
from lore.fit.groups import SEEN_USERS
from lore.splits import Split, save_split

COLUMNS = ("person", "prompt", "left", "right")  # of the parquet file, beside `group` and `left_preferred`


class Pairs(NamedTuple):
    """n pairs of replies that some people compared."""

    embeddings: torch.Tensor  # (rows, d) float32, of all replies of the population
    head: torch.Tensor | None  # (d, 1) of the reward model; None where none is used
    person: torch.Tensor  # (n,) a number for each person, of seen and unseen ones together
    prompt: torch.Tensor  # (n,) a number for each prompt (PRISM: for each dialogue)
    left: torch.Tensor  # (n,) row of the embeddings
    right: torch.Tensor  # (n,) likewise
    left_preferred: torch.Tensor | None = None  # (n,) true or false; None where it is to be predicted
    test: "Pairs | None" = None  # of unseen people: pairs that they are tested on

    def differences(self):
        """e(left) - e(right), (n, d)."""
        return self.embeddings[self.left] - self.embeddings[self.right]


def hashes(vectors):
    """A number for each row that depends on nothing but its values. (n, d) float32 -> (n,) uint64"""
    of_rows = [hashlib.blake2b(row.tobytes(), digest_size=8).digest() for row in vectors.numpy()]
    return np.frombuffer(b"".join(of_rows), dtype=np.uint64)


def laid_out(groups):
    """embeddings (rows, d), and a data frame per group whose index tells which pair of it a row is.

    InputError: only differences of embeddings are known.
    """
    import pandas as pd

    keys = {}
    vectors = []
    for name, group in groups._asdict().items():
        require(group.chosen is not None, "only differences of embeddings are known; both are needed")
        rows, which = torch.cat([group.chosen, group.rejected]).cpu().unique(return_inverse=True)
        vectors.append(group.table[rows].float().cpu())
        keys[name] = hashes(vectors[-1])[which].reshape(2, -1)  # of the chosen, of the rejected
    of_replies = np.concatenate([hashes(of_group) for of_group in vectors])
    replies, first = np.unique(of_replies, return_index=True)
    prompts = torch.cat([group.item for group in groups]).unique()
    people = len(groups.train.user_ids)
    frames = {}
    for name, group in groups._asdict().items():
        chosen, rejected = np.searchsorted(replies, keys[name])
        of_group = {
            "group": name,
            "person": group.user.cpu().numpy() + (0 if name in SEEN_USERS else people),
            "prompt": torch.searchsorted(prompts, group.item).numpy(),
            "left": np.minimum(chosen, rejected),
            "right": np.maximum(chosen, rejected),
            "left_preferred": chosen < rejected,
        }
        frames[name] = pd.DataFrame(of_group).sort_values([*COLUMNS], kind="stable")
    return torch.cat(vectors)[first], frames


def save_population(path, groups, head, **metadata):
    """Everything, for readers of their own."""
    import pandas as pd

    embeddings, frames = laid_out(groups)
    frame = pd.concat(frames.values(), ignore_index=True)
    save_split(path, Split(embeddings, frame, head), **metadata)


def pairs_for_method(groups, head):
    """What a method may know, as Pairs of the seen people and of the unseen ones; the frame of what it is asked.

    No test pairs of seen people, and no label of a test pair.
    """
    embeddings, frames = laid_out(groups)
    of_groups = {}
    for name in ("train", "few_shot_train", "unseen"):
        columns = [torch.tensor(frames[name][column].to_numpy()) for column in (*COLUMNS, "left_preferred")]
        of_groups[name] = Pairs(embeddings, head, *columns)
    asked = of_groups["unseen"]._replace(left_preferred=None)
    return of_groups["train"], of_groups["few_shot_train"]._replace(test=asked), frames["unseen"]


def file_name(data_set, seed):
    """planted: low rank, 0 -> planted-low-rank.0"""
    return f"{re.sub('[^a-z0-9.]+', '-', data_set.lower())}.{seed}"
