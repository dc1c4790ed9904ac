"""Text to vectors: each distinct conversation once through a frozen model, its table on disk beside the model's head.

A conversation is a list of {"role": ..., "content": ...} whose contents are strings. Conversations that begin alike,
such as two replies to one prompt or a dialogue and its later turns, are computed as one tree of tokens, each shared
token once. Two kinds of model:

    pooling   model                                         vector                                  V_ref
    last      reward model: AutoModelForSequenceClassif...  last token's state after the final norm  score.weight
    mean      any text encoder: AutoModel                   mean of the token states                 none, so no K = 0

`last` is the paper's. `mean` lets a machine without a GPU run the whole pipeline on real text.
"""

import gzip
import hashlib
import json
import re
import zlib
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch.nn.utils.rnn import pad_sequence
from tqdm import tqdm

from utils import InputError, Split, pick_device, save_split

TOKENISED_AT_ONCE = 1024  # conversations; a tokenizer's own records of a text are many times its size
TREE_TOKENS = 4096  # a tree of conversations is cut here: attention to tokens of other branches is masked, not free
SURROGATE = re.compile("[\ud800-\udfff]")  # JSON may hold one, no tokenizer takes it
OPEN = 2**30  # the end of a branch that no other follows
CHECK_TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 5e-2, torch.float16: 1e-2}  # of 1 + |logit|: rounding


# ------------------------------------------------------------------------------------------------------------------
# Conversations
# ------------------------------------------------------------------------------------------------------------------


def read_json_lines(path):
    """Yield (line number, object) of a plain or gzipped JSON-lines file. InputError with file and line."""
    opener = gzip.open if Path(path).suffix == ".gz" else open
    number = 0
    try:
        with opener(path, "rt", encoding="utf-8") as file:
            for number, line in enumerate(file, start=1):
                if number == 1 and line.lstrip().startswith("<"):
                    raise InputError(f"{path} is a web page under the name of a data file; download it again")
                if number == 1 and line.startswith("version https://git-lfs"):
                    raise InputError(f"{path} is a Git LFS pointer, not the data; fetch it with: git lfs pull")
                row = json.loads(line)
                if not isinstance(row, dict):
                    raise InputError(f"{path}, line {number}: not a JSON object")
                yield number, row
    except json.JSONDecodeError as error:
        cut = "" if line.endswith("\n") else ", and no line end: the file is cut off here; download it again"
        raise InputError(f"{path}, line {number}: broken JSON ({error.msg}){cut}") from error
    except (EOFError, gzip.BadGzipFile, zlib.error, UnicodeDecodeError) as error:
        raise InputError(f"{path}, after line {number}: damaged file ({error})") from error


def exchange(prompt, reply):
    """One prompt and its reply as a conversation."""
    return [{"role": "user", "content": prompt}, {"role": "assistant", "content": reply}]


def distinct(conversations):
    """(conversations without repeats, row of each one given among them). InputError: a content that is not text."""
    rows, unique = {}, []
    numbers = []
    for conversation in conversations:
        for message in conversation:
            if not isinstance(message["content"], str):
                kind = type(message["content"]).__name__
                raise InputError(f"the content of a message is a {kind}, not text: {str(message['content'])[:60]!r}")
            if SURROGATE.search(message["content"]):
                raise InputError(f"half a character (a lone surrogate) in the text {message['content'][:60]!r}")
        key = hashlib.sha256(json.dumps(conversation).encode()).digest()
        if key not in rows:
            rows[key] = len(unique)
            unique.append(conversation)
        numbers.append(rows[key])
    return unique, numbers


# ------------------------------------------------------------------------------------------------------------------
# Trees: conversations that begin alike
# ------------------------------------------------------------------------------------------------------------------


class Tree(NamedTuple):
    """Token lists packed depth first, so that each shared beginning stands once: token j sees i if i <= j < end[i].

    tokens, depth (place in its own conversation), end (where the branch of a token is over): t numbers each;
    last: which token each list ends on; members: the numbers of the lists.
    """

    tokens: list
    depth: list
    end: list
    last: list
    members: list


