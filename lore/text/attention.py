"""Attention of packed conversations: each token sees what stands before it in its own conversation.

Queries and keys are gathered along the paths of the trees and handed to the model's own kernel.
"""

import importlib
import math
from typing import NamedTuple

import torch
from torch.nn.utils.rnn import pad_sequence

from lore.common import InputError

ALONG_PATHS = "along_paths"  # name under which transformers knows this attention


class Packing(NamedTuple):
    """How the tokens of one pass are packed; given to the model beside them."""

    stretches: list
    kernel: object  # attention of transformers that computes each stretch
    additive: bool  # whether its mask is added to the scores, as eager attention wants it


class Stretch:
    """The new tokens of s conversations, at most n each, and their paths of at most m tokens.

    Padded to (s, n) and (s, m), for attention alone; group_paths puts those together whose numbers
    are alike.
    """

    def __init__(self, paths, new, device):
        lengths = torch.tensor([len(path) for path in paths])
        new = torch.tensor(new)
        self.n = int(new.max())
        self.m = int(lengths.max())
        self.start = lengths - new  # (s,) where the new tokens begin
        self.shared = bool(self.start.any())
        path = pad_sequence([torch.from_numpy(path) for path in paths], batch_first=True)  # (s, m)
        steps = torch.arange(self.n)
        at = self.start.unsqueeze(1) + steps  # (s, n) new tokens, as places of the path
        real = (steps < new.unsqueeze(1)).flatten()  # (s * n,) and not padding
        row = path.gather(1, at.clamp_max(self.m - 1))  # (s, n) the same, as places of the pass
        self.start = self.start.to(device)
        self.path = path.to(device)
        self.row = row.to(device)
        self.taken = real.nonzero().flatten().to(device)
        self.target = row.flatten()[real].to(device)
        self.masks = {}

    def mask(self, window, additive):
        """(s, 1, n, m): what each new token sees, itself and those before it, the last `window` only.

        additive: None for True where seen, or the dtype of numbers to add to the scores.
        None: plainly causal.
        """
        window = window or math.inf
        if not (self.shared or additive or window < self.m):
            return None
        if (window, additive) not in self.masks:
            position = torch.arange(self.m, device=self.start.device)
            at = self.start.unsqueeze(1) + torch.arange(self.n, device=self.start.device)
            at = at.unsqueeze(2)  # (s, n, 1)
            mask = ((position <= at) & (position > at - window)).unsqueeze(1)
            if additive:
                scores = torch.zeros(mask.shape, dtype=additive, device=mask.device)
                mask = scores.masked_fill_(~mask, torch.finfo(additive).min)
            self.masks[window, additive] = mask
        return self.masks[window, additive]


def group_paths(paths, new, device):
    """Stretches of conversations that bring about as many tokens to beginnings of about one length."""
    alike = {}
    for path, count in zip(paths, new):
        if count:  # none: it is the beginning of another, or the same
            key = count.bit_length(), count < len(path) and len(path).bit_length()
            alike.setdefault(key, []).append((path, count))
    return [Stretch(*zip(*group), device) for group in alike.values()]


def own_kernel(model, eager):
    """The attention that the model would use for itself. InputError: it has none of its own."""
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    if not eager:
        return sdpa_attention_forward
    # every architecture keeps its eager attention (caps, sinks) under this name beside its model
    module = importlib.import_module(type(model).__module__)
    if not hasattr(module, "eager_attention_forward"):
        raise InputError(f"{type(model).__name__} has no replaceable attention: use --no-share")
    return module.eager_attention_forward


def use_attention_along_paths(model):
    """From here on the model takes packed conversations, each pass with its Packing."""
    from transformers import AttentionInterface

    AttentionInterface.register(ALONG_PATHS, attend_along_paths)
    model.set_attn_implementation(ALONG_PATHS)


def attend_along_paths(
    module, query, key, value, attention_mask, scaling=None, packing=None, sliding_window=None, **options
):  # fmt: skip
    """What transformers calls in place of its own attention; arguments and result as it wants them.

    query, key, value: (1, heads, t, width) -> (1, t, heads, width)
    """
    if packing is None:
        raise InputError("this model does not hand on how its conversations are packed: use --no-share")
    # as values: where precision is mixed, queries are float32 and what kernels return is not
    result = value.new_empty(query.shape[2], query.shape[1], value.shape[3])  # (t, heads, width)
    for stretch in packing.stretches:
        mask = stretch.mask(sliding_window, query.dtype if packing.additive else None)
        options["is_causal"] = mask is None
        attended, _ = packing.kernel(
            module,
            gather_rows(query, stretch.row),
            gather_rows(key, stretch.path),
            gather_rows(value, stretch.path),
            mask,
            scaling=scaling,
            sliding_window=sliding_window,
            **options,
        )
        # (s, n, heads, width) -> (s * n, heads, width), without the padding
        result[stretch.target] = attended.flatten(0, 1)[stretch.taken]
    return result.unsqueeze(0), None


def gather_rows(states, rows):
    """(1, heads, t, width) at rows (s, n) -> (s, heads, n, width)"""
    taken = by_token(states).index_select(0, rows.flatten())  # (s * n, heads, width)
    return taken.unflatten(0, rows.shape).transpose(1, 2)


def by_token(states):
    """(1, heads, t, width) -> (t, heads, width)"""
    return states[0].transpose(0, 1)
