"""A frozen model that turns conversations into vectors."""

import math
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import torch
from torch.nn.utils.rnn import pad_sequence
from tqdm import tqdm

from lore.common import InputError, pick_device, require
from lore.text.attention import Packing, own_kernel, use_attention_along_paths
from lore.text.checkpoint import Checkpoint, count_positions, rotary_switch
from lore.text.conversations import distinct, text_bytes
from lore.text.packing import (
    batch_trees,
    count_computed,
    group_by_opening,
    members_of,
    pack_trees,
    split_batch,
    split_into_parts,
)
from lore.text.throughput import Tally, count_tokens
from lore.text.tokens import ReplyTooLong, Tokeniser
from lore.text.vector_checks import VectorChecks, out_of_memory

GPU_BATCH = 2**14  # tokens at a time that keep a GPU busy
CPU_BATCH = 2**11  # tokens at a time whose states a CPU's cache and allocator handle best
FAILURES = (RuntimeError, ValueError, TypeError, LookupError, AttributeError)  # of a foreign model
DTYPES = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
    "mixed": torch.float32,  # weights and states; matrix products alone in bfloat16
}


class Prepared(NamedTuple):
    """A list of conversations, ready to be computed."""

    batches: list  # of trees, whose members are numbers of the list
    left_out: list  # numbers of those whose reply alone is too long
    counts: dict  # how many were cut, and the like


class Vectors(NamedTuple):
    """A list of conversations, embedded."""

    table: torch.Tensor  # (c, d) of those that are not left out, in their order, model's dtype, CPU
    left_out: list  # numbers of those whose reply alone is too long