def plant(members, ids):
    """Trees of the token lists ids[i], i in members; a new tree where one would have more than TREE_TOKENS."""
    trees, before, path = [], np.empty(0, np.int32), []  # path: tree tokens of the list before this one
    for i in sorted(members, key=lambda i: ids[i].astype(">i4").tobytes()):  # bytes sort as the numbers do
        least = min(len(before), len(ids[i]))
        shared = int((before[:least] == ids[i][:least]).cumprod().sum())
        if not trees or len(trees[-1].tokens) + len(ids[i]) - shared > TREE_TOKENS:
            trees.append(Tree([], [], [], [], []))
            shared, path = 0, []
        tree, new = trees[-1], len(ids[i]) - shared
        for token in path[shared:]:
            tree.end[token] = len(tree.tokens)
        path = path[:shared] + list(range(len(tree.tokens), len(tree.tokens) + new))
        tree.tokens.extend(ids[i][shared:].tolist())
        tree.depth.extend(range(shared, len(ids[i])))
        tree.end.extend([OPEN] * new)  # until a later list leaves the branch
        tree.last.append(path[-1])
        tree.members.append(i)
        before = ids[i]
    return trees


def batches(trees, budget):
    """Yield trees of similar size together, the largest first: at most `budget` tokens with padding, or one tree."""
    batch = []
    for tree in sorted(trees, key=lambda tree: -len(tree.tokens)):
        if batch and (len(batch) + 1) * len(batch[0].tokens) > budget:
            yield batch
            batch = []
        batch.append(tree)
    if batch:
        yield batch


# ------------------------------------------------------------------------------------------------------------------
# Models
# ------------------------------------------------------------------------------------------------------------------


