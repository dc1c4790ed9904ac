"""Embeddings and the comparisons beside them, on disk: NAME.safetensors and NAME.parquet."""

import json
import warnings
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from safetensors import SafetensorError, safe_open

from lore.common import InputError, require, require_apart, told_as, written_whole

TABLE_ROWS = 8192  # embeddings handled at a time, so that a table is never copied whole
DTYPES = {torch.float32: "F32", torch.bfloat16: "BF16", torch.float16: "F16", torch.float64: "F64"}


class Split(NamedTuple):
    """Embeddings and the comparisons on them, as one pair of files holds them."""

    table: torch.Tensor  # (rows, d)
    frame: object  # pandas DataFrame, a row per comparison: user_id, chosen, rejected, its place
    head: torch.Tensor | None  # V_ref, (d, 1) float32; None for a text encoder, which has none
    model: str = ""  # Encoder.identity of what made the embeddings, see identity_of
    made_from: str = ""  # hash of the file that the texts come from, where it may change unnoticed
    planted: object | None = None  # Planted, where the people are made up: what they truly like


def identity_of(text):
    """What a file says of the model that made its embeddings; None for planted people, who have none."""
    try:
        identity = json.loads(text)
    except ValueError:
        return None
    return identity if isinstance(identity, dict) else None


# ------------------------------------------------------------------------------------------------
# Writing
# ------------------------------------------------------------------------------------------------


def save_split(path, split, blocks=None, **metadata):
    """PATH.safetensors (`embeddings`, `head`; model and metadata in its header), PATH.parquet.

    blocks: (row numbers, (rows, d)) of a table that comes piece by piece; split.table then has
    only its shape (device meta).
    """
    tensors = {"embeddings": split.table.contiguous()}
    if split.head is not None:
        tensors["head"] = split.head.contiguous()
    with written_whole(f"{path}.parquet") as file:  # first: a fingerprint vouches for both files
        split.frame.to_parquet(file)
    header = {"model": split.model, "made_from": split.made_from, **metadata}
    header = {key: str(value) for key, value in header.items()}
    if blocks is None:
        blocks = [(range(len(split.table)), tensors["embeddings"])]
    with written_whole(f"{path}.safetensors") as file:
        write_blocks(file, tensors, blocks, header)


