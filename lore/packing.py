"""Conversations that begin alike, computed once: trees of tokens, batches of them, attention along their paths."""

import json
import math
import sys
from typing import NamedTuple

import numpy as np
import torch
from torch.nn.utils.rnn import pad_sequence

from lore.common import InputError

PART_BYTES = (
    2**19
)  # of text in a part, about what a crash may cost: seconds of a GPU, minutes of a CPU
ALONG_PATHS = (
    "along_paths"  # name under which transformers knows the attention of packed conversations
)


def opening(conversation):
    """Messages up to the first of the user, as what conversations have in common that are computed together."""
    users = [i for i, message in enumerate(conversation) if message["role"] == "user"]
    return json.dumps(conversation[: users[0] + 1 if users else 1])


def families(conversations, together):
    """Numbers of the conversations with the same opening, family by family; each by itself where not `together`."""
    found = {}
    for i, conversation in enumerate(conversations):
        found.setdefault(opening(conversation) if together else i, []).append(i)
    return list(found.values())


class Tree(NamedTuple):
    """Token lists packed depth first, so that each shared beginning stands once.

    tokens, depth (place in its own list): t numbers each; members: the numbers of the lists; paths: where each list's
    tokens stand in the tree; new: how many of them, the last ones, no list before it had.
    """

    tokens: list
    depth: list
    members: list
    paths: list
    new: list


def plant(members, ids, most=math.inf):
    """Trees of the token lists ids[i], i in members; a new tree where one would have more than `most` tokens."""
    trees, before, path = [], np.empty(0, np.int32), np.empty(0, np.int64)
    for i in sorted(
        members, key=lambda i: ids[i].astype(">i4").tobytes()
    ):  # bytes sort as the numbers do
        least = min(len(before), len(ids[i]))
        shared = int((before[:least] == ids[i][:least]).cumprod().sum())
        if not trees or len(trees[-1].tokens) + len(ids[i]) - shared > most:
            trees.append(Tree([], [], [], [], []))
            shared = 0
        tree, new = trees[-1], len(ids[i]) - shared
        path = np.concatenate([path[:shared], len(tree.tokens) + np.arange(new)])
        tree.tokens.extend(ids[i][shared:].tolist())
        tree.depth.extend(range(shared, len(ids[i])))
        tree.members.append(i)
        tree.paths.append(path)
        tree.new.append(new)
        before = ids[i]
    return trees


def batches(trees, budget, padded):
    """Yield trees of similar size together, the largest first: one tree, or at most `budget` tokens with padding."""
    batch = []
    for tree in sorted(trees, key=lambda tree: -len(tree.tokens)):
        if batch and tokens_of([*batch, tree], padded) > budget:
            yield batch
            batch = []
        batch.append(tree)
    if batch:
        yield batch


def tokens_of(batch, padded):
    """Tokens that a batch of trees makes the model compute."""
    sizes = [len(tree.tokens) for tree in batch]
    return len(sizes) * max(sizes) if padded else sum(sizes)


