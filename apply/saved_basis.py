"""A saved basis at work: the encoder that it was learned on, rows of text in, rewards out."""

import math
from pathlib import Path
from types import SimpleNamespace
from typing import NamedTuple

import torch

from lore.common import InputError, pick_device, require
from lore.fit.basis import load_basis
from lore.settings import stated
from lore.splits import identity_of
from lore.text.conversations import text_bytes
from lore.text.encoder import Encoder
from lore.text.input_rows import rows_of
from lore.text.throughput import Tally

# ------------------------------------------------------------------------------- settings ---
model = ""  # folder or Hub name of the basis's encoder, if it is no longer where the basis says
device = "auto"  # auto, cpu, cuda, cuda:1
dtype = ""  # of the encoder: float32, bfloat16, float16, mixed; empty = as the basis was learned
attention = "sdpa"  # of transformers: sdpa, eager; with --no-share also flash_attention_2
batch_tokens = 0  # tokens at a time, fewer where memory is short; 0 = 16384 on a GPU, 2048 on a CPU
share = True  # compute once what conversations share; off for a model that refuses it
# -------------------------------------------------------------------------------------------

BLOCK = 2**22  # bytes of text that are embedded before their rows are written
COIN = math.log(2)  # log-loss of who does not look
TOLD = 1e-4  # a difference of log-losses that is no rounding
STATED = {"model", "version", "pooling", "dtype", "max_length", "head"}  # of every identity
THE_SAME = ("version", "pooling", "max_length", "head")  # in a basis and in its encoder


def open_basis(path):
    """The Basis of a file. InputError: none is named, it cannot be used, an id stands for two people."""
    require(path, "which basis? name a .safetensors file of train_basis.py with --basis")
    basis = load_basis(path)
    twice = {*basis.user_ids} & {*basis.unseen_ids}
    if twice:
        raise InputError(f"{path}: the id {min(twice)} stands for two people")
    return basis


def encoder_of_basis(path, basis, args):
    """The Encoder that a basis was learned on. InputError: it is unknown, or another one by now."""
    identity = identity_of(basis.model)
    is_stated = identity is not None and identity.keys() >= STATED
    require(is_stated, f"{path} says of no encoder (planted people?), so it knows no text")
    for what in ("model", "version", "pooling", "dtype"):
        damaged = f"{path} says {what} = {identity[what]!r} of its encoder: damaged?"
        require(isinstance(identity[what], str), damaged)
    name = args.model or identity["model"]
    if Path(identity["model"]).is_absolute() and not Path(name).is_dir():
        raise InputError(f"{path} was learned on {name}, which is no folder here; name it with --model")
    named = {option: getattr(args, option) for option in ("attention", "batch_tokens", "share")}
    named["dtype"] = args.dtype or identity["dtype"].removeprefix("torch.")
    named["max_length"] = identity["max_length"]
    named["head_name"] = identity["head"] or ""
    named["revision"] = None if Path(name).is_dir() else identity["version"]
    encoder = Encoder(name, identity["pooling"], pick_device(args.device), **named)
    for what in THE_SAME:
        differ = f"{what} was {identity[what]} and is {encoder.identity[what]}"
        another = f"not the same model, template or head as {path} was learned on; {name} is another"
        require(identity[what] == encoder.identity[what], f"{differ}: {another}")
    widths = f"of width {len(basis.V)}, {name} has {encoder.num_features}"
    require(encoder.num_features == len(basis.V), f"{path} is {widths}: not the same model")
    return encoder


def opened(path, **options):
    """The Basis of a file and its Encoder, for use from Python; options: the settings above, by name.

    InputError: what open_basis and encoder_of_basis refuse, an option that is no setting.
    """
    args = SimpleNamespace()
    for name, _ in stated(__file__):
        setattr(args, name, options.pop(name, globals()[name]))
    require(not options, f"{', '.join(options)}: no setting of an encoder, which has {', '.join(vars(args))}")
    basis = open_basis(path)
    return basis, encoder_of_basis(path, basis, args)


