"""A frozen model that turns conversations into vectors."""

import hashlib
import math
import re
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError
from torch.nn.utils.rnn import pad_sequence
from tqdm import tqdm

from lore.common import InputError, pick_device
from lore.packing import (
    ALONG_PATHS,
    attention_along_paths,
    batches,
    families,
    halves,
    parts_of,
    plant,
    stretches,
    text_bytes,
    tokens_of,
)
from lore.processes import rank, summed

GPU_BATCH = 2**14  # tokens at a time that keep a GPU busy
CPU_BATCH = 2**11  # tokens at a time whose states a CPU's cache and allocator handle best
TEMPLATE_DATE = "26 Jul 2024"  # where a template writes today's: vectors must not depend on the day
FIXED_DATE = f"{{% macro strftime_now(format) %}}{TEMPLATE_DATE}{{% endmacro %}}"  # for those that look at the clock
CHECK_TOLERANCE = {
    torch.float32: 1e-4,
    torch.bfloat16: 5e-2,
    torch.float16: 1e-2,
}  # of 1 + |logit|: rounding
MODEL_FILES = {
    ".safetensors",
    ".bin",
    ".json",
    ".jinja",
    ".model",
    ".txt",
}  # of a local folder, that vectors depend on
SAMPLE, SAMPLES = 2**16, 64  # bytes of a file that are hashed at a time, and how many times


def out_of_memory(error):
    """Whether a RuntimeError is that of a GPU or CPU without enough memory."""
    told = ("out of memory", "allocate memory", "ALLOC_FAILED")
    return isinstance(error, torch.OutOfMemoryError) or any(text in str(error) for text in told)