def halves(batch):
    """The same conversations in the same order as two smaller batches. InputError: it is a single conversation."""
    if len(batch) > 1:
        return batch[: len(batch) // 2], batch[len(batch) // 2 :]
    (tree,) = batch
    if len(tree.members) == 1:
        raise InputError(
            f"no memory for a conversation of {len(tree.tokens)} tokens; --max_length shortens it"
        )
    ids = {
        i: np.array(tree.tokens, dtype=np.int32)[path] for i, path in zip(tree.members, tree.paths)
    }
    middle = len(tree.members) // 2
    return plant(tree.members[:middle], ids), plant(tree.members[middle:], ids)


class Stretch:
    """The new tokens of s conversations, at most n each, and the paths of at most m that they look at.

    Padded to (s, n) and (s, m), for attention alone; conversations are put together whose numbers are alike.
    """

    def __init__(self, paths, new, device):
        lengths = torch.tensor([len(path) for path in paths])
        n, m, new = max(new), int(lengths.max()), torch.tensor(new)
        path = pad_sequence([torch.from_numpy(path) for path in paths], batch_first=True)  # (s, m)
        self.start = lengths - new  # (s,) where the new tokens begin
        row = self.start.unsqueeze(1) + torch.arange(
            n
        )  # (s, n) of new tokens, as places of the path
        real = (torch.arange(n) < new.unsqueeze(1)).flatten()  # (s * n,)
        row = path.gather(1, row.clamp_max(m - 1))
        self.shared, self.n, self.m = bool(self.start.any()), n, m
        self.row, self.path, self.start = row.to(device), path.to(device), self.start.to(device)
        self.taken, self.place = real.nonzero().flatten().to(device), row.flatten()[real].to(device)
        self.masks = {}

    def mask(self, window, additive):
        """(s, 1, n, m): what each new token sees, itself and those before it, the last `window` only. None: causal.

        additive: None for True where seen, or the dtype of numbers to add to the scores.
        """
        if not (self.shared or additive or (window or math.inf) < self.m):
            return None
        if (window, additive) not in self.masks:
            at = (
                self.start.unsqueeze(1) + torch.arange(self.n, device=self.start.device)
            ).unsqueeze(2)  # (s, n, 1)
            place = torch.arange(self.m, device=self.start.device)
            seen = ((place <= at) & (place > at - (window or math.inf))).unsqueeze(1)
            if additive:
                lowest = torch.finfo(additive).min
                seen = torch.zeros(seen.shape, dtype=additive, device=seen.device).masked_fill_(
                    ~seen, lowest
                )
            self.masks[window, additive] = seen
        return self.masks[window, additive]


def stretches(paths, new, device):
    """Stretches of conversations that bring about as many tokens to beginnings of about the same length."""
    alike = {}
    for path, count in zip(paths, new):
        if count:  # none: it is the beginning of another, or the same
            key = count.bit_length(), count < len(path) and len(path).bit_length()
            alike.setdefault(key, []).append((path, count))
    return [Stretch(*zip(*group), device) for group in alike.values()]


def attention_along_paths(
    module, query, key, value, attention_mask, scaling=None, packing=None, sliding_window=None, **options
):  # fmt: skip
    """What transformers calls in place of its own attention. Each (1, heads, t, width) -> (1, t, heads, width)

    packing: (stretches, True for the model's own eager attention), given to the model with the tokens.
    """
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    if packing is None:
        raise InputError(
            "this model does not hand on how its conversations are packed: use --no-share"
        )
    parts, eager = packing
    kernel = (
        sys.modules[type(module).__module__].eager_attention_forward
        if eager
        else sdpa_attention_forward
    )
    result = query.new_empty(query.shape[2], query.shape[1], value.shape[3])  # (t, heads, width)
    for part in parts:
        mask = part.mask(sliding_window, query.dtype if eager else None)
        # (1, heads, t, width) -> (s, heads, n, width) of q, (s, heads, m, width) of k and v
        q, k, v = (
            x[0][:, at].transpose(0, 1)
            for x, at in ((query, part.row), (key, part.path), (value, part.path))
        )
        options = {**options, "is_causal": mask is None}
        found, _ = kernel(
            module, q, k, v, mask, scaling=scaling, sliding_window=sliding_window, **options
        )
        result[part.place] = found.flatten(0, 1)[
            part.taken
        ]  # (s, n, heads, width) -> (s * n, heads, width)
    return result.unsqueeze(0), None


def text_bytes(conversation):
    return sum(len(message["content"].encode()) for message in conversation)


def parts_of(conversations, together):
    """Row numbers in parts of about PART_BYTES of text, the longest conversations first, so that the first batch shows
    whether the memory is enough. Conversations with the same opening stay `together`, and count it once."""
    sized, parts, filled = [], [], math.inf
    for family in families(conversations, together):
        messages = {message["content"] for row in family for message in conversations[row]}
        sized.append((sum(len(text.encode()) for text in messages), family))
    for size, family in sorted(sized, key=lambda pair: -pair[0]):
        if filled + size > PART_BYTES:
            parts.append([])
            filled = 0
        parts[-1].extend(family)
        filled += size
    return parts
