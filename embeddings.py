"""Text to vectors: each distinct conversation once through a frozen model, its table on disk beside the model's head.

A conversation is a list of {"role": ..., "content": ...} whose contents are strings. Two kinds of model:

    pooling   model                                         vector                                  V_ref
    last      reward model: AutoModelForSequenceClassif...  last token's state after the final norm  score.weight
    mean      any text encoder: AutoModel                   mean of the token states                 none, so no K = 0

`last` is the paper's. `mean` lets a machine without a GPU run the whole pipeline on real text.
"""

import gzip
import hashlib
import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch.nn.utils.rnn import pad_sequence
from tqdm import tqdm

from utils import InputError, Split, save_split

TOKENISED_AT_ONCE = 1024  # conversations; a tokenizer's own records of a text are many times its size
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
                row = json.loads(line)
                if not isinstance(row, dict):
                    raise InputError(f"{path}, line {number}: not a JSON object")
                yield number, row
    except json.JSONDecodeError as error:
        raise InputError(f"{path}, line {number}: broken JSON ({error.msg})") from error
    except (EOFError, gzip.BadGzipFile, UnicodeDecodeError) as error:
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
        key = json.dumps(conversation)
        if key not in rows:
            rows[key] = len(unique)
            unique.append(conversation)
        numbers.append(rows[key])
    return unique, numbers


# ------------------------------------------------------------------------------------------------------------------
# Models
# ------------------------------------------------------------------------------------------------------------------


@dataclass
class Encoder:
    """A frozen model that turns conversations into vectors; loaded when first used.

    name: Hub name or local folder; pooling: "last" or "mean"; max_length: tokens, 0 = what the model takes;
    dtype: "auto" (bfloat16 on a GPU, float32 on a CPU) or its name.
    """

    name: str
    pooling: str
    device: torch.device
    dtype: str = "auto"
    attention: str = "sdpa"
    max_length: int = 0
    batch_size: int = 16

    def __post_init__(self):
        if self.pooling not in ("last", "mean"):
            raise InputError(f"pooling = {self.pooling}: use last (reward model) or mean (text encoder)")
        automatic = "bfloat16" if self.device.type == "cuda" else "float32"
        self.dtype = getattr(torch, automatic if self.dtype == "auto" else self.dtype, None)
        if self.batch_size < 1:
            raise InputError(f"batch_size = {self.batch_size}: at least 1")
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
        own = min(self.tokenizer.model_max_length, getattr(self.model.config, "max_position_embeddings", 10**9))
        return min(own, self.max_length or own)

    def tokens(self, conversations):
        """(token ids of each conversation, how many lost their oldest tokens). The first token and the reply stay."""
        ids, cut = [], 0
        for begin in range(0, len(conversations), TOKENISED_AT_ONCE):
            part = conversations[begin : begin + TOKENISED_AT_ONCE]
            if self.pooling == "last":  # the template writes its own special tokens; twice would be wrong
                texts = [self.tokenizer.apply_chat_template(c, tokenize=False) for c in part]
                ids += self.tokenizer(texts, add_special_tokens=False, verbose=False)["input_ids"]
            else:
                texts = ["\n\n".join(message["content"] for message in c) for c in part]
                ids += self.tokenizer(texts, verbose=False)["input_ids"]
        for i, tokens in enumerate(ids):
            if len(tokens) > self.longest:
                ids[i], cut = tokens[:1] + tokens[len(tokens) - self.longest + 1 :], cut + 1
        return ids, cut

    @torch.inference_mode()
    def forward(self, ids):
        """Vectors of a batch of token lists, in the model's dtype, on the CPU. (b, d)"""
        ids = [torch.tensor(tokens, device=self.device) for tokens in ids]
        padded = pad_sequence(ids, batch_first=True)  # on the right, (b, t)
        mask = pad_sequence([torch.ones_like(tokens) for tokens in ids], batch_first=True)  # (b, t)
        states = self.model.base_model(input_ids=padded, attention_mask=mask).last_hidden_state  # (b, t, d)
        if self.pooling == "mean":
            weights = (mask / mask.sum(1, keepdim=True)).to(states.dtype)  # (b, t)
            return (weights.unsqueeze(1) @ states).squeeze(1).cpu()  # (b, 1, t) @ (b, t, d) -> (b, d)
        last = mask.sum(1) - 1  # (b,) the last token of each, by the mask
        return states[torch.arange(len(ids), device=mask.device), last].cpu()

    @torch.inference_mode()
    def check_head(self, ids, vector):
        """InputError unless vector @ head is the reward that the whole model gives to these tokens."""
        logit = self.model(input_ids=torch.tensor([ids], device=self.device)).logits.float().item()
        bias = 0.0 if self.model.score.bias is None else self.model.score.bias.float().item()  # cancels in differences
        product = (vector.float() @ self.head).item() + bias  # (d,) @ (d, 1)
        if abs(product - logit) > CHECK_TOLERANCE[self.dtype] * (1 + abs(logit)):
            raise InputError(f"{self.name}: embedding @ head is {product:.5f} but the model says {logit:.5f}")

    def embed(self, conversations):
        """One vector per conversation, in the order given. (len(conversations), d), model's dtype.

        Batches of similar length, longest first: the first one shows whether the memory is enough.
        """
        ids, cut = self.tokens(conversations)
        if cut:
            print(f"{cut} of {len(ids)} conversations are too long for the model; their oldest tokens are left out")
        order = sorted(range(len(ids)), key=lambda i: -len(ids[i]))
        table = None
        with tqdm(total=len(ids), desc="embedding", unit="text") as bar:
            for begin in range(0, len(order), self.batch_size):
                batch = order[begin : begin + self.batch_size]
                vectors = self.forward([ids[i] for i in batch])
                table = vectors.new_empty(len(ids), vectors.shape[1]) if table is None else table
                table[batch] = vectors
                if begin == 0 and self.pooling == "last":
                    self.check_head(ids[batch[-1]], vectors[-1])
                bar.update(len(batch))
        return table


# ------------------------------------------------------------------------------------------------------------------
# Splits
# ------------------------------------------------------------------------------------------------------------------


def embed_split(path, frame, encoder):
    """Embed both conversations of every comparison and save the Split at PATH, or find that this is done already.

    frame: one row per comparison, the conversations themselves in `chosen` and `rejected`, plus user_id and other ids.
    InputError where PATH holds a split made of other text or by another model.
    """
    conversations, rows = distinct([*frame["chosen"], *frame["rejected"]])
    frame = frame.assign(chosen=rows[: len(frame)], rejected=rows[len(frame) :]).reset_index(drop=True)
    content = json.dumps([encoder.identity, conversations, frame.to_csv()])
    fingerprint = hashlib.sha256(content.encode()).hexdigest()
    if Path(f"{path}.safetensors").exists() and Path(f"{path}.parquet").exists():
        try:
            with safe_open(f"{path}.safetensors", framework="pt") as file:
                found = (file.metadata() or {}).get("fingerprint")
        except SafetensorError as error:
            raise InputError(f"{path}.safetensors is damaged ({error}); delete it and start again") from error
        if found != fingerprint:
            raise InputError(
                f"{path}.safetensors was made of other text or by another model;"
                " delete it and its .parquet, or choose another --data"
            )
        print(f"{path}: done already")
        return
    print(f"{path}: {len(frame)} comparisons, {len(conversations)} distinct conversations")
    table = encoder.embed(conversations)
    save_split(path, Split(table, frame, encoder.head, str(encoder.identity)), fingerprint=fingerprint)