@dataclass
class Encoder:
    """A frozen model that turns conversations into vectors; loaded when first used.

    name: Hub name or local folder; pooling: "last" or "mean"; max_length: tokens, 0 = what the model takes;
    dtype: "auto" (bfloat16 on a GPU, float32 on a CPU) or its name; batch_tokens: at a time, padding included;
    share: compute a beginning that conversations have in common once. Needs plainly causal attention.
    """

    name: str
    pooling: str
    device: torch.device
    dtype: str = "auto"
    attention: str = "sdpa"
    max_length: int = 0
    batch_tokens: int = 16384
    share: bool = True

    def __post_init__(self):
        if self.pooling not in ("last", "mean"):
            raise InputError(f"pooling = {self.pooling}: use last (reward model) or mean (text encoder)")
        automatic = "bfloat16" if self.device.type == "cuda" else "float32"
        self.dtype = getattr(torch, automatic if self.dtype == "auto" else self.dtype, None)
        if self.batch_tokens < 1:
            raise InputError(f"batch_tokens = {self.batch_tokens}: at least 1")
        if self.dtype not in CHECK_TOLERANCE:
            raise InputError("dtype: use auto, float32, bfloat16 or float16")

    @property
    def identity(self):
        """What a vector depends on, beside the text."""
        return {"model": self.name, "pooling": self.pooling, "dtype": str(self.dtype), "max_length": self.max_length}

    @cached_property
    def tokenizer(self):
        from transformers import AutoTokenizer

        tokenizer = self.loaded(AutoTokenizer)
        if self.pooling == "last" and not tokenizer.chat_template:
            raise InputError(
                f"{self.name} has no chat template, so it is no reward model; a text encoder needs --pooling mean"
            )
        return tokenizer

    @cached_property
    def model(self):
        from transformers import AutoModel, AutoModelForSequenceClassification

        options = {"dtype": self.dtype, "attn_implementation": self.attention, "output_loading_info": True}
        model, report = self.loaded(
            AutoModel if self.pooling == "mean" else AutoModelForSequenceClassification, **options
        )
        if self.pooling == "last":
            score = getattr(model, "score", None)
            if (
                not isinstance(score, torch.nn.Linear)
                or len(score.weight) != 1
                or "score.weight" in report["missing_keys"]
            ):
                raise InputError(f"{self.name} has no score head with one output, so it is no reward model")
            model.config.pad_token_id = None  # it may be the end token's: which token is read must not depend on it
            model.config.use_cache = False
        return model.to(self.device).eval()

    @cached_property
    def num_features(self):
        """d, from the configuration alone."""
        from transformers import AutoConfig

        return self.loaded(AutoConfig).get_text_config().hidden_size

    @property
    def head(self):
        """V_ref: score.weight as a (d, 1) float32 column; None for a text encoder."""
        return None if self.pooling == "mean" else self.model.score.weight.detach().float().cpu().T.contiguous()

    def loaded(self, auto_class, **options):
        import transformers

        transformers.logging.set_verbosity_error()
        try:
            return auto_class.from_pretrained(self.name, **options)
        except (OSError, ValueError, ImportError, SafetensorError) as error:
            raise InputError(f"{self.name} cannot be loaded: {str(error).strip().splitlines()[0]}") from error

    @cached_property
    def longest(self):
        """Tokens that the model takes, or fewer if max_length says so."""
        config = self.model.config.get_text_config()
        own = min(self.tokenizer.model_max_length, getattr(config, "max_position_embeddings", 10**9))
        return min(own, self.max_length or own)

    def tokens(self, conversations):
        """(token ids of each conversation, how many lost their oldest tokens). The first token and the reply stay."""
        ids, cut = [], 0
        for begin in range(0, len(conversations), TOKENISED_AT_ONCE):
            part = conversations[begin : begin + TOKENISED_AT_ONCE]
            if self.pooling == "last":  # the template writes its own special tokens; twice would be wrong
                texts = [self.tokenizer.apply_chat_template(c, tokenize=False) for c in part]
                lists = self.tokenizer(texts, add_special_tokens=False, verbose=False)["input_ids"]
            else:
                texts = ["\n\n".join(message["content"] for message in c) for c in part]
                lists = self.tokenizer(texts, verbose=False)["input_ids"]
            for tokens in lists:
                if len(tokens) > self.longest:
                    tokens, cut = tokens[:1] + tokens[len(tokens) - self.longest + 1 :], cut + 1
                ids.append(np.array(tokens, dtype=np.int32))
        return ids, cut

    @cached_property
    def shares(self):
        """Whether shared beginnings are computed once; says why not where that was wanted."""
        windowed = getattr(self.model.config.get_text_config(), "sliding_window", None) is not None
        reason = "windowed attention" if windowed else "flash attention" if "flash" in self.attention else None
        if self.pooling == "mean" or not self.share or reason:
            if self.pooling == "last" and self.share:
                print(f"{reason} takes no tree of conversations: shared beginnings are computed again for each")
            return False
        once, more = (self.tokens([c])[0][0] for c in (exchange("a", "b"), exchange("a", "b") + exchange("c", "d")))
        if not np.array_equal(once, more[: len(once)]):
            print("this chat template rewrites a turn once another follows: only the tokens that agree are shared")
        return True

    def trees(self, conversations, ids):
        """Conversations that begin with the same message together, or each by itself."""
        if not self.shares:
            return [tree for i in range(len(ids)) for tree in plant([i], ids)]
        families = {}
        for i, conversation in enumerate(conversations):
            families.setdefault(conversation[0]["content"], []).append(i)
        return [tree for family in families.values() for tree in plant(family, ids)]

    @torch.inference_mode()
    def forward(self, trees):
        """Vectors of the conversations of a batch of trees, tree by tree, in the model's dtype, on the CPU. (c, d)"""

        def pad(lists, value):  # on the right, b lists -> (b, t)
            return pad_sequence([torch.tensor(x) for x in lists], batch_first=True, padding_value=value).to(self.device)

        tokens = pad([tree.tokens for tree in trees], 0)
        own = pad([[1] * len(tree.tokens) for tree in trees], 0)
        inputs = {"input_ids": tokens, "attention_mask": own}
        if any(len(tree.last) > 1 for tree in trees):
            end, place = pad([tree.end for tree in trees], OPEN), torch.arange(tokens.shape[1], device=self.device)
            seen = (place <= place[:, None]) & (place[:, None] < end[:, None, None])  # token j sees i: (b, 1, t, t)
            mask = torch.zeros(seen.shape, dtype=self.dtype, device=self.device)
            inputs["attention_mask"] = mask.masked_fill_(~seen, torch.finfo(self.dtype).min)
            inputs["position_ids"] = pad([tree.depth for tree in trees], 0)
        states = self.model.base_model(**inputs).last_hidden_state  # (b, t, d)
        if self.pooling == "mean":
            weights = (own / own.sum(1, keepdim=True)).to(states.dtype)  # (b, t)
            return (weights.unsqueeze(1) @ states).squeeze(1).cpu()  # (b, 1, t) @ (b, t, d) -> (b, d)
        return torch.cat([states[b, tree.last] for b, tree in enumerate(trees)]).cpu()

    @torch.inference_mode()
    def check_head(self, ids, vector):
        """InputError unless vector @ head is the reward that the whole model gives to these tokens."""
        logit = self.model(input_ids=torch.tensor(ids[None], device=self.device)).logits.float().item()
        bias = 0.0 if self.model.score.bias is None else self.model.score.bias.float().item()  # cancels in differences
        product = (vector.float() @ self.head).item() + bias  # (d,) @ (d, 1)
        if abs(product - logit) > CHECK_TOLERANCE[self.dtype] * (1 + abs(logit)):
            hint = "; its attention may not be plainly causal: try --no-share" if self.shares else ""
            raise InputError(f"{self.name}: embedding @ head is {product:.5f} but the model says {logit:.5f}{hint}")

    def embed(self, conversations):
        """One vector per conversation, in the order given. (len(conversations), d), model's dtype.

        Batches of similar size, largest first: the first one shows whether the memory is enough.
        """
        ids, cut = self.tokens(conversations)
        if cut:
            print(f"{cut} of {len(ids)} conversations are too long for the model; their oldest tokens are left out")
        trees = self.trees(conversations, ids)
        plain, computed = sum(map(len, ids)), sum(len(tree.tokens) for tree in trees)
        print(f"{computed} tokens to compute, {plain} without sharing beginnings ({1 - computed / plain:.0%} saved)")
        table = None
        with tqdm(total=len(ids), desc="embedding", unit="text") as bar:
            for batch in batches(trees, self.batch_tokens):
                vectors, members = self.forward(batch), [i for tree in batch for i in tree.members]
                if table is None:
                    table = vectors.new_empty(len(ids), vectors.shape[1])
                    if self.pooling == "last":
                        longest = max(range(len(members)), key=lambda row: len(ids[members[row]]))
                        self.check_head(ids[members[longest]], vectors[longest])
                table[members] = vectors
                bar.update(len(members))
        return table


