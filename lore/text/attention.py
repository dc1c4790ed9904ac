"""Attention of packed conversations: each token sees what stands before it in its own conversation.

Keys and values are gathered along the paths of the trees. In half precision on a GPU, flash attention takes
conversations of any lengths in one call; elsewhere they go to the model's own kernel in padded stretches.
"""

import importlib
import math
from functools import cached_property

import numpy as np
import torch
from torch.nn.utils.rnn import pad_sequence

from lore.common import require

ALONG_PATHS = "along_paths"  # name under which transformers knows this attention
WIDEST_HEAD = 256  # numbers of a head that flash attention takes


class Packing:
    """How the conversations of one pass are packed; given to the model beside their tokens.

    paths: where the tokens of each stand in the pass; new: how many of them, the last ones, no other had
    before it: these stand side by side, conversation by conversation. kernel: the model's own attention;
    additive: whether its mask is added to the scores, as eager attention wants it.
    """

    def __init__(self, paths, new, device, kernel, additive):
        self.paths = []
        self.new = []
        for path, count in zip(paths, new):
            if count:  # none: it is the beginning of another, or the same
                self.paths.append(path)
                self.new.append(count)
        self.device = device
        self.kernel = kernel
        self.additive = additive

    @cached_property
    def stretches(self):
        """Conversations that bring about as many tokens to beginnings of about one length, together."""
        alike = {}
        for path, count in zip(self.paths, self.new):
            key = count.bit_length(), count < len(path) and len(path).bit_length()
            alike.setdefault(key, []).append((path, count))
        return [Stretch(*zip(*group), self.device) for group in alike.values()]

    @cached_property
    def end_to_end(self):
        """All paths end to end (p,), and of new tokens and of paths, as flash attention takes them, where each
        conversation's begin and the last one's end, (c + 1,) int32, and how many there are of one at most."""
        path = torch.from_numpy(np.concatenate(self.paths))
        counts = [self.new, [*map(len, self.paths)]]
        bounds = [torch.tensor([0, *of_kind]).cumsum(0).int().to(self.device) for of_kind in counts]
        return path.to(self.device), *bounds, *map(max, counts)


class Stretch:
    """The new tokens of s conversations, at most n each, and their paths of at most m tokens.

    Padded to (s, n) and (s, m), for attention alone.
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


def own_kernel(model, eager):
    """The attention that the model would use for itself. InputError: it has none of its own."""
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    if not eager:
        return sdpa_attention_forward
    # every architecture keeps its eager attention (caps, sinks) under this name beside its model
    module = importlib.import_module(type(model).__module__)
    replaceable = hasattr(module, "eager_attention_forward")
    require(replaceable, f"{type(model).__name__} has no replaceable attention: use --no-share")
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
    unknown = "this model does not hand on how its conversations are packed: use --no-share"
    require(packing is not None, unknown)
    if not packing.additive and flash_takes(query, value):
        attended = attend_at_once(query, key, value, packing.end_to_end, scaling, sliding_window)
        return attended.unsqueeze(0), None
    # as values: where precision is mixed, queries are float32 and what kernels return is not
    result = value.new_empty(query.shape[2], query.shape[1], value.shape[3])  # (t, heads, width)
    for stretch in packing.stretches:
        mask = stretch.mask(sliding_window, query.dtype if packing.additive else None)
        options |= {"is_causal": mask is None, "scaling": scaling, "sliding_window": sliding_window}
        new = gather_rows(query, stretch.row)
        keys = gather_rows(key, stretch.path)
        values = gather_rows(value, stretch.path)
        attended, _ = packing.kernel(module, new, keys, values, mask, **options)
        # (s, n, heads, width) -> (s * n, heads, width), without the padding
        result[stretch.target] = attended.flatten(0, 1)[stretch.taken]
    return result.unsqueeze(0), None


def gather_rows(states, rows):
    """(1, heads, t, width) at rows (s, n) -> (s, heads, n, width)"""
    taken = by_token(states).index_select(0, rows.flatten())  # (s * n, heads, width)
    return taken.unflatten(0, rows.shape).transpose(1, 2)


def flash_takes(query, value):
    """Whether flash attention computes these."""
    half = query.dtype == value.dtype and query.dtype in (torch.bfloat16, torch.float16)
    width = query.shape[3]
    fits = width == value.shape[3] and width % 8 == 0 and width <= WIDEST_HEAD
    on_nvidia = query.is_cuda and torch.version.cuda is not None
    return half and fits and on_nvidia and torch.cuda.get_device_capability(query.device) >= (8, 0)


def attend_at_once(query, key, value, end_to_end, scaling, window):
    """All conversations of a pass, without padding and masks. end_to_end: of its Packing; window: tokens that
    one sees, None = all.

    (1, heads, t, width) -> (t, heads, width)
    """
    path, *lengths = end_to_end
    before = window - 1 if window else -1  # -1: all
    # as torch's own varlen_attn calls it, which before torch 2.12 refuses fewer heads of keys than of queries
    attended, *_ = torch.ops.aten._flash_attention_forward(
        by_token(query),
        by_token(key).index_select(0, path),  # (p, heads, width)
        by_token(value).index_select(0, path),  # (p, heads, width)
        *lengths,
        0.0,  # dropout
        not window,  # causal from the common end; a window says the same, and how far back
        return_debug_mask=False,
        scale=scaling,
        window_size_left=before,
        window_size_right=0,
    )
    return attended


def by_token(states):
    """(1, heads, t, width) -> (t, heads, width)"""
    return states[0].transpose(0, 1)
