"""The table of embeddings and the comparisons beside it, on disk."""

import json
import warnings
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from lore.common import InputError, written_whole

TABLE_ROWS = 8192  # embeddings handled at a time, so that a table is never copied whole
DTYPES = {
    torch.float32: "F32",
    torch.bfloat16: "BF16",
    torch.float16: "F16",
}  # as safetensors calls them


class Split(NamedTuple):
    table: torch.Tensor  # (rows, d)
    frame: object  # pandas DataFrame, one row per comparison: user_id, chosen, rejected, and the ids that place it
    head: (
        torch.Tensor | None
    )  # V_ref, (d, 1) float32; None for a text encoder, which has no score head
    model: str = ""  # which model made the embeddings
    made_from: str = (
        ""  # hash of the file that the texts come from, where that may change unnoticed
    )


def save_split(path, split, blocks=None, **metadata):
    """PATH.safetensors (`embeddings`, `head`; model and metadata in its header) and PATH.parquet, each whole.

    blocks: (row numbers, (rows, d)) of a table that comes piece by piece; split.table then only has its shape (meta).
    """
    tensors = {"embeddings": split.table.contiguous()}
    if split.head is not None:
        tensors["head"] = split.head.contiguous()
    with written_whole(
        f"{path}.parquet"
    ) as file:  # first, so that a fingerprint vouches for both files
        split.frame.to_parquet(file)
    with written_whole(f"{path}.safetensors") as file:
        header = {"model": split.model, "made_from": split.made_from, **metadata}
        header = {key: str(value) for key, value in header.items()}
        if blocks is None:
            save_file(tensors, file, header)
        else:
            write_blocks(file, tensors, blocks, header)


def write_blocks(path, tensors, blocks, metadata):
    """A safetensors file as save_file makes it, `embeddings` row by row from `blocks`: no more memory than one of them.

    The format: eight bytes with the length of a JSON text, that text, which says where each tensor lies, the numbers.
    """
    header, end = {"__metadata__": metadata}, 0
    for name, tensor in tensors.items():
        begin, end = end, end + tensor.numel() * tensor.element_size()
        header[name] = {
            "dtype": DTYPES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [begin, end],
        }
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        start = file.tell()
        for name, tensor in tensors.items():
            if name != "embeddings":
                file.seek(start + header[name]["data_offsets"][0])
                file.write(tensor.flatten().view(torch.uint8).numpy())
        width = tensors["embeddings"].shape[1] * tensors["embeddings"].element_size()
        for rows, vectors in blocks:
            for row, vector in zip(rows, vectors.view(torch.uint8).numpy()):
                file.seek(start + row * width)
                file.write(vector)


def mapped(path, name):
    """A tensor of a safetensors file, read from disk where it is looked at; not to be written to."""
    with open(path, "rb") as file:
        length = int.from_bytes(file.read(8), "little")
        entry = json.loads(file.read(length))[name]
    begin, end = entry["data_offsets"]
    raw = np.memmap(path, np.uint8, mode="r", offset=8 + length + begin, shape=(end - begin,))
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The given NumPy array is not writable")
        numbers = torch.from_numpy(raw)
    return numbers.view({text: dtype for dtype, text in DTYPES.items()}[entry["dtype"]]).view(
        entry["shape"]
    )


def load_split(path, made_by, columns=("chosen", "rejected")):
    """The Split saved at PATH, its table left on disk; `columns` of its frame hold table rows.

    InputError: missing, damaged, NaN, rows outside the table, head of another width.
    """
    import pandas as pd

    for file in (f"{path}.safetensors", f"{path}.parquet"):
        if not Path(file).exists():
            raise InputError(f"{file} is missing; make it with: {made_by}")
    try:
        with safe_open(
            f"{path}.safetensors", framework="np"
        ) as file:  # "pt" would claim memory for the whole file
            table, header = mapped(f"{path}.safetensors", "embeddings"), file.metadata() or {}
            head = torch.from_numpy(file.get_tensor("head")) if "head" in file.keys() else None  # noqa: SIM118
    except SafetensorError as error:
        raise InputError(
            f"{path}.safetensors is damaged ({error}); delete it and run again: {made_by}"
        ) from error
    try:
        frame = pd.read_parquet(f"{path}.parquet")
    except (OSError, ValueError) as error:
        raise InputError(
            f"{path}.parquet is damaged ({error}); delete it and run again: {made_by}"
        ) from error
    split = Split(table, frame, head, header.get("model", ""), header.get("made_from", ""))
    bad = unfinite_rows(split.table)
    if len(bad):
        raise InputError(
            f"{path}.safetensors: row {bad[0].item()} of the embeddings holds NaN or infinity"
        )
    if missing := [name for name in columns if name not in frame]:
        raise InputError(
            f"{path}.parquet has no column {missing[0]}: of another data set? make it with: {made_by}"
        )
    rows = split.frame[list(columns)].to_numpy()
    if len(rows) and not 0 <= rows.min() <= rows.max() < len(split.table):
        raise InputError(
            f"{path}.parquet points outside the {len(split.table)} rows of {path}.safetensors"
        )
    if split.head is not None:
        reference_head(split.head, split.table.shape[1])
    return split


def unfinite_rows(table):
    """Row numbers of a (rows, d) table that hold NaN or infinity."""
    finite = [rows.isfinite().all(dim=1) for rows in table.split(TABLE_ROWS)]
    return (~torch.cat(finite)).nonzero().flatten()


def reference_head(V_ref, num_features):
    """V_ref as a (d, 1) column, or None. InputError when its width is not that of the embeddings."""
    if V_ref is None:
        return None
    if V_ref.numel() != num_features:
        raise InputError(
            f"the head has width {V_ref.numel()}, the embeddings have {num_features}: not the same model"
        )
    if not V_ref.isfinite().all():
        raise InputError("the head holds NaN or infinity")
    return V_ref.reshape(-1, 1)