def encoder_of(args):
    """The Encoder that the settings of a script describe."""
    device, options = (
        pick_device(args.device),
        (args.dtype, args.attention, args.max_length, args.batch_tokens, args.share),
    )
    return Encoder(args.model, args.pooling, device, *options)


# ------------------------------------------------------------------------------------------------------------------
# Splits
# ------------------------------------------------------------------------------------------------------------------


def embed_split(path, frame, encoder, columns=("chosen", "rejected"), made_from=""):
    """Embed the conversations of a frame and save the Split at PATH, or find that this is done already.

    frame: conversations in `columns`, which become their row numbers, plus ids; made_from: what the reader of the Split
    compares with its source. InputError where PATH holds a split made of other text or in another way.
    """
    conversations, rows = distinct([conversation for name in columns for conversation in frame[name]])
    numbers = np.array(rows).reshape(len(columns), len(frame))
    frame = frame.assign(**dict(zip(columns, numbers))).reset_index(drop=True)
    content = hashlib.sha256(json.dumps([encoder.identity, frame.to_csv(), made_from]).encode())
    for conversation in conversations:
        content.update(json.dumps(conversation).encode())
    fingerprint = content.hexdigest()
    if Path(f"{path}.safetensors").exists() and Path(f"{path}.parquet").exists():
        try:
            with safe_open(f"{path}.safetensors", framework="pt") as file:
                found = file.metadata() or {}
        except SafetensorError as error:
            raise InputError(f"{path}.safetensors is damaged ({error}); delete it and start again") from error
        if found.get("model") != str(encoder.identity):
            raise InputError(
                f"{path}.safetensors was made with {found.get('model')}, this run has {encoder.identity};"
                " use the same settings or another --data"
            )
        if found.get("fingerprint") != fingerprint:
            raise InputError(
                f"{path}.safetensors was made of other text, perhaps with another --limit;"
                " delete it and its .parquet, or choose another --data"
            )
        print(f"{path}: done already")
        return
    print(f"{path}: {len(frame)} rows, {len(conversations)} distinct conversations")
    table = encoder.embed(conversations)
    split = Split(table, frame, encoder.head, str(encoder.identity), made_from)
    save_split(path, split, fingerprint=fingerprint)