@dataclass
class Encoder:
    """A frozen model that turns conversations into vectors; loaded when first used.

    name: Hub name or local folder; pooling: "last" or "mean"; max_length: tokens, 0 = what the model takes;
    dtype: "auto" (bfloat16 on a GPU, float32 on a CPU) or its name; batch_tokens: at a time, 0 = automatic;
    share: compute a beginning that conversations have in common once and pack without padding; else the plain way, with
    the attention kernel named by `attention`; head_name: module of the checkpoint with the reward head.
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

    def __post_init__(self):
        if self.pooling not in ("last", "mean"):
            raise InputError(
                f"pooling = {self.pooling}: use last (reward model) or mean (text encoder)"
            )
        automatic = "bfloat16" if self.device.type == "cuda" else "float32"
        self.dtype = getattr(torch, automatic if self.dtype == "auto" else self.dtype, None)
        self.tree_tokens = self.batch_tokens or GPU_BATCH
        self.batch_tokens = self.batch_tokens or (
            GPU_BATCH if self.device.type == "cuda" else CPU_BATCH
        )
        if self.dtype not in CHECK_TOLERANCE:
            raise InputError("dtype: use auto, float32, bfloat16 or float16")
        self.packs = (
            self.share and self.pooling == "last"
        )  # a text encoder sees what follows: nothing to share
        if self.packs and self.attention not in ("sdpa", "eager"):
            raise InputError(
                f"attention = {self.attention}: only with --no-share; packed conversations need sdpa or eager"
            )
        self.fits = (
            math.inf
        )  # tokens that a batch may have since the memory did not suffice for more
        self.checked = False

    @cached_property
    def identity(self):
        """What a vector depends on, beside the text."""
        settings = {
            "model": self.name,
            "version": self.version,
            "pooling": self.pooling,
            "dtype": str(self.dtype),
        }
        return settings | {
            "max_length": self.max_length,
            "head": self.head_name if self.pooling == "last" else None,
        }

    @cached_property
    def revision(self):
        """The Hub's commit that everything is loaded from, the newest that is to be had here; None for a folder."""
        from transformers.utils.hub import cached_file, extract_commit_hash

        if Path(self.name).is_dir():
            return None
        try:
            return extract_commit_hash(cached_file(self.name, "config.json"), None)
        except (OSError, ValueError) as error:
            raise InputError(
                f"{self.name} cannot be loaded: {str(error).strip().splitlines()[0]}"
            ) from error

    @cached_property
    def version(self):
        """The Hub's commit, or a hash of a local folder: weights by samples, tokenizer and template whole."""
        if not Path(self.name).is_dir():
            return self.revision
        digest = hashlib.sha256()
        for file in sorted(f for f in Path(self.name).iterdir() if f.suffix in MODEL_FILES):
            size = file.stat().st_size
            digest.update(f"{file.name} {size}".encode())
            with open(file, "rb") as opened:
                for start in range(0, size, max(SAMPLE, size // SAMPLES)):
                    opened.seek(start)
                    digest.update(opened.read(SAMPLE))
        return digest.hexdigest()[:16]

    @cached_property
    def tokenizer(self):
        from transformers import AutoTokenizer

        tokenizer = self.loaded(AutoTokenizer)
        if self.pooling == "last" and not tokenizer.chat_template:
            raise InputError(
                f"{self.name} has no chat template, so it is no reward model; a text encoder needs --pooling mean"
            )
        if self.pooling == "last" and "strftime_now" in str(tokenizer.chat_template):
            tokenizer.chat_template = FIXED_DATE + tokenizer.chat_template
        return tokenizer

    @cached_property
    def model(self):
        from transformers import AttentionInterface, AutoModel, AutoModelForSequenceClassification

        if self.attention == "sdpa" and getattr(self.config, "attn_logit_softcapping", None):
            print("attention = eager: this model caps its attention, which sdpa does not")
            self.attention = "eager"
        options = {
            "dtype": self.dtype,
            "attn_implementation": self.attention,
            "output_loading_info": True,
        }
        if self.pooling == "mean":
            return self.placed(self.loaded(AutoModel, **options)[0])
        if self.head_name != "score":
            options |= {
                "key_mapping": {rf"^{re.escape(self.head_name)}\.": "score."},
                "num_labels": 1,
            }
        model, report = self.loaded(AutoModelForSequenceClassification, **options)
        score = getattr(model, "score", None)
        if (
            not isinstance(score, torch.nn.Linear)
            or len(score.weight) != 1
            or "score.weight" in report["missing_keys"]
        ):
            raise InputError(
                f"{self.name} has no head {self.head_name} with one output, so it is no reward model"
                "; --head names another"
            )
        model.config.pad_token_id = (
            None  # it may be the end token's: which token is read must not depend on it
        )
        model.config.use_cache = False
        if self.packs:
            AttentionInterface.register(ALONG_PATHS, attention_along_paths)
            model.set_attn_implementation(ALONG_PATHS)
        return self.placed(model)

    def placed(self, model):
        """On the device. InputError: no room for it."""
        try:
            return model.to(self.device).eval()
        except RuntimeError as error:
            if not out_of_memory(error):
                raise
            raise InputError(f"{self.name} does not fit the memory of {self.device}") from error

    @cached_property
    def config(self):
        from transformers import AutoConfig

        return self.loaded(AutoConfig)

    @property
    def num_features(self):
        """d, from the configuration alone."""
        return self.config.get_text_config().hidden_size

    @property
    def head(self):
        """V_ref: the head's weight as a (d, 1) float32 column; None for a text encoder."""
        return (
            None
            if self.pooling == "mean"
            else self.model.score.weight.detach().float().cpu().T.contiguous()
        )

    def loaded(self, auto_class, **options):
        import transformers

        transformers.logging.set_verbosity_error()
        if rank() > 0:
            transformers.utils.logging.disable_progress_bar()
        try:
            return auto_class.from_pretrained(
                self.name, revision=self.revision or "main", **options
            )
        except (OSError, ValueError, ImportError, SafetensorError) as error:
            hint = "; try --attention eager" if "attention" in str(error) else ""
            raise InputError(
                f"{self.name} cannot be loaded: {str(error).strip().splitlines()[0]}{hint}"
            ) from error

    # ---------------------------------------------------------------------------------------------------- tokens ---

    @cached_property
    def longest(self):
        """Tokens that the model takes, or fewer if max_length says so."""
        own = min(
            self.tokenizer.model_max_length,
            getattr(self.config.get_text_config(), "max_position_embeddings", 10**9),
        )
        return min(own, self.max_length or own)

    def tokenised(self, conversations):
        """Token ids of whole conversations, as lists."""
        if self.pooling == "mean":
            texts = ["\n\n".join(message["content"] for message in c) for c in conversations]
            return self.tokenizer(texts, verbose=False)["input_ids"]
        from jinja2 import TemplateError

        try:
            options = {"tokenize": False, "date_string": TEMPLATE_DATE}
            texts = [self.tokenizer.apply_chat_template(c, **options) for c in conversations]
        except TemplateError as error:
            raise InputError(
                f"the chat template of {self.name} refuses a conversation: {error}"
            ) from error
        # the template writes its own special tokens; twice would be wrong
        return self.tokenizer(texts, add_special_tokens=False, verbose=False)["input_ids"]

    def tokens(self, conversations):
        """(token ids of each conversation, how many lost the oldest part of their prompt, or even of their reply)"""
        ids, cut, cut_replies = [], 0, 0
        for conversation, tokens in zip(conversations, self.tokenised(conversations)):
            if len(tokens) > self.longest:
                shortened = self.shortened(conversation)
                if shortened is None and self.pooling == "last":
                    reply = conversation[-1]["content"][:60]
                    raise InputError(
                        f"more than {self.longest} tokens (--max_length) for the reply alone: {reply!r}"
                    )
                if shortened is None:  # a text encoder has no choice
                    tokens, cut_replies = (
                        tokens[:1] + tokens[len(tokens) - self.longest + 1 :],
                        cut_replies + 1,
                    )
                else:
                    tokens, cut = shortened, cut + 1
            ids.append(np.array(tokens, dtype=np.int32))
        return ids, cut, cut_replies

    def shortened(self, conversation):
        """Tokens of a conversation whose messages but the last lose no more of their beginnings than they must, the
        oldest first; None where the last message alone is too long. A message that is lost stays as an empty turn."""
        talk = [dict(message) for message in conversation]
        for message, whole in zip(talk[:-1], conversation):
            text = whole["content"]
            too_little, enough = 0, len(text)  # characters to leave out
            message["content"] = ""
            if len(tokens := self.tokenised([talk])[0]) > self.longest:
                continue
            while enough - too_little > 1:
                message["content"] = text[(middle := (too_little + enough) // 2) :]
                shorter = self.tokenised([talk])[0]
                if len(shorter) > self.longest:
                    too_little = middle
                else:
                    tokens, enough = shorter, middle
            return tokens
        return None

    def prepared(self, conversations):
        """(batches of the trees of those that begin alike, {cut, cut_replies: how many})"""
        ids, cut, cut_replies = self.tokens(conversations)
        together = families(conversations, self.packs)
        trees = [tree for family in together for tree in plant(family, ids, self.tree_tokens)]
        return list(batches(trees, self.batch_tokens, padded=not self.packs)), {
            "cut": cut,
            "cut_replies": cut_replies,
        }

    # --------------------------------------------------------------------------------------------------- vectors ---

    @torch.inference_mode()
    def forward(self, batch):
        """Vectors of the conversations of a batch of trees, tree by tree, in the model's dtype, on the CPU. (c, d)"""
        return (self.packed(batch) if self.packs else self.padded(batch)).cpu()

    def packed(self, batch):
        """All trees in one row of tokens, each conversation attending along its own path. (c, d)"""
        first = np.cumsum([0] + [len(tree.tokens) for tree in batch])
        paths = [place + path for place, tree in zip(first, batch) for path in tree.paths]
        new = [count for tree in batch for count in tree.new]
        tokens = torch.tensor(
            [[token for tree in batch for token in tree.tokens]], device=self.device
        )  # (1, t)
        depth = torch.tensor(
            [[place for tree in batch for place in tree.depth]], device=self.device
        )  # (1, t)
        packing = stretches(paths, new, self.device), self.attention == "eager"
        try:
            states = self.model.base_model(
                input_ids=tokens, position_ids=depth, packing=packing
            ).last_hidden_state
        except TypeError as error:
            raise InputError(
                f"{self.name} takes no packed conversations ({error}): use --no-share"
            ) from error
        last = torch.tensor([path[-1] for path in paths], device=self.device)
        return states[0, last]  # (1, t, d) -> (c, d)

    def padded(self, batch):
        """The plain way: each conversation a row of its own, padded on the right. (c, d)"""
        tokens = pad_sequence([torch.tensor(tree.tokens) for tree in batch], batch_first=True).to(
            self.device
        )  # (b, t)
        own = pad_sequence([torch.ones(len(tree.tokens)) for tree in batch], batch_first=True).to(
            self.device
        )
        states = self.model.base_model(
            input_ids=tokens, attention_mask=own.long()
        ).last_hidden_state  # (b, t, d)
        if self.pooling == "mean":
            weights = (own / own.sum(1, keepdim=True)).unsqueeze(1)
            return (
                (weights @ states.float()).squeeze(1).to(states.dtype)
            )  # (b, 1, t) @ (b, t, d) -> (b, d)
        return states[torch.arange(len(batch)), own.sum(1).long() - 1]  # (b, t, d) -> (b, d)

    def vectors(self, batch):
        """forward(batch), by halves where the memory does not suffice; then so from there on."""
        size = tokens_of(batch, not self.packs)
        if size <= self.fits or len(batch) == len(batch[0].members) == 1:
            try:
                return self.forward(batch)
            except RuntimeError as error:
                if not out_of_memory(error):
                    raise
        parts = halves(batch)
        if size <= self.fits:
            self.fits = max(tokens_of(part, not self.packs) for part in parts)
            tqdm.write(
                f"not enough memory for {size} tokens at a time: {self.fits} from here on (--batch_tokens)",
                file=sys.stderr,
            )
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
        return torch.cat([self.vectors(part) for part in parts])

    @torch.inference_mode()
    def check_head(self, tokens, vector):
        """InputError unless vector is that of these tokens by themselves, and vector @ head the model's own reward."""
        inputs = {"input_ids": torch.tensor(tokens, device=self.device).unsqueeze(0)}
        self.model.set_attn_implementation(self.attention)
        alone = self.model.base_model(**inputs).last_hidden_state[0, -1].cpu()  # (d,)
        logit = self.model(**inputs).logits.float().item()
        if self.packs:
            self.model.set_attn_implementation(ALONG_PATHS)
        vector, alone, hint = (
            vector.float(),
            alone.float(),
            "; use --no-share" if self.packs else "",
        )
        if (vector - alone).norm() > 3 * CHECK_TOLERANCE[self.dtype] * alone.norm():
            raise InputError(f"{self.name}: a vector depends on what is computed beside it{hint}")
        bias = (
            0.0 if self.model.score.bias is None else self.model.score.bias.float().item()
        )  # cancels in differences
        product = (vector @ self.head).item() + bias  # (d,) @ (d, 1)
        if abs(product - logit) > CHECK_TOLERANCE[self.dtype] * (1 + abs(logit)):
            raise InputError(
                f"{self.name}: embedding @ head is {product:.5f} but the model says {logit:.5f}"
            )

    def check(self, tokens):
        """InputError unless the head is right for a conversation, and for one that branches off it, beside another."""
        tokens = tokens[: max(self.tree_tokens // 2, 64)]
        ids = [tokens[:16], tokens, np.delete(tokens, len(tokens) // 2)]
        trees = [[0], [1, 2]] if self.packs else [[0], [1], [2]]
        batch = [tree for members in trees for tree in plant(members, ids)]
        paths = [(tree, path) for tree in batch for path in tree.paths]
        for (tree, path), vector in zip(paths, self.vectors(batch)):
            self.check_head([tree.tokens[i] for i in path], vector)
        self.checked = True

    def embed_parts(self, parts, tally):
        """Yield the vectors (c, d) of lists of conversations, list by list, in the model's dtype.

        The next list is tokenised while the device works on this one.
        """
        if not parts:
            return
        self.tokenizer, self.model, self.longest  # noqa: B018, loaded here and not by two threads at once
        with ThreadPoolExecutor(1) as background:
            coming = background.submit(self.prepared, parts[0])
            for conversations, following in zip(parts, [*parts[1:], None]):
                ready, cut = coming.result()
                if following:
                    coming = background.submit(self.prepared, following)
                tally.begin(cut)
                table = None
                for batch in ready:
                    vectors, members = (
                        self.vectors(batch),
                        [i for tree in batch for i in tree.members],
                    )
                    if not self.checked and self.pooling == "last":
                        tree, path = max(
                            ((tree, path) for tree in batch for path in tree.paths),
                            key=lambda t: len(t[1]),
                        )
                        self.check(np.array(tree.tokens, dtype=np.int32)[path])
                    table = (
                        vectors.new_empty(len(conversations), vectors.shape[1])
                        if table is None
                        else table
                    )
                    table[members] = vectors
                    tally.add(work(batch, not self.packs), [conversations[i] for i in members])
                yield table

    def embed(self, conversations):
        """One vector per conversation, in the order given. (len(conversations), d), model's dtype."""
        parts = parts_of(conversations, self.packs)
        with Tally(conversations) as tally:
            tables = list(
                self.embed_parts([[conversations[i] for i in rows] for rows in parts], tally)
            )
        tally.report()
        return torch.cat(tables)[torch.tensor([i for rows in parts for i in rows]).argsort()]


def encoder_of(args):
    """The Encoder that the settings of a script describe."""
    options = (
        args.dtype,
        args.attention,
        args.max_length,
        args.batch_tokens,
        args.share,
        args.head,
    )
    return Encoder(args.model, args.pooling, pick_device(args.device), *options)


def work(batch, padded):
    """Texts of a batch, and tokens: of each text by itself (plain), of the trees (tokens), with padding (padded)."""
    plain = sum(len(path) for tree in batch for path in tree.paths)
    sizes = {"tokens": sum(len(tree.tokens) for tree in batch), "padded": tokens_of(batch, padded)}
    return {"texts": sum(len(tree.members) for tree in batch), "plain": plain} | sizes


class Tally:
    """How much has been computed and how fast: a bar by the bytes of text, so that the time left can be told."""

    def __init__(self, conversations):
        self.counts = dict.fromkeys(("texts", "plain", "tokens", "padded", "cut", "cut_replies"), 0)
        self.size, self.start, self.bar = sum(map(text_bytes, conversations)), None, None

    def begin(self, cut):
        if self.bar is None:  # the model is loaded, the first part is tokenised
            self.start = time.monotonic()
            options = {
                "desc": "embedding",
                "unit": "B",
                "unit_scale": True,
                "leave": False,
                "mininterval": 1,
            }
            self.bar = tqdm(total=self.size, disable=rank() > 0, **options)
        self.count(cut)

    def add(self, done, conversations):
        self.count(done)
        self.bar.set_postfix_str(f"{self.speed(self.counts)}, {shares(self.counts)}", refresh=False)
        self.bar.update(sum(map(text_bytes, conversations)))

    def count(self, counts):
        for name, number in counts.items():
            self.counts[name] += number

    def speed(self, counts):
        seconds = (
            max(time.monotonic() - self.start, 1e-9) if self.start else math.inf
        )  # had this process no part
        return f"{counts['texts'] / seconds:.1f} texts/s, {counts['tokens'] / seconds:.0f} tokens/s"

    def __enter__(self):
        return self

    def __exit__(self, *_):
        if self.bar is not None:
            self.bar.close()

    def report(self):
        """Print the sums over all processes, with the time of this one."""
        n = summed(self.counts)
        if n["cut"]:
            print(
                f"{n['cut']} of {n['texts']} conversations are too long: the oldest part of their prompt is left out"
            )
        if n["cut_replies"]:
            print(
                f"{n['cut_replies']} of {n['texts']} replies alone are too long: their beginning is left out as well"
            )
        if n["texts"]:
            print(
                f"{n['texts']} texts, {n['tokens']} tokens computed ({shares(n)}): {self.speed(n)}"
            )


def shares(counts):
    saved = 1 - counts["tokens"] / max(counts["plain"], 1)
    return f"{saved:.0%} saved by sharing, {1 - counts['tokens'] / max(counts['padded'], 1):.1%} padding"
