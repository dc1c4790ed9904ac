"""A saved basis at work: the encoder that it was learned on, rows of text in, rewards out."""

import gzip
import io
import json
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import torch

from lore.common import InputError, pick_device, written_whole
from lore.fit.basis import load_basis
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
KNOWN = {"model", "version", "pooling", "dtype", "max_length", "head"}  # of every identity
SAME = ("version", "pooling", "max_length", "head")  # of an identity: what must not differ


def open_basis(path):
    """The Basis of a file. InputError: none is named, it cannot be used, an id stands for two people."""
    if not path:
        raise InputError("which basis? name a .safetensors file of train_basis.py with --basis")
    basis = load_basis(path)
    twice = {*basis.user_ids} & {*basis.unseen_ids}
    if twice:
        raise InputError(f"{path}: the id {min(twice)} stands for two people")
    return basis


def encoder_of_basis(path, basis, args):
    """The Encoder that a basis was learned on. InputError: it is unknown, or another one by now."""
    identity = identity_of(basis.model)
    if identity is None or not identity.keys() >= KNOWN:
        raise InputError(f"{path} says of no encoder (planted people?), so it knows no text")
    for name in ("model", "version", "pooling", "dtype"):
        if not isinstance(identity[name], str):
            raise InputError(f"{path} says {name} = {identity[name]!r} of its encoder: damaged?")
    name = args.model or identity["model"]
    if Path(identity["model"]).is_absolute() and not Path(name).is_dir():
        raise InputError(
            f"{path} was learned on {name}, which is no folder here; name it with --model"
        )
    encoder = Encoder(
        name,
        identity["pooling"],
        pick_device(args.device),
        args.dtype or identity["dtype"].removeprefix("torch."),
        args.attention,
        identity["max_length"],
        args.batch_tokens,
        args.share,
        identity["head"] or "",
        None if Path(name).is_dir() else identity["version"],
    )
    for what in SAME:
        then, now = identity.get(what), encoder.identity.get(what)
        if then != now:
            raise InputError(
                f"{path} was learned on {identity['model']} with {what} {then}; {name} has {now}:"
                " not the same model, template or head"
            )
    if encoder.num_features != len(basis.V):
        widths = f"of width {len(basis.V)}, {name} has {encoder.num_features}"
        raise InputError(f"{path} is {widths}: not the same model")
    return encoder


def chosen_users(basis, users, everybody):
    """Ids of those whose rewards are wanted. InputError: somebody unknown, or named twice."""
    if everybody and users:
        raise InputError("--users and --everybody: one of the two")
    if len({*users}) < len(users):
        raise InputError(f"--users: {max(users, key=users.count)} stands there twice")
    basis.positions(users)
    return [*basis.everybody] if everybody else users


# ------------------------------------------------------------------------------------------------
# Rows of text
# ------------------------------------------------------------------------------------------------


class Row(NamedTuple):
    """One row of a file, with rewards of its conversations on the scale of log-odds."""

    place: str  # file and line
    fields: dict  # as they stand in the file
    population: torch.Tensor  # (conversations,)
    rewards: torch.Tensor  # (conversations, P) of the users asked for


def scored_rows(path, conversations_of, encoder, basis, users, found=()):
    """Yield a Row for each of a file, which is first read through once, so that no fault comes late.

    conversations_of(place, fields): the conversations of a row; found: names of the fields that are
    added to it. Memory for BLOCK bytes of text.
    InputError, with file and line: whatever that raises; no row; a reply too long for the model.
    """
    size = 0
    for place, fields in rows_of(path):
        require_free(place, fields, found)
        size += sum(map(text_bytes, conversations_of(place, fields)))
    if not size:
        raise InputError(f"{path} holds no row")
    with Tally(size) as tally:
        for block in blocks(path, conversations_of):
            table, numbers = embed_block(block, encoder, tally)
            population = basis.population(table)
            rewards = basis.log_odds(table, users)  # all replies and people as one product
            for (place, fields, _), own in zip(block, numbers):
                yield Row(place, fields, population[own], rewards[own])
    tally.report()


def blocks(path, conversations_of):
    """Yield lists of (place, fields, conversations), of about BLOCK bytes each."""
    block = []
    size = 0
    for place, fields in rows_of(path):
        talks = conversations_of(place, fields)
        block.append((place, fields, talks))
        size += sum(map(text_bytes, talks))
        if size >= BLOCK:
            yield block
            block = []
            size = 0
    if block:
        yield block


def embed_block(block, encoder, tally):
    """Table (distinct conversations, d) of a block, and which of it each of its rows has."""
    talks = []
    places = []
    for place, _, of_row in block:
        talks.extend(of_row)
        places.extend([place] * len(of_row))
    table, rows = encoder.embed_distinct(talks, tally, places)
    return table, rows.split([len(of_row) for _, _, of_row in block])


@contextmanager
def written_rows(path):
    """write(fields), for JSON lines that are there whole in the end, or not at all; gzip by the name."""
    if not path:
        raise InputError("where to? name a file with --output")
    with written_whole(path) as temporary:
        packed = str(path).endswith(".gz")
        with gzip.open(temporary, "wb") if packed else open(temporary, "wb") as file:
            text = io.TextIOWrapper(file, encoding="utf-8")

            def write(fields):
                text.write(json.dumps(fields, ensure_ascii=False, allow_nan=False) + "\n")

            yield write
            text.flush()


def extended(row, found):
    """The fields of a row and what was found of it. InputError: it has such fields already."""
    require_free(row.place, row.fields, found)
    return row.fields | found


def require_free(place, fields, found):
    both = fields.keys() & {*found}
    if both:
        raise InputError(f"{place}: it has a field {min(both)} already, which would be lost")