def write_blocks(path, tensors, blocks, metadata):
    """A safetensors file, `embeddings` row by row from `blocks`.

    It takes the memory of one block. The format: eight bytes with the length of a JSON text, that
    text, which says where each tensor lies, and the numbers.
    """
    header = {"__metadata__": metadata}
    end = 0
    for name, tensor in tensors.items():
        begin = end
        end += tensor.numel() * tensor.element_size()
        entry = {"shape": list(tensor.shape), "data_offsets": [begin, end]}
        header[name] = {"dtype": DTYPES[tensor.dtype], **entry}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    table = tensors["embeddings"]
    width = table.shape[1] * table.element_size()  # bytes of a row
    with open(path, "wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        start = file.tell()
        if "head" in tensors:
            file.seek(start + header["head"]["data_offsets"][0])
            file.write(as_bytes(tensors["head"].flatten()))
        for rows, vectors in blocks:
            for row, vector in zip(rows, as_bytes(vectors)):
                file.seek(start + row * width)
                file.write(vector)


def as_bytes(tensor):
    """The bytes of its last dimension's numbers, as a NumPy array."""
    return tensor.view(torch.uint8).numpy()


# ------------------------------------------------------------------------------------------------
# Reading
# ------------------------------------------------------------------------------------------------


def load_split(path, made_by, columns=("chosen", "rejected"), needed=()):
    """The Split saved at PATH, its table left on disk; `columns` of its frame hold table rows.

    made_by: the command that makes it; needed: further columns. InputError: missing, damaged, NaN,
    a missing column, rows outside the table, a head of another width.
    """
    for file in (f"{path}.safetensors", f"{path}.parquet"):
        require(Path(file).exists(), f"{file} is missing; make it with: {made_by}")
    table, head, header = read_table(path, made_by)
    frame = read_frame(path, made_by, columns, needed, len(table))
    if head is not None:
        reference_head(head, table.shape[1])
    return Split(table, frame, head, header.get("model", ""), header.get("made_from", ""))


def read_table(path, made_by):
    """(embeddings, head or None, header) of PATH.safetensors."""
    file = f"{path}.safetensors"
    damaged = told_as(f"{file} is damaged", SafetensorError, then=f"delete it and run again: {made_by}")
    with damaged, safe_open(file, framework="np") as opened:  # "pt" claims memory for the whole file
        names = set(opened.keys())
        header = opened.metadata() or {}
        head = torch.from_numpy(opened.get_tensor("head")) if "head" in names else None
    names_there = ", ".join(sorted(names)) or "nothing"
    require("embeddings" in names, f"{file} holds no embeddings but {names_there}; make it with: {made_by}")
    table = mapped(file, "embeddings")
    require(table.ndim == 2, f"{file}: embeddings of shape {tuple(table.shape)}, not (rows, d)")
    bad = unfinite_rows(table).tolist()
    if bad:
        raise InputError(f"{file}: row {bad[0]} of the embeddings holds NaN or infinity")
    return table, head, header


def require_replaceable(path, read):
    """InputError where a Split cannot be written to PATH: see require_apart; PATH.parquet is there, a table of
    the user's own, which would be lost. read: path of what it is made of."""
    import pyarrow
    import pyarrow.parquet

    file = Path(f"{path}.parquet")
    require_apart([f"{path}.safetensors", file], [read])
    try:
        schema = pyarrow.parquet.read_schema(file)
        ours = pyarrow.types.is_integer(schema.field("chosen").type)  # rows of embeddings, no texts
    except KeyError:
        ours = False
    except (OSError, ValueError):  # not there; or damaged, which is told when it is read
        return
    require(ours, f"{file} is there, not written by this script, and would be lost; move it away")


def read_frame(path, made_by, columns, needed, rows):
    """PATH.parquet, its rows numbered anew; `columns` must hold row numbers of the table."""
    import pandas as pd

    file = f"{path}.parquet"
    then = f"delete it and run again: {made_by}"
    with told_as(f"{file} is damaged", OSError, ValueError, then=then):
        frame = pd.read_parquet(file)
    frame = frame.reset_index(drop=True)
    for name in (*needed, *columns):
        require(name in frame, f"{file} has no column {name}: of another data set? make it with: {made_by}")
    if "user_id" in frame:
        nobody = frame.index[frame["user_id"].isna()].tolist()
        if nobody:
            raise InputError(f"{file}: row {nobody[0]} has no user_id; make it with: {made_by}")
        frame["user_id"] = as_text(frame["user_id"])
    for name in columns:
        whole = frame[name].dtype.kind in "iu"
        require(whole, f"{file}, column {name} holds no row numbers; make it with: {made_by}")
        frame[name] = frame[name].astype(np.int64)
        inside = frame[name].between(0, rows - 1).all()
        require(inside, f"{file} points outside the {rows} rows of {path}.safetensors")
    return frame


def as_text(ids):
    """People's ids as text: 7, 7.0 and "7" are one, whatever type others have written them in."""
    if ids.dtype.kind == "f" and (ids == ids.round()).all():
        ids = ids.astype(np.int64)
    return ids.astype(str)


def mapped(path, name):
    """A tensor of a safetensors file, read from disk where it is looked at; not to be written to."""
    with open(path, "rb") as file:
        length = int.from_bytes(file.read(8), "little")
        entry = json.loads(file.read(length))[name]
    dtypes = {text: dtype for dtype, text in DTYPES.items()}
    readable = entry["dtype"] in dtypes
    require(readable, f"{path}: {name} of type {entry['dtype']}, not one of {', '.join(dtypes)}")
    begin, end = entry["data_offsets"]
    raw = np.memmap(path, np.uint8, mode="r", offset=8 + length + begin, shape=(end - begin,))
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The given NumPy array is not writable")
        numbers = torch.from_numpy(raw)
    return numbers.view(dtypes[entry["dtype"]]).view(entry["shape"])


def unfinite_rows(table):
    """Row numbers of a (rows, d) table that hold NaN or infinity."""
    finite = [rows.isfinite().all(dim=1) for rows in table.split(TABLE_ROWS)]
    return (~torch.cat(finite)).nonzero().flatten()


def reference_head(V_ref, num_features):
    """V_ref as a (d, 1) column, or None. InputError: another width than the embeddings', NaN."""
    if V_ref is None:
        return None
    widths = f"the head has width {V_ref.numel()}, the embeddings have {num_features}"
    require(V_ref.numel() == num_features, f"{widths}: not the same model")
    require(V_ref.isfinite().all(), "the head holds NaN or infinity")
    return V_ref.reshape(-1, 1)