@dataclass
class Encoder:
    """A frozen model that turns conversations into vectors; loaded when first used.

    name: Hub name or local folder; pooling: "last" or "mean"; max_length: tokens, 0 = what the model
    takes; batch_tokens: at a time, 0 = automatic; share: compute a beginning that conversations have in
    common once and pack without padding; else the plain way, with the attention kernel named by
    `attention`; head_name: module of the checkpoint with the reward head.
    dtype: "auto" (bfloat16 on a GPU, float32 on a CPU) or its name; "mixed" does matrix products alone
    in bfloat16 (docs/speed.md has what that costs on a CPU). revision: commit of the Hub, None = newest.
    """

    name: str
    pooling: str
    device: torch.device
    dtype: str = "auto"
    attention: str = "sdpa"
    max_length: int = 0
    batch_tokens: int = 0
    share: bool = True
    head_name: str = "score"
    revision: str | None = None

    def __post_init__(self):
        on_gpu = self.device.type == "cuda"
        hint = "use last (reward model) or mean (text encoder)"
        require(self.pooling in ("last", "mean"), f"pooling = {self.pooling}: {hint}")
        self.precision = self.dtype
        if self.dtype == "auto":
            self.precision = "bfloat16" if on_gpu else "float32"
        require(self.precision in DTYPES, f"dtype: use auto, {', '.join(DTYPES)}")
        self.dtype = DTYPES[self.precision]
        self.tree_tokens = self.batch_tokens or GPU_BATCH
        if not self.batch_tokens:
            self.batch_tokens = GPU_BATCH if on_gpu else CPU_BATCH
        # a text encoder sees what follows: nothing to share
        self.packs = self.share and self.pooling == "last"
        possible = not self.packs or self.attention in ("sdpa", "eager")
        hint = "only with --no-share; packed conversations need sdpa or eager"
        require(possible, f"attention = {self.attention}: {hint}")
        self.fits = math.inf  # tokens of a batch since the memory did not suffice for more
        self.checkpoint = Checkpoint(self.name, self.revision)
        self.checks = VectorChecks(self)

    @cached_property
    def identity(self):
        """What a vector depends on, beside the text."""
        is_folder = Path(self.name).is_dir()
        return {
            "model": str(Path(self.name).resolve()) if is_folder else self.name,
            "version": self.checkpoint.version,
            "pooling": self.pooling,
            "dtype": "mixed" if self.precision == "mixed" else str(self.dtype),
            "max_length": self.max_length,
            "head": self.head_name if self.pooling == "last" else None,
        }

    @cached_property
    def tokenizer(self):
        return self.checkpoint.load_tokenizer(with_template=self.pooling == "last")

    @cached_property
    def model(self):
        """On its device. InputError: not to be loaded, no head, no room for it."""
        if self.attention == "sdpa" and getattr(self.config, "attn_logit_softcapping", None):
            print("attention = eager: this model caps its attention, which sdpa does not")
            self.attention = "eager"
        options = {"dtype": self.dtype, "attn_implementation": self.attention}
        if self.pooling == "mean":
            model = self.checkpoint.load_text_encoder(**options)
        else:
            model = self.checkpoint.load_reward_model(self.head_name, **options)
            # it may be the end token's: which token is read must not depend on it
            model.config.pad_token_id = None
            model.config.use_cache = False
        if self.packs:
            use_attention_along_paths(model)
        # cuDNN plans anew for each new shape, which costs up to three times the pass, and every batch has its own
        torch.backends.cuda.enable_cudnn_sdp(False)
        try:
            return model.to(self.device).eval()
        except RuntimeError as error:
            if not out_of_memory(error):
                raise
            raise InputError(f"{self.name} does not fit the memory of {self.device}") from error

    @property
    def config(self):
        return self.checkpoint.config

    @property
    def num_features(self):
        """d, from the configuration alone."""
        return self.config.get_text_config().hidden_size

    @property
    def head(self):
        """V_ref: the head's weight as a (d, 1) float32 column; None for a text encoder."""
        if self.pooling == "mean":
            return None
        return self.model.score.weight.detach().float().cpu().T.contiguous()

    @cached_property
    def tokeniser(self):
        longest = min(self.tokenizer.model_max_length, count_positions(self.model, self.config))
        if self.max_length:
            longest = min(longest, self.max_length)
        rows = self.model.get_input_embeddings().weight.shape[0]
        return Tokeniser(self.name, self.tokenizer, self.pooling, longest, rows)

    # --------------------------------------------------------------------------------- batches ---

    def prepare(self, conversations):
        """The Prepared of a list of conversations that differ."""
        ids, counts = self.tokeniser.tokens(conversations)
        left_out = [number for number, tokens in enumerate(ids) if tokens is None]
        different = {tokens.tobytes() for tokens in ids if tokens is not None}
        counts["repeated"] = len(ids) - len(left_out) - len(different)
        batches = self.arrange(group_by_opening(conversations, self.packs), ids)
        return Prepared(batches, left_out, counts)

    def arrange(self, groups, ids):
        """Batches of trees of the token lists ids[i], each tree of numbers i in one group.

        Lists on the two sides of a rotary switch share no pass; the long side comes first.
        """
        switch = rotary_switch(self.model.config)
        batches = []
        for beyond in (True, False):
            trees = []
            for group in groups:
                side = []
                for i in group:
                    if ids[i] is not None and (len(ids[i]) > switch) == beyond:
                        side.append(i)
                trees.extend(pack_trees(side, ids, self.tree_tokens))
            batches.extend(batch_trees(trees, self.batch_tokens, padded=not self.packs))
        return batches

    # --------------------------------------------------------------------------------- vectors ---

    @torch.inference_mode()
    def forward(self, batch):
        """Vectors of the conversations of a batch, tree by tree, in the model's dtype, on the CPU."""
        run = self.run_packed if self.packs else self.run_padded
        return run(batch).to(self.dtype).cpu()

    def call(self, module, **inputs):
        """What the model, or its body, makes of the inputs. InputError: it fails, but for memory."""
        mixed = torch.autocast(self.device.type, torch.bfloat16, self.precision == "mixed")
        try:
            with mixed:
                return module(**inputs)
        except InputError:
            raise
        except FAILURES as error:
            if out_of_memory(error):
                raise
            first_line, _, _ = str(error).strip().partition("\n")
            reason = f"{type(error).__name__}: {first_line}"
            if "packing" in inputs:
                told = f"takes no packed conversations ({reason}): use --no-share"
            else:
                told = f"fails on {inputs['input_ids'].shape[1]} tokens in {self.precision} ({reason})"
            raise InputError(f"{self.name} {told}") from error

    def run_packed(self, batch):
        """All trees in one row of tokens, each conversation attending along its own path. (c, d)"""
        tokens = []
        depth = []
        paths = []
        new = []
        for tree in batch:
            for path in tree.paths:
                paths.append(len(tokens) + path)
            tokens.extend(tree.tokens)
            depth.extend(tree.depth)
            new.extend(tree.new)
        eager = self.attention == "eager"
        packing = Packing(paths, new, self.device, own_kernel(self.model, eager), additive=eager)
        states = self.call(
            self.model.base_model,
            input_ids=torch.tensor([tokens], device=self.device),  # (1, t)
            position_ids=torch.tensor([depth], device=self.device),  # (1, t)
            packing=packing,
        ).last_hidden_state
        last = torch.tensor([path[-1] for path in paths], device=self.device)
        return states[0, last]  # (1, t, d) -> (c, d)

    def run_padded(self, batch):
        """The plain way: each conversation a row of its own, padded on the right. (c, d)"""
        rows = [torch.tensor(tree.tokens) for tree in batch]
        real = [torch.ones(len(row)) for row in rows]
        tokens = pad_sequence(rows, batch_first=True).to(self.device)  # (b, t)
        real = pad_sequence(real, batch_first=True).to(self.device)  # (b, t)
        outputs = self.call(self.model.base_model, input_ids=tokens, attention_mask=real.long())
        states = outputs.last_hidden_state  # (b, t, d)
        every = states.shape[:2] == tokens.shape
        require(every, f"{self.name} has no state for every token, so no vector can be read")
        if self.pooling == "last":
            return states[torch.arange(len(batch)), real.sum(1).long() - 1]  # (b, t, d) -> (b, d)
        weights = (real / real.sum(1, keepdim=True)).unsqueeze(1)
        means = weights @ states.float()  # (b, 1, t) @ (b, t, d) -> (b, 1, d)
        return means.squeeze(1).to(states.dtype)

    def vectors(self, batch):
        """forward(batch), in two where the memory does not suffice; then so from there on."""
        size = count_computed(batch, not self.packs)
        single = len(batch) == len(batch[0].members) == 1
        if size <= self.fits or single:
            try:
                return self.forward(batch)
            except RuntimeError as error:
                if not out_of_memory(error):
                    raise
        parts = split_batch(batch)
        if size <= self.fits:
            self.fits = max(count_computed(part, not self.packs) for part in parts)
            told = f"not enough memory for {size} tokens at a time"
            tqdm.write(f"{told}: {self.fits} from here on (--batch_tokens)", file=sys.stderr)
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
        return torch.cat([self.vectors(part) for part in parts])

    # ----------------------------------------------------------------------------------- whole ---

    def load(self):
        """Tokenizer and model, now and not at the first text."""
        return self.tokeniser

    def embed_parts(self, parts, tally):
        """Yield the Vectors of lists of conversations, list by list.

        The next list is tokenised while the device works on this one.
        """
        self.load()  # not by two threads at once
        with ThreadPoolExecutor(1) as background:
            coming = [background.submit(self.prepare, parts[0])] if parts else []
            for conversations, following in zip(parts, [*parts[1:], None]):
                prepared = coming.pop().result()
                if following:
                    coming.append(background.submit(self.prepare, following))
                tally.count(prepared.counts)
                yield self.embed_part(conversations, prepared, tally)

    def embed_part(self, conversations, prepared, tally):
        """The Vectors of one list. InputError: one that is not finite, or depends on another text."""
        table = torch.empty(len(conversations), self.num_features, dtype=self.dtype)
        for batch in prepared.batches:
            vectors = self.vectors(batch)
            members = members_of(batch)
            texts = [conversations[number] for number in members]
            self.require_numbers(texts, vectors)
            self.checks.check(batch, vectors)
            table[members] = vectors
            tally.advance(count_tokens(batch, not self.packs), texts)
        staying = torch.ones(len(conversations), dtype=torch.bool)
        staying[prepared.left_out] = False
        table = table[staying]
        different = len(table) - prepared.counts["repeated"]
        text = f"gives one vector for {different} different texts: are its weights damaged?"
        require(different < 2 or not (table == table[0]).all(), f"{self.name} {text}")
        return Vectors(table, prepared.left_out)

    def require_numbers(self, texts, vectors):
        """InputError unless all vectors (c, d) of some conversations are finite and of one width."""
        widths = f"{vectors.shape[1]}, its configuration says {self.num_features}"
        require(vectors.shape[1] == self.num_features, f"{self.name}: vectors have width {widths}")
        for row in (~vectors.isfinite().all(dim=1)).nonzero().flatten().tolist():
            text = f"the text {texts[row][-1]['content'][:60]!r} with --dtype {self.precision}"
            hint = "damaged weights, or float16, which has room for smaller numbers alone?"
            raise InputError(f"{self.name} gives NaN or infinity for {text}: {hint}")

    def embed(self, conversations):
        """One vector per conversation, in the order given. (len(conversations), d), model's dtype.

        InputError: a reply alone is too long.
        """
        with Tally(sum(map(text_bytes, conversations))) as tally:
            table, rows = self.embed_distinct(conversations, tally)
        tally.report()
        return table[rows]

    def embed_distinct(self, conversations, tally, lines=None):
        """(vectors of the distinct conversations, (c, d); row of each one given among them, (n,)).

        tally: of which this may be a piece; lines: where each stands, for the error of a long reply.
        """
        unique, row_of = distinct(conversations)
        first = dict(zip(row_of[::-1], (lines or [])[::-1]))
        return self.embed_counted(unique, tally, first), torch.tensor(row_of)

    def embed_counted(self, unique, tally, lines=None):
        """Vectors of distinct conversations, (c, d); lines: {number: where it stands}."""
        parts = split_into_parts(unique, self.packs)
        texts = [[unique[i] for i in rows] for rows in parts]
        table = torch.empty(len(unique), self.num_features, dtype=self.dtype)
        for rows, part, embedded in zip(parts, texts, self.embed_parts(texts, tally)):
            for number in embedded.left_out[:1]:
                where = f"{lines[rows[number]]}: " if lines else ""
                limit = f"more than {self.tokeniser.longest} tokens (--max_length)"
                reply = part[number][-1]["content"]
                raise ReplyTooLong(f"{where}{limit} for the reply alone: {reply[:60]!r}")
            table[rows] = embedded.table
        return table


def encoder_of(args):
    """The Encoder that the settings of a script describe."""
    options = ("dtype", "attention", "max_length", "batch_tokens", "share")
    named = {option: getattr(args, option) for option in options}
    return Encoder(args.model, args.pooling, pick_device(args.device), head_name=args.head, **named)
