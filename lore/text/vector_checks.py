"""Whether vectors are those of each text by itself, and their product with the head the model's own reward."""

import numpy as np
import torch

from lore.common import InputError, require
from lore.text.attention import use_attention_along_paths
from lore.text.packing import paths_of

# of 1 + |reward|
REWARD_TOLERANCE = {"float32": 1e-4, "mixed": 5e-2, "bfloat16": 5e-2, "float16": 1e-2}
VECTOR_TOLERANCE = {  # of the norm: rounding alone moves the means of MiniLM by up to .010 in bfloat16
    "last": {"float32": 3e-4, "mixed": 0.15, "bfloat16": 0.15, "float16": 3e-2},
    "mean": {"float32": 3e-4, "mixed": 3e-2, "bfloat16": 3e-2, "float16": 1e-2},
}
SHORT = 16  # tokens of a text that is computed beside a long one


def out_of_memory(error):
    """Whether a RuntimeError is that of a GPU or CPU without enough memory."""
    told = ("out of memory", "allocate memory", "ALLOC_FAILED")
    return isinstance(error, torch.OutOfMemoryError) or any(text in str(error) for text in told)


class VectorChecks:
    """Compares an encoder's vectors with the model's own pass on one text, again and again.

    What a model does depends on lengths (windows, scaled positions), so the first batch is not enough:
    the longest text of a batch is compared whenever none as long was, the shortest whenever none
    stood beside one so much longer.
    """

    def __init__(self, encoder):
        self.encoder = encoder
        self.longest = 0  # tokens of the longest text compared so far
        self.spread = -1  # tokens by which a compared text was shorter than the longest beside it

    def check(self, batch, vectors):
        """InputError unless the vectors (c, d) of a batch are right, as far as can be told."""
        paths = paths_of(batch)
        lengths = [len(path) for _, path in paths]
        first = self.longest == 0
        longest = max(lengths)
        spread = longest - min(lengths)
        if longest <= self.longest and spread <= self.spread:
            return
        self.longest = max(self.longest, longest)
        self.spread = max(self.spread, spread)
        if first:
            tree, path = paths[lengths.index(longest)]
            self.check_branches(tree.tokens_along(path))
        for number in {lengths.index(longest), lengths.index(min(lengths))}:
            tree, path = paths[number]
            self.compare(tree.tokens_along(path), vectors[number])

    def check_branches(self, tokens):
        """The same for a text, one that branches off it, and a short one beside them."""
        tokens = tokens[: max(self.encoder.tree_tokens // 2, 4 * SHORT)]
        ids = [tokens[:SHORT], tokens, np.delete(tokens, len(tokens) // 2)]
        groups = [[0], [1, 2]] if self.encoder.packs else [[0], [1], [2]]
        for batch in self.encoder.arrange(groups, ids):
            for (tree, path), vector in zip(paths_of(batch), self.encoder.vectors(batch)):
                self.compare(tree.tokens_along(path), vector)
                if self.encoder.pooling == "last":
                    self.check_head(tree.tokens_along(path), vector)

    def compare(self, tokens, vector):
        """InputError unless vector (d,) is what the model gives for these tokens by themselves."""
        encoder = self.encoder
        states = self.run(encoder.model.base_model, tokens).last_hidden_state[0].float().cpu()  # (t, d)
        alone = states[-1] if encoder.pooling == "last" else states.mean(0)
        vector = vector.float()
        allowed = VECTOR_TOLERANCE[encoder.pooling][encoder.precision] * alone.norm()
        way_out = "--no-share" if encoder.packs else "--batch_tokens 1"
        near = (vector - alone).norm() <= allowed  # not where it is NaN
        require(near, f"{encoder.name}: a vector depends on what is computed beside it; use {way_out}")

    def check_head(self, tokens, vector):
        """InputError unless vector @ head is the model's own reward for these tokens."""
        encoder = self.encoder
        logit = self.run(encoder.model, tokens).logits.float().item()
        bias = encoder.model.score.bias  # cancels in differences
        product = (vector.float() @ encoder.head).item()  # (d,) @ (d, 1)
        if bias is not None:
            product += bias.float().item()
        near = abs(product - logit) <= REWARD_TOLERANCE[encoder.precision] * (1 + abs(logit))
        require(near, f"{encoder.name}: embedding @ head is {product:.5f} but the model says {logit:.5f}")

    @torch.inference_mode()
    def run(self, module, tokens):
        """What the model, or its body, makes of one text. InputError: no memory for it."""
        encoder = self.encoder
        row = torch.tensor(tokens, device=encoder.device).unsqueeze(0)  # (1, t)
        if encoder.packs:
            encoder.model.set_attn_implementation(encoder.attention)
        try:
            return encoder.call(module, input_ids=row)
        except RuntimeError as error:
            if not out_of_memory(error):
                raise
            hint = f"no memory for a conversation of {len(tokens)} tokens; --max_length shortens it"
            raise InputError(hint) from error
        finally:
            if encoder.packs:
                use_attention_along_paths(encoder.model)