def chosen_users(basis, users, everybody):
    """Ids of those whose rewards are wanted. InputError: somebody unknown, or named twice."""
    require(not (everybody and users), "--users and --everybody: one of the two")
    require(len({*users}) == len(users), "--users: somebody stands there twice")
    basis.positions(users)
    return [*basis.everybody] if everybody else users


def worth_of(basis):
    """What it knows of itself: the log-loss of pairs that no fit has seen. Empty: nothing."""
    if not basis.held_out:
        return ""
    personal = basis.held_out["personal"]
    population = basis.held_out["population"]
    words = f"log-loss {personal:.3f} on new prompts of people it was not fitted to"
    words += f", with everybody's mixture {population:.3f}, of a coin {COIN:.3f}"
    if personal > COIN:
        return f"{words}: these log-odds are worse than none."
    if personal > population + TOLD:
        return f"{words}: what is personal here makes it worse."
    return f"{words}."


def print_worth(basis):
    """Says so where people would have been predicted better by a coin, or by everybody's mixture."""
    worth = worth_of(basis)
    if "worse" in worth:
        print(f"beware: this basis has a {worth}")


# ------------------------------------------------------------------------------------------------
# Rows of text
# ------------------------------------------------------------------------------------------------


class Row(NamedTuple):
    """One row of a file, with rewards of its conversations on the scale of log-odds."""

    where: str  # file and line
    fields: dict  # as they stand in the file
    vectors: torch.Tensor  # (conversations, d)
    population: torch.Tensor  # (conversations,)
    rewards: torch.Tensor  # (conversations, P) of the users asked for


def scored_rows(path, conversations_of, encoder, basis, users, added=()):
    """Yield a Row for each of a file, which is first read through once, so that no fault comes late.

    conversations_of(where, fields): the conversations of a row; added: names of the fields that will be
    added to it. Memory for BLOCK bytes of text and the rewards of a row.
    InputError, with file and line: whatever that raises; no row; such a field; a reply too long for the model.
    """
    size = sum(map(bytes_of, conversations_in(path, conversations_of, added)))
    require(size, f"{path} holds no row")
    with Tally(size) as tally:
        for block in in_blocks(conversations_in(path, conversations_of), BLOCK):
            table, numbers = embed_block(block, encoder, tally)
            for (where, fields, _), of_row in zip(block, numbers):
                vectors = table[of_row]
                rewards = basis.log_odds(vectors, users)
                yield Row(where, fields, vectors, basis.population(vectors), rewards)
    tally.report()


def in_blocks(rows, most):
    """Yield lists of rows, each as soon as there are so many bytes of text in it."""
    block = []
    size = 0
    for row in rows:
        block.append(row)
        size += bytes_of(row)
        if size >= most:
            yield block
            block = []
            size = 0
    if block:
        yield block


def conversations_in(path, conversations_of, added=()):
    """Yield (where, fields, conversations) of each row of a file, which has no field of those to be added."""
    for where, fields in rows_of(path):
        twice = min(fields.keys() & {*added}, default=None)
        require(twice is None, f"{where}: it has a field {twice} already, which would be lost")
        yield where, fields, conversations_of(where, fields)


def bytes_of(row):
    """Bytes of text in a row of conversations_in."""
    return sum(map(text_bytes, row[2]))


def embedded(rows, encoder):
    """embed_block of all there is, which says how fast that was."""
    with Tally(sum(map(bytes_of, rows))) as tally:
        table, numbers = embed_block(rows, encoder, tally)
    tally.report()
    return table, numbers


def embed_block(block, encoder, tally):
    """Table (distinct conversations, d) of rows of conversations_in, and which of it each of them has."""
    talks = []
    lines = []
    for where, _, of_row in block:
        talks.extend(of_row)
        lines.extend([where] * len(of_row))
    table, rows = encoder.embed_distinct(talks, tally, lines)
    return table, rows.split([len(of_row) for _, _, of_row in block])
