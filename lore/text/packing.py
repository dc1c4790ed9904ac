"""Conversations that begin alike, computed once: trees of tokens, batches of trees, parts of a run."""

import json
import math
from itertools import chain
from operator import attrgetter
from typing import NamedTuple

import numpy as np

from lore.common import require

PART_BYTES = 2**19  # of text: what a crash may cost, seconds of a GPU or minutes of a CPU


class Tree(NamedTuple):
    """Token lists packed depth first, so that each shared beginning stands once.

    tokens, depth (place in its own list): t numbers each; members: the numbers of the lists;
    paths: where each list's tokens stand in the tree; new: how many of them, the last ones, no list
    before it had.
    """

    tokens: list
    depth: list
    members: list
    paths: list
    new: list

    def tokens_along(self, path):
        """The token list that stands at the places of a path."""
        return np.array(self.tokens, dtype=np.int32)[path]


def group_by_opening(conversations, together):
    """Numbers of the conversations that open alike, group by group; each by itself if not `together`."""
    groups = {}
    for number, conversation in enumerate(conversations):
        key = opening(conversation) if together else number
        groups.setdefault(key, []).append(number)
    return list(groups.values())


def opening(conversation):
    """Messages up to the first of the user: who has them in common is computed together."""
    roles = [message["role"] for message in conversation]
    end = roles.index("user") if "user" in roles else 0
    return json.dumps(conversation[: end + 1])


def pack_trees(members, ids, most=math.inf):
    """Trees of the token lists ids[i], i in members; a new tree where one would pass `most` tokens."""

    def sort_key(i):
        return ids[i].astype(">i4").tobytes()  # bytes sort as the numbers do

    trees = []
    before = np.empty(0, np.int32)
    path = np.empty(0, np.int64)
    for i in sorted(members, key=sort_key):
        shared = count_shared(before, ids[i])
        if not trees or len(trees[-1].tokens) + len(ids[i]) - shared > most:
            trees.append(Tree([], [], [], [], []))
            shared = 0
        tree = trees[-1]
        new = len(ids[i]) - shared
        path = np.concatenate([path[:shared], len(tree.tokens) + np.arange(new)])
        tree.tokens.extend(ids[i][shared:].tolist())
        tree.depth.extend(range(shared, len(ids[i])))
        tree.members.append(i)
        tree.paths.append(path)
        tree.new.append(new)
        before = ids[i]
    return trees


def count_shared(a, b):
    """How many tokens two lists begin with in common."""
    least = min(len(a), len(b))
    return int((a[:least] == b[:least]).cumprod().sum())


def batch_trees(trees, budget, padded):
    """Yield trees of similar size, the largest first: one, or at most `budget` tokens with padding."""

    def size(tree):
        return len(tree.tokens)

    batch = []
    for tree in sorted(trees, key=size, reverse=True):
        if batch and count_computed([*batch, tree], padded) > budget:
            yield batch
            batch = []
        batch.append(tree)
    if batch:
        yield batch


def count_computed(batch, padded):
    """Tokens that a batch of trees makes the model compute."""
    sizes = [len(tree.tokens) for tree in batch]
    return len(sizes) * max(sizes) if padded else sum(sizes)


def paths_of(batch):
    """[(tree, path)] of the conversations of a batch, in the order of their vectors."""
    pairs = []
    for tree in batch:
        for path in tree.paths:
            pairs.append((tree, path))
    return pairs


def members_of(batch):
    """The numbers of the conversations of a batch, in the order of their vectors."""
    return [*chain.from_iterable(map(attrgetter("members"), batch))]


def split_batch(batch):
    """The same conversations in the same order as two batches. InputError: it is a single one."""
    if len(batch) > 1:
        middle = len(batch) // 2
        return batch[:middle], batch[middle:]
    (tree,) = batch
    size = f"a conversation of {len(tree.tokens)} tokens"
    require(len(tree.members) > 1, f"no memory for {size}; --max_length shortens it")
    ids = dict(zip(tree.members, map(tree.tokens_along, tree.paths)))
    middle = len(tree.members) // 2
    return pack_trees(tree.members[:middle], ids), pack_trees(tree.members[middle:], ids)


def split_into_parts(conversations, together):
    """Row numbers in parts of about PART_BYTES of text, each a list.

    The longest conversations come first, so that the first batch shows whether the memory is
    enough. Conversations with the same opening stay `together`, and count it once.
    """
    sized = []
    for rows in group_by_opening(conversations, together):
        texts = set()
        for row in rows:
            texts.update(message["content"] for message in conversations[row])
        sized.append((sum(len(text.encode()) for text in texts), rows))
    sized.sort(key=lambda pair: pair[0], reverse=True)
    parts = []
    filled = math.inf
    for size, rows in sized:
        if filled + size > PART_BYTES:
            parts.append([])
            filled = 0
        parts[-1].extend(rows)
        filled += size
    return parts
