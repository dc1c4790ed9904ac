"""LoRe: many people, one low-rank basis of reward functions (arXiv 2504.14439). From vectors to people.

    P(user i prefers the chosen reply) = sigmoid(x @ V @ w_i / LOGIT_SCALE),    x = e(chosen) - e(rejected)

    code      paper                     shape        meaning
    e         e(x, y)                   (d,)         embedding of prompt and reply, from a frozen reward model
    X, y      all the D_i, Eq. 10       (n, d) (n,)  e(chosen) - e(rejected) of all users stacked, and whose it is
    V         A transposed, Eq. 8       (d, K)       basis rewards, one per column
    W         w_1 .. w_C, Eq. 7         (C, K)       user mixtures, rows on the simplex (softmax of logits)
    K         B                         int          rank; 0 = the reference head as it is, 1 = one Bradley-Terry reward
    V_ref     reference reward model    (d, 1)       the reward model's own `score` weight
    Z         R_phi                     (n, K)       X @ V, the differences seen through the basis

Two solvers: adam, the published recipe and the default; ridge, which chooses priors on held-out prompts.
Several fits (ranks, alphas, seeds) are solved side by side: X is multiplied once for all of them, with the columns of
all their V next to each other, P in all; everything else happens fit by fit, so that each takes the path it would have
taken alone.
"""

import argparse
import itertools
import json
import math
import os
import re
import subprocess
import sys
import warnings
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass, replace
from datetime import timedelta
from functools import lru_cache, wraps
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import nn
from tqdm import tqdm

LOGIT_SCALE = 100.0  # divides every reward difference; as published, it sets what a learning rate of 0.5 means
PRUNE_BELOW = 1e-2  # LoRe_regularized drops a basis reward that no user gives more weight than this; as published
ROW_BLOCKS = 16  # blocks of rows that X is multiplied in: enough to feed the cores
COLUMN_TILE = 8  # X is multiplied by a multiple of this many columns, so that none is rounded by what stands beside it
TABLE_ROWS = 8192  # embeddings handled at a time, so that a table is never copied whole
ALL_SHOTS = 0  # as a number of shots: everything known of a user
DTYPES = {torch.float32: "F32", torch.bfloat16: "BF16", torch.float16: "F16"}  # as safetensors calls them
QUIET_SECONDS = 3.0  # a progress bar appears after this long


class InputError(ValueError):
    """A mistake in the input, told in one line. Scripts end on it with status 2 and no traceback."""


# ------------------------------------------------------------------------------------------------------------------
# Processes: torchrun starts a script several times, on one machine or more; without it there is one
# ------------------------------------------------------------------------------------------------------------------


def rank():
    """Number of this process, the first being 0."""
    return dist.get_rank() if dist.is_initialized() else 0


def world():
    """How many processes there are."""
    return dist.get_world_size() if dist.is_initialized() else 1


@contextmanager
def one_run():
    """The processes that torchrun has started find each other; only the first one prints."""
    if int(os.environ.get("WORLD_SIZE", 1)) == 1:
        yield
        return
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    dist.init_process_group(backend, timeout=timedelta(days=1))  # torchrun ends all of them when one dies
    with open(os.devnull, "w") as nowhere, redirect_stdout(nowhere if rank() else sys.stdout):
        yield
    dist.destroy_process_group()


@contextmanager
def together():
    """Around what needs all processes. InputError: one of them has ended."""
    try:
        yield
    except RuntimeError as error:
        raise InputError(f"process {rank()} of {world()}: another one has ended, see its message") from error


def from_first(function):
    """What the first process gets from calling it, in all of them; a mistake in the input ends them all."""
    if world() == 1:
        return function()
    result = [None, None]
    if rank() == 0:
        try:
            result[0] = function()
        except (InputError, OSError) as error:
            result[1] = error
    with together():
        dist.broadcast_object_list(result)
    if result[1] is not None:
        raise result[1] if rank() == 0 else SystemExit(2)
    return result[0]


def summed(counts):
    """{name: whole number} summed over the processes."""
    return dict(zip(counts, all_reduced(torch.tensor(list(counts.values()))).tolist()))


def all_reduced(total):
    """The sum of what all processes have."""
    if world() > 1:
        with together():
            dist.all_reduce(total)
    return total


def gathered(blocks, counts):
    """Blocks (b, ..) of all processes, those of the first process first; counts: how many each one has."""
    if len(counts) == 1:
        return blocks
    mine = blocks.new_zeros(max(counts), *blocks.shape[1:])
    mine[: len(blocks)] = blocks
    parts = [torch.empty_like(mine) for _ in counts]
    with together():
        dist.all_gather(parts, mine)
    return torch.cat([part[:count] for part, count in zip(parts, counts)])


def as_first(*tensors):
    """The first process's values, in place, in all of them: no last bit may decide differently in two processes."""
    if world() > 1:
        flat = torch.cat([tensor.flatten() for tensor in tensors])
        with together():
            dist.broadcast(flat, 0)
        for tensor, values in zip(tensors, flat.split([tensor.numel() for tensor in tensors])):
            tensor.copy_(values.view_as(tensor))
    return tensors


def by_first_process(function):
    """For what is written or drawn once, whatever the number of processes."""
    return wraps(function)(lambda *args, **options: function(*args, **options) if rank() == 0 else None)


# ------------------------------------------------------------------------------------------------------------------
# Comparisons: who preferred what over what
# ------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Comparisons:
    """Pairs of C users, stacked and sorted by user. Row numbers into a table of embeddings until the last moment.

    table     (rows, d)  embeddings in the dtype of the file; or the differences themselves, one row per comparison
    user      (n,)       0 .. C-1, ascending: the y of Eq. 10
    user_ids  C strings  who they are
    chosen    (n,)       table row of the preferred reply; None where the table holds differences
    rejected  (n,)       table row of the other one; None likewise
    shot      (n,)       pairs that few-shot draws take together (a dialogue) share a number; None = each by itself
    prompt    (n,)       pairs that are held out together share a number; None = those of the same two replies
    """

    table: torch.Tensor
    user: torch.Tensor
    user_ids: tuple
    chosen: torch.Tensor | None = None
    rejected: torch.Tensor | None = None
    shot: torch.Tensor | None = None
    prompt: torch.Tensor | None = None

    def __post_init__(self):
        if (self.user.diff() < 0).any():
            raise InputError("comparisons must be sorted by user")
        for user, count in zip(self.user_ids, self.counts.tolist()):
            if count == 0:
                raise InputError(f"user {user} has no pairs; leave this user out")
        if self.shot is not None:
            number, user = torch.stack([self.shot, self.user.to(self.shot)]).unique(dim=1)  # (2, n) -> (2, shots)
            if (number != torch.arange(len(number))).any() or (user.diff() < 0).any():
                raise InputError("shots are numbered 0, 1, .. without a gap, user by user, and each has one user")

    @classmethod
    def from_list(cls, features):
        """Per-user (m_i, d) differences -> Comparisons. InputError: empty user, unequal widths, NaN or infinity."""
        if not features:
            raise InputError("no users: the list of per-user features is empty")
        for i, x in enumerate(features):
            if x.ndim != 2 or x.shape[1] != features[0].shape[1]:
                raise InputError(f"user {i}: features of shape {tuple(x.shape)}, not (pairs, {features[0].shape[1]})")
        table = torch.cat(list(features))  # C x (m_i, d) -> (n, d)
        counts = torch.tensor([len(x) for x in features], device=table.device)
        user = torch.arange(len(features), device=table.device).repeat_interleave(counts)
        bad = unfinite_rows(table)
        if len(bad):
            raise InputError(f"user {user[bad[0]].item()}: features hold NaN or infinity")
        return cls(table, user, tuple(str(i) for i in range(len(features))))

    @classmethod
    def from_frame(cls, table, frame, user_ids=None, shot=None, prompt=None):
        """Rows of a data frame (user_id, chosen, rejected) -> Comparisons of user_ids, in that order.

        shot: the column whose equal values make one shot of a user's pairs; prompt: the one that names their prompt.
        """
        user_ids = tuple(sorted(frame["user_id"].unique()) if user_ids is None else user_ids)
        frame = frame[frame["user_id"].isin(user_ids)]
        number = {user: i for i, user in enumerate(user_ids)}
        user = torch.tensor(frame["user_id"].map(number).to_numpy(dtype=np.int64))
        order = user.argsort(stable=True)
        chosen, rejected = (torch.tensor(frame[c].to_numpy(dtype=np.int64))[order] for c in ("chosen", "rejected"))
        if shot is not None:
            names = frame[shot].to_numpy()[order]
            numbers = {}
            shot = torch.tensor([numbers.setdefault(key, len(numbers)) for key in zip(user[order].tolist(), names)])
        if prompt is not None:
            prompt = torch.from_numpy(np.unique(frame[prompt].to_numpy()[order], return_inverse=True)[1])
        return cls(table, user[order], user_ids, chosen, rejected, shot, prompt)

    def __len__(self):
        return len(self.user)

    @property
    def num_features(self):
        return self.table.shape[1]

    @property
    def counts(self):
        """(C,) pairs of each user."""
        return torch.bincount(self.user, minlength=len(self.user_ids))

    def prompts(self):
        """(n,) numbers 0, 1, ..: equal where pairs share a prompt or, where none is given, both replies."""
        if self.prompt is not None:
            return self.prompt.unique(return_inverse=True)[1]
        if self.chosen is None:
            return torch.arange(len(self))
        replies = torch.stack([self.chosen, self.rejected], dim=1).sort(dim=1)[0]  # (n, 2)
        return replies.unique(dim=0, return_inverse=True)[1]

    def differences(self, like, rows=slice(None)):
        """X = e(chosen) - e(rejected), both cast before they are subtracted. (n, d), dtype and device of `like`."""
        if self.chosen is None:
            return self.table[rows].detach().to(like)
        pairs = torch.stack([self.chosen[rows], self.rejected[rows]], dim=1)  # (n, 2)
        X = like.new_empty(len(pairs), self.num_features)
        for out, block in zip(X.split(TABLE_ROWS), pairs.split(TABLE_ROWS)):
            chosen, rejected = block.T
            out.copy_(self.table[chosen]).sub_(self.table[rejected].to(like))
        return X

    def shuffled(self, seed):
        """The same pairs, in each of which a coin says who was preferred."""
        coin = torch.rand(len(self), generator=torch.Generator().manual_seed(seed)) < 0.5
        if self.chosen is None:
            return replace(self, table=self.table * (1 - 2 * coin.to(self.table)).unsqueeze(1))
        chosen, rejected = torch.where(coin, self.rejected, self.chosen), torch.where(coin, self.chosen, self.rejected)
        return replace(self, chosen=chosen, rejected=rejected)

    def project(self, Vs):
        """Z = X @ V for each V (d, K) of a list, without forming X: [(n, K), ..].

        Every table row in use goes through all V once, (rows, d) @ (d, P), and is then gathered.
        """
        like, direct = Vs[0], self.chosen is None
        used, where = (None, None) if direct else torch.cat([self.chosen, self.rejected]).unique(return_inverse=True)
        blocks = self.table.split(TABLE_ROWS) if direct else (self.table[rows] for rows in used.split(TABLE_ROWS))
        with torch.no_grad():
            parts = [TallProduct.apply(rows.to(like), *Vs) for rows in blocks]
        Rs = [torch.cat(part) for part in zip(*parts)]
        return Rs if direct else [R[where[: len(self)]] - R[where[len(self) :]] for R in Rs]


def pack(features):
    """Comparisons as they are, a list of per-user (m_i, d) tensors as Comparisons."""
    return features if isinstance(features, Comparisons) else Comparisons.from_list(features)


def unfinite_rows(table):
    """Row numbers of a (rows, d) table that hold NaN or infinity."""
    finite = [rows.isfinite().all(dim=1) for rows in table.split(TABLE_ROWS)]
    return (~torch.cat(finite)).nonzero().flatten()


class Split(NamedTuple):
    table: torch.Tensor  # (rows, d)
    frame: object  # pandas DataFrame, one row per comparison: user_id, chosen, rejected, and the ids that place it
    head: torch.Tensor | None  # V_ref, (d, 1) float32; None for a text encoder, which has no score head
    model: str = ""  # which model made the embeddings
    made_from: str = ""  # hash of the file that the texts come from, where that may change unnoticed


def save_split(path, split, blocks=None, **metadata):
    """PATH.safetensors (`embeddings`, `head`; model and metadata in its header) and PATH.parquet, each whole.

    blocks: (row numbers, (rows, d)) of a table that comes piece by piece; split.table then only has its shape (meta).
    """
    tensors = {"embeddings": split.table.contiguous()}
    if split.head is not None:
        tensors["head"] = split.head.contiguous()
    with written_whole(f"{path}.parquet") as file:  # first, so that a fingerprint vouches for both files
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
        header[name] = {"dtype": DTYPES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [begin, end]}
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
    return numbers.view({text: dtype for dtype, text in DTYPES.items()}[entry["dtype"]]).view(entry["shape"])


def load_split(path, made_by, columns=("chosen", "rejected")):
    """The Split saved at PATH, its table left on disk; `columns` of its frame hold table rows.

    InputError: missing, damaged, NaN, rows outside the table, head of another width.
    """
    import pandas as pd

    for file in (f"{path}.safetensors", f"{path}.parquet"):
        if not Path(file).exists():
            raise InputError(f"{file} is missing; make it with: {made_by}")
    try:
        with safe_open(f"{path}.safetensors", framework="np") as file:  # "pt" would claim memory for the whole file
            table, header = mapped(f"{path}.safetensors", "embeddings"), file.metadata() or {}
            head = torch.from_numpy(file.get_tensor("head")) if "head" in file.keys() else None  # noqa: SIM118
    except SafetensorError as error:
        raise InputError(f"{path}.safetensors is damaged ({error}); delete it and run again: {made_by}") from error
    try:
        frame = pd.read_parquet(f"{path}.parquet")
    except (OSError, ValueError) as error:
        raise InputError(f"{path}.parquet is damaged ({error}); delete it and run again: {made_by}") from error
    split = Split(table, frame, head, header.get("model", ""), header.get("made_from", ""))
    bad = unfinite_rows(split.table)
    if len(bad):
        raise InputError(f"{path}.safetensors: row {bad[0].item()} of the embeddings holds NaN or infinity")
    if missing := [name for name in columns if name not in frame]:
        raise InputError(f"{path}.parquet has no column {missing[0]}: of another data set? make it with: {made_by}")
    rows = split.frame[list(columns)].to_numpy()
    if len(rows) and not 0 <= rows.min() <= rows.max() < len(split.table):
        raise InputError(f"{path}.parquet points outside the {len(split.table)} rows of {path}.safetensors")
    if split.head is not None:
        reference_head(split.head, split.table.shape[1])
    return split


def reference_head(V_ref, num_features):
    """V_ref as a (d, 1) column, or None. InputError when its width is not that of the embeddings."""
    if V_ref is None:
        return None
    if V_ref.numel() != num_features:
        raise InputError(f"the head has width {V_ref.numel()}, the embeddings have {num_features}: not the same model")
    if not V_ref.isfinite().all():
        raise InputError("the head holds NaN or infinity")
    return V_ref.reshape(-1, 1)


# ------------------------------------------------------------------------------------------------------------------
# The likelihood
# ------------------------------------------------------------------------------------------------------------------


@dataclass
class Rows:
    """X (n, d), one row for each pair, in ROW_BLOCKS blocks of r rows and the few rows left over.

    Of several processes each has its share of the blocks, and all have what is left over. Rows that would take more
    than half of the memory are not held but formed anew, from the table on disk, in every pass.
    """

    held: torch.Tensor | None  # (rows, d) of this process; the last one's end with those left over; None: read anew
    rest: torch.Tensor  # (0 .. 15, d) left over; also the dtype and device of X
    r: int
    mine: range = range(ROW_BLOCKS)  # blocks of this process
    counts: tuple = (ROW_BLOCKS,)  # blocks of each process
    data: Comparisons | None = None  # what rows are formed from

    @classmethod
    def whole(cls, X):
        """A matrix that is here already, for this process alone."""
        r = len(X) // ROW_BLOCKS
        return cls(X, X[ROW_BLOCKS * r :], r)

    @classmethod
    def of(cls, data, like):
        """The differences of Comparisons, in the dtype and on the device of a tensor, shared by all processes."""
        r = len(data) // ROW_BLOCKS
        counts = tuple(len(part) for part in np.array_split(range(ROW_BLOCKS), world()))
        first = sum(counts[: rank()])
        rest = data.differences(like, slice(ROW_BLOCKS * r, len(data)))
        rows = cls(None, rest, r, range(first, first + counts[rank()]), counts, data)
        needed, most = (rows.end - rows.begin) * rest.shape[1] * rest.element_size(), memory(rest.device) / 2
        if needed <= most or not r:
            rows.held = data.differences(like, slice(rows.begin, rows.end))
        else:
            print(
                f"{len(data)} pairs take {needed / 1e9:.1f} GB, half of the memory is {most / 1e9:.1f} GB:"
                " they are read anew in every pass"
            )
        return rows

    @property
    def begin(self):
        """First row of this process."""
        return self.mine.start * self.r

    @property
    def end(self):
        """Row after its last one; the last process counts those left over as well."""
        return self.mine.stop * self.r + (len(self.rest) if rank() == len(self.counts) - 1 else 0)

    @property
    def main(self):
        """Its blocks, (b, r, d)."""
        return self.held[: len(self.mine) * self.r].reshape(len(self.mine), self.r, self.held.shape[1])

    def pieces(self, first, last):
        """Yield (rows, x): the rows first .. last - 1, some at a time."""
        for begin in range(first, last, TABLE_ROWS):
            rows = slice(begin, min(begin + TABLE_ROWS, last))
            if self.held is None:
                yield rows, self.data.differences(self.rest, rows)
            else:
                yield rows, self.held[rows.start - self.begin : rows.stop - self.begin]

    def blocks(self):
        """Yield the pieces of each block of this process that is not held."""
        for block in self.mine:
            yield self.pieces(block * self.r, (block + 1) * self.r)

    def times(self, Vt):
        """X @ Vt.T, of the rows of all processes. (P, d) -> (n, P)"""
        if self.held is not None:
            X = self.main
            Z = torch.bmm(Vt.expand(len(X), -1, -1), X.transpose(1, 2)).transpose(1, 2)  # (b, P, d) @ (b, d, r)
        else:
            Z = Vt.new_empty(len(self.mine), self.r, len(Vt))
            for out, pieces in zip(Z, self.blocks()):
                torch.cat([Rows.whole(x).times(Vt) for _, x in pieces], out=out)
        Z_rest = (self.rest.unsqueeze(1) * Vt).sum(2)  # (1 .. 15 rows, 1, d) * (P, d) -> (rows, P)
        return torch.cat([gathered(Z, self.counts).flatten(0, 1), Z_rest])

    def transposed_times(self, G):
        """(X.T @ G).T, over the rows of all processes, block by block in their order. (n, P) -> (P, d)"""
        G_main, G_rest = G[: ROW_BLOCKS * self.r], G[ROW_BLOCKS * self.r :]
        if self.held is not None:
            Gt = (
                G_main.view(ROW_BLOCKS, self.r, G.shape[1])[self.mine.start : self.mine.stop]
                .transpose(1, 2)
                .contiguous()
            )
            grads = torch.bmm(Gt, self.main)  # (b, P, r) @ (b, r, d) -> (b, P, d)
        else:
            grads = G.new_zeros(len(self.mine), G.shape[1], self.rest.shape[1])
            for out, pieces in zip(grads, self.blocks()):
                for rows, x in pieces:
                    out += Rows.whole(x).transposed_times(G_main[rows])
        total = gathered(grads, self.counts).sum(0)
        total += (G_rest.unsqueeze(2) * self.rest.unsqueeze(1)).sum(0)  # (rows, P, 1) * (rows, 1, d) -> (P, d)
        return total

    def total(self, total, add):
        """`total` after add(total, rows, x) for all pieces of X, summed over the processes."""
        for rows, x in self.pieces(self.begin, self.end):
            add(total, rows, x)
        return all_reduced(total)


def memory(device):
    """Bytes that this process can have: of its GPU, or of the machine within the limits that are set."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    page, beside = os.sysconf("SC_PAGE_SIZE"), int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    limits = [page * os.sysconf("SC_PHYS_PAGES") / beside]  # processes of this run share a machine
    groups = Path("/proc/self/cgroup").read_text().split() if Path("/proc/self/cgroup").exists() else []
    for _, kind, path in (line.split(":", 2) for line in groups if line.count(":") > 1):  # of a container, of a job
        if kind not in ("", "memory"):
            continue
        name = "memory.limit_in_bytes" if kind else "memory.max"
        group = Path("/sys/fs/cgroup", kind, path.strip("/"))
        for file in (folder / name for folder in (group, *group.parents)):
            if file.exists() and (text := file.read_text().strip()).isdigit():
                limits.append(int(text) / beside)
    if Path("/proc/self/statm").exists():
        import resource

        used = [page * int(pages) for pages in Path("/proc/self/statm").read_text().split()]
        for kind, taken in ((resource.RLIMIT_AS, used[0]), (resource.RLIMIT_DATA, used[5])):  # ulimit -v and -d
            if (limit := resource.getrlimit(kind)[0]) != resource.RLIM_INFINITY:
                limits.append(limit - taken)
    return min(limits)


class TallProduct(torch.autograd.Function):
    """Z = X @ V of every fit, for one tall X (Rows, or a tensor; no gradient) and several thin V (d, K): (n, K), ..

    One product for all columns together, by blocks of rows, one block per core at a time: forward and backward then
    read X at close to memory speed; X.T @ G as one call can be ten times slower. Several processes exchange Z and the
    gradients of the blocks, which are then added in the same order as by one. All else each does alike, with the first
    one's gradients and decisions (as_first, from_first), as GPUs round anew every time.
    """

    @staticmethod
    def padding(P):
        return -P % COLUMN_TILE

    @staticmethod
    def forward(ctx, X, *Vs):
        ctx.X = X if isinstance(X, Rows) else Rows.whole(X)
        ctx.widths = [V.shape[1] for V in Vs]
        P = sum(ctx.widths)
        Z = ctx.X.times(F.pad(torch.cat([V.T for V in Vs]), (0, 0, 0, TallProduct.padding(P))))  # (P, d) -> (n, P)
        return tuple(columns.contiguous() for columns in Z[:, :P].split(ctx.widths, dim=1))

    @staticmethod
    def backward(ctx, *Gs):
        P = sum(ctx.widths)
        Vt_grad = ctx.X.transposed_times(F.pad(torch.cat(Gs, dim=1), (0, TallProduct.padding(P))))  # (n, P) -> (P, d)
        return None, *(rows.T for rows in Vt_grad[:P].split(ctx.widths))


def margins(Z, W, user):
    """x @ V @ w_user of every pair: the pair's own user only, never all C. (n, K), (C, K), (n,) -> (n,)"""
    return (Z * W.index_select(0, user)).sum(dim=1)


def negative_log_likelihood(Z, W, user, weight):
    """sum_j weight_j * -log sigmoid(z_j . w_user(j) / LOGIT_SCALE). Shapes (n, K), (C, K), (n,), (n,) -> scalar.

    With weight 1 / (pairs of the user) this is Eq. 10, and with V frozen Eq. 11.
    """
    return -(F.logsigmoid(margins(Z, W, user) / LOGIT_SCALE) * weight).sum()


def user_mean_weights(user):
    """1 / m_i for each pair of user i: makes a sum over pairs the sum over users of their means. (n,)"""
    return torch.bincount(user).double().reciprocal()[user]


# ------------------------------------------------------------------------------------------------------------------
# Models
# ------------------------------------------------------------------------------------------------------------------


class LoRe(nn.Module):
    """min over V, W of Eq. 10 + alpha * sum_k ||V_k - V_ref||^2, by one Adam over both, as published.

    V_sft: (d, 1) reference head or None; alpha: pull towards it, 0 = none. W: (C, K) logits, V: (d, K); both may be
    overwritten before `fit`. `generator` draws the start; without one torch's global state does.
    InputError: K outside 1..d, head of another width, alpha without a head.
    """

    draw_W = staticmethod(torch.randn)  # logits from N(0, 1)

    def __init__(
        self, V_sft, alpha, num_classes, num_features, num_basis_vectors, num_iterations, learning_rate, *,
        generator=None,
    ):  # fmt: skip
        super().__init__()
        check_rank(num_basis_vectors, num_features, smallest=1)
        if not alpha >= 0 or (alpha > 0 and V_sft is None):
            raise InputError(
                f"alpha = {alpha:g}: never negative, and 0 (--alpha_list 0) where there is no reference head to pull to"
            )
        self.register_buffer("V_sft", reference_head(V_sft, num_features))
        self.alpha, self.num_iterations, self.learning_rate = float(alpha), num_iterations, learning_rate
        self.W = nn.Parameter(self.draw_W(num_classes, num_basis_vectors, generator=generator))
        self.V = nn.Parameter(torch.randn(num_features, num_basis_vectors, generator=generator))

    def fit(self, features):
        """Per-user list of (m_i, d) tensors, or Comparisons -> (W, V): probabilities (C, K) and basis (d, K)."""
        self.fit_together([self], pack(features))
        return self.solution()

    def forward(self, features):
        """(negative log likelihood, penalty at full alpha) of the present W and V; their sum is the loss."""
        X, nll = self.objective(pack(features))
        (Z,) = TallProduct.apply(X, self.V)
        return nll(Z, self.W), self.penalty()

    def solution(self):
        return self.W.detach().softmax(dim=1), self.V.detach()  # Eq. 7

    def objective(self, data):
        """X (n, d) as Rows, and the first part of the loss as a function of Z (n, K) and logits W (C, K)."""
        C, d = len(self.W), len(self.V)
        if (len(data.user_ids), data.num_features) != (C, d):
            raise InputError(
                f"data of {len(data.user_ids)} users, width {data.num_features} for a model of {C} users, width {d}"
            )
        user, weight = data.user.to(self.V.device), self.pair_weights(data.user).to(self.V)
        return Rows.of(data, self.V), lambda Z, W: negative_log_likelihood(Z, W.softmax(dim=1), user, weight)

    @classmethod
    def fit_together(cls, models, data):
        """Fit models that differ in rank, alpha or start to the same Comparisons, in place, one pass over X for all."""
        cls.descend(models, *models[0].objective(data), models[0].num_iterations, models[0].learning_rate)

    @staticmethod
    def descend(models, X, nll, steps, learning_rate):
        Vs, Ws = [m.V for m in models], [m.W for m in models]
        optimizer = torch.optim.Adam([*Ws, *Vs], lr=learning_rate)
        for _ in progress(range(steps), "joint fit"):
            optimizer.zero_grad()
            Zs = TallProduct.apply(X, *Vs)
            loss = sum(nll(Z, W) for Z, W in zip(Zs, Ws)) + sum(m.penalty() for m in models)  # Eq. 10, fit by fit
            loss.backward()
            as_first(*(parameter.grad for parameter in (*Ws, *Vs)))
            optimizer.step()

    @staticmethod
    def pair_weights(user):
        return user_mean_weights(user)

    def penalty(self):
        """alpha * sum_k ||V_k - V_ref||^2. Differs from the published code, which broadcasts to (d, d)."""
        return self.alpha * (self.V - self.V_sft.to(self.V)).square().sum() if self.alpha else self.V.new_zeros(())


class LoRe_regularized(LoRe):
    """min over V, W of the mean of -log P over all pairs + alpha_t * mean_k (1 - cos(V_k, V_ref)), alternating.

    Each step moves W first, then V with the new W (two Adams); alpha_t is 0 before 20 % of the steps and grows linearly
    to alpha at 80 %. `fit` returns only the columns that some user weighs PRUNE_BELOW or more. Arguments as LoRe.
    """

    draw_W = staticmethod(torch.rand)  # logits from U(0, 1)

    def solution(self):
        """Differs from the published code: mixtures are renormalised over the columns kept, so that they sum to one."""
        W, V = super().solution()
        largest = W.amax(dim=0)
        kept = largest >= min(PRUNE_BELOW, largest.max().item())  # above rank 100 nobody may reach it: keep the largest
        return W[:, kept] / W[:, kept].sum(dim=1, keepdim=True), V[:, kept]

    @staticmethod
    def descend(models, X, nll, steps, learning_rate):
        Vs, Ws = [m.V for m in models], [m.W for m in models]
        adam_W, adam_V = (torch.optim.Adam(parameters, lr=learning_rate) for parameters in (Ws, Vs))
        for step in progress(range(steps), "joint fit"):
            Zs = TallProduct.apply(X, *Vs)  # serves both halves of the step: V moves only at its end
            adam_W.zero_grad()
            sum(nll(Z.detach(), W) for Z, W in zip(Zs, Ws)).backward()
            as_first(*(W.grad for W in Ws))
            adam_W.step()
            adam_V.zero_grad()
            loss = sum(nll(Z, W.detach()) for Z, W in zip(Zs, Ws))
            loss = loss + warm_up(step, steps) * sum(m.penalty() for m in models)
            loss.backward()
            as_first(*(V.grad for V in Vs))
            adam_V.step()

    @staticmethod
    def pair_weights(user):
        """Every pair counts the same, whoever made it: 1 / n. (n,)"""
        return torch.full((len(user),), 1 / len(user), dtype=torch.float64)

    def penalty(self):
        """alpha * mean_k (1 - cos(V_k, V_ref))."""
        if not self.alpha:
            return self.V.new_zeros(())
        return self.alpha * (1 - F.cosine_similarity(self.V, self.V_sft.to(self.V), dim=0)).mean()


def warm_up(step, steps):
    """Share of alpha in force: 0 before 20 % of the steps, then linear, 1 from 80 % on."""
    start, end = int(0.2 * steps), int(0.8 * steps)
    return 0.0 if step < start else 1.0 if step >= end else (step - start) / (end - start)


class PersonalizeBatch(nn.Module):
    """min over w_i on the simplex, V frozen, of the mean of -log P over the user's own pairs; all users at once. Eq. 11

    `w`: (C, K) logits, from N(0, 1); may be overwritten before `fit`.
    """

    def __init__(self, num_classes, num_features, num_basis_vectors, num_iterations, learning_rate, *, generator=None):
        super().__init__()
        check_rank(num_basis_vectors, num_features, smallest=1)
        self.num_features, self.num_iterations, self.learning_rate = num_features, num_iterations, learning_rate
        self.w = nn.Parameter(torch.randn(num_classes, num_basis_vectors, generator=generator))

    def fit(self, features, V):
        """Per-user list or Comparisons, basis V (d, K) -> W: probabilities (C, K)."""
        data, (C, K) = pack(features), self.w.shape
        if (len(data.user_ids), data.num_features, *V.shape) != (C, self.num_features, self.num_features, K):
            raise InputError(
                f"{len(data.user_ids)} users, embeddings of width {data.num_features} and a basis of shape"
                f" {tuple(V.shape)} for a model of {C} users and a basis of ({self.num_features}, {K})"
            )
        return self.fit_together([self], data.project([V.detach().to(self.w)]), data.user)[0]

    @staticmethod
    def fit_together(models, Zs, user):
        """Models of several ranks or starts, each with its own Z = X @ V (n, K), at once -> [W (C, K), ..]."""
        weight, user = user_mean_weights(user).to(Zs[0]), user.to(Zs[0].device)
        logits = [m.w.detach().to(Z).requires_grad_() for m, Z in zip(models, Zs)]
        optimizer = torch.optim.Adam(logits, lr=models[0].learning_rate)
        for _ in progress(range(models[0].num_iterations), "few-shot fit"):
            optimizer.zero_grad()
            loss = sum(negative_log_likelihood(Z, w.softmax(dim=1), user, weight) for Z, w in zip(Zs, logits))  # Eq. 11
            loss.backward()
            optimizer.step()
        for model, w in zip(models, logits):
            model.w.data.copy_(w.detach())
        return [w.detach().softmax(dim=1) for w in logits]


def check_rank(K, num_features, smallest):
    if not smallest <= K <= num_features:
        raise InputError(f"K = {K}: a rank lies between {smallest} and the width of the embeddings, {num_features}")


def progress(steps, text):
    """A bar for whatever takes longer than a few seconds."""
    return tqdm(steps, desc=text, delay=QUIET_SECONDS, leave=False, disable=rank() > 0)


# ------------------------------------------------------------------------------------------------------------------
# The ridge solver: priors in place of stopping early, chosen on held-out prompts; mixtures solved to a certificate
# ------------------------------------------------------------------------------------------------------------------

HELD_OUT = 4  # one prompt in so many is held out of the joint fit, to choose the priors by
COMMON_SPREADS = [10 ** (i / 2) for i in range(-3, 3)]  # s, of what all people share; from strong ridge to weak
HEAD_SPREAD = 5.0  # of the reference head's multiple: hardly held, but finite where the head separates all pairs
PERSONAL_SPREADS = [5.0, 2.0, 0.8, 0.3]  # p, of what a column has of its own; from weak ridge to strong
EVERYBODY = math.inf  # as the strength of a prior: all have the population's mixture
STRENGTHS = [0.3, 1.0, 3.0, 10.0, EVERYBODY]  # pairs that this mixture counts as, for a new user
SEEN_STRENGTH = 1.0  # the same for a seen user
FEW_PAIRS = 10  # known of a seen user who stands for a new one
WORTH = 1e-3  # share of the held-out loss that a weaker ridge must save
SURE = 1.5  # standard errors by which held-out prompts must speak for more than one reward for everybody
FIRST_PASSES, NEXT_PASSES, LAST_PASSES = 30, 10, 20  # over X: first ridge of a path, each that follows, all pairs
CERTIFIED = 1e-6  # largest Frank-Wolfe gap of a few-shot fit, in the unit of Eq. 11
LARGEST_LOG_ODDS = 100.0  # of a pair under one basis reward, up to which the certificate is kept
BATCH = 2**22  # numbers that a batch of few-shot problems holds


class Prior(NamedTuple):
    """What is known of a person before the first pair."""

    mean: torch.Tensor  # (K,) the population's mixture
    strength: float | torch.Tensor  # pairs that it counts as, or (C,); EVERYBODY = more than anybody can have


class Mixtures(NamedTuple):
    W: torch.Tensor  # (C, K) float64
    gap: torch.Tensor  # (C,) Frank-Wolfe gap: the loss is within it of the smallest there is
    spread: torch.Tensor | None  # (C, K) Laplace posterior std of w, the simplex's edges not minded


class Fit(NamedTuple):
    """What a joint fit has found; with a prior where the ridge solver made it."""

    V: torch.Tensor  # (d, K); (d, 1) where the ridge solver found nothing personal
    W: torch.Tensor  # (C, K) probabilities of the seen users
    generator: torch.Generator | None = None  # adam: goes on to draw the starts of the unseen users
    prior: Prior | None = None  # ridge: of the unseen users
    choice: dict | None = None  # ridge: what was chosen, and the held-out curves it was chosen by

    def new_people(self, features, spread=False):
        """Few-shot fit of a ridge solution: per-user list, (0, d) for who is unknown, or Comparisons -> Mixtures."""
        if isinstance(features, Comparisons):
            known, user, count = features, features.user, len(features.user_ids)
        else:
            known, count = [x for x in features if len(x)], len(features)
            user = torch.arange(count).repeat_interleave(torch.tensor([len(x) for x in features], dtype=torch.long))
        Z = pack(known).project([self.V])[0] if len(known) else self.V.new_zeros(0, self.V.shape[1])
        return solve_mixtures(Z, user.to(Z.device), count, self.prior, spread)


def solve_mixtures(Z, user, num_users, prior, spread=False):
    """min over w_i on the simplex of (sum_j -log sigmoid(z_j . w_i / LOGIT_SCALE) + strength / 2 |w_i - mean|^2) / m_i.

    Eq. 11 with a prior, user by user. Z (n, K), user (n,) ascending -> Mixtures; without pairs w_i is the mean.
    InputError: log-odds so large that the certificate could not be kept.
    """
    counts, mean = torch.bincount(user, minlength=num_users), prior.mean.to(Z.device, torch.float64)
    W, gap = mean.repeat(num_users, 1), mean.new_zeros(num_users)
    strength = torch.as_tensor(prior.strength).to(mean).expand(num_users)
    std = ((1 - 1 / len(mean)) / strength).sqrt().unsqueeze(1).repeat(1, len(mean))  # laplace_std without pairs
    todo, first = counts.argsort(descending=True), counts.cumsum(0) - counts
    todo = todo[(counts[todo] > 0) & (strength[todo] < EVERYBODY)]
    if len(todo) and not Z.abs().max() <= LARGEST_LOG_ODDS * LOGIT_SCALE:
        raise InputError(
            f"a pair's rewards differ by log-odds above {LARGEST_LOG_ODDS:g}: an outlier in the embeddings?"
        )
    while len(todo):  # users with about as many pairs side by side, padded with zeros
        m = int(counts[todo[0]])
        rows, todo = todo.tensor_split([max(1, BATCH // (max(m, len(mean)) * len(mean)))])
        place = torch.arange(m, device=Z.device)
        real = place < counts[rows, None]  # (users, m)
        z = Z[(first[rows, None] + place).clamp_max(len(Z) - 1)].double() / LOGIT_SCALE
        z = torch.where(real[:, :, None], z, 0)  # (users, m, K)
        weight = real / counts[rows, None].double()
        shrink = strength[rows, None] / counts[rows, None]  # (users, 1)
        W[rows], gap[rows], H = newton_on_simplex(z, weight, mean, shrink)
        if spread:
            std[rows] = laplace_std(H * counts[rows, None, None])
    return Mixtures(W, gap, std if spread else None)


def newton_on_simplex(z, weight, mean, shrink, steps=100):
    """Primal-dual interior point, all users at once: w > 0 and multipliers s > 0 with w * s driven to zero.

    z (users, m, K), weight (users, m), mean (K,), shrink (users, 1) -> w (users, K), gap (users,), Hessian.
    """
    K = len(mean)
    w = z.new_full((len(z), K), 1 / K)
    logits = lambda w: (z @ w.unsqueeze(2)).squeeze(2)  # (users, m, K) @ (users, K, 1) -> (users, m)
    loss = lambda w: -(weight * F.logsigmoid(logits(w))).sum(1) + (shrink / 2 * (w - mean).square()).sum(1)
    best, best_gap, best_H, s = w, z.new_full((len(z),), math.inf), z.new_zeros(len(z), K, K), None
    for _ in range(steps):
        p = torch.sigmoid(-logits(w))
        g = shrink * (w - mean) - ((weight * p).unsqueeze(1) @ z).squeeze(1)  # gradient, (users, K)
        gap = (g * w).sum(1) - g.amin(1)  # of Frank and Wolfe
        H = z.mT @ ((weight * p * (1 - p)).unsqueeze(2) * z) + torch.diag_embed(shrink.expand(-1, K))
        better = gap < best_gap
        best, best_gap = torch.where(better[:, None], w, best), torch.where(better, gap, best_gap)
        best_H = torch.where(better[:, None, None], H, best_H)
        if best_gap.max() <= CERTIFIED:
            break
        s = g.abs().amax(1, keepdim=True).clamp_min(1e-6).expand(-1, K) if s is None else s
        mu = 0.1 * (w * s).mean(1, keepdim=True).clamp_min(1e-13)
        r = (w / s).sqrt()  # scaled by r the smallest eigenvalue of H + diag(s / w) is at least 1
        scaled = r[:, :, None] * H * r[:, None, :]
        jitter = 1 + 1e-14 * K * scaled.diagonal(dim1=1, dim2=2).amax(1)[:, None, None]
        L = torch.linalg.cholesky(scaled + jitter * torch.eye(K).to(H))
        right = torch.stack([mu / w - g, torch.ones_like(w)], 2)
        a, b = (r[:, :, None] * torch.cholesky_solve(r[:, :, None] * right, L)).unbind(2)
        step = a - b * (a.sum(1) / b.sum(1))[:, None]  # sums to zero: w stays on the simplex
        step_s = mu / w - s - s / w * step
        barrier = lambda w: loss(w) - (mu * w.log()).sum(1)  # noqa: B023
        size, value, slope = inside(w, step), barrier(w), ((g - mu / w) * step).sum(1)
        for _ in range(30):
            rounding = 1e-10 * (1 + value.abs())
            high = barrier(w + size * step) > value + 1e-4 * size[:, 0] * slope + rounding
            if not high.any():
                break
            size = torch.where(high[:, None], size / 2, size)
        w, s = w + size * step, s + inside(s, step_s) * step_s
        w = w / w.sum(1, keepdim=True)
    else:
        raise InputError(f"a few-shot fit is not certified: its gap {best_gap.max():.1e} is above {CERTIFIED:g}")
    return best, best_gap, best_H


def inside(x, step):
    """Largest part of a step, up to all of it, that keeps x > 0. (users, K) -> (users, 1)"""
    return torch.where(step < 0, -0.995 * x / step, 1.0).amin(1, keepdim=True).clamp_max(1.0)


def laplace_std(H):
    """Std of w from the Hessian of its log posterior, along the simplex: (users, K, K) -> (users, K)."""
    K = H.shape[1]
    B = torch.linalg.qr(torch.eye(K, K - 1).to(H) - 1 / K)[0]  # (K, K-1), orthonormal, columns sum to zero
    covariance = B @ torch.linalg.pinv(B.T @ H @ B, hermitian=True) @ B.T
    return covariance.diagonal(dim1=1, dim2=2).clamp_min(0).sqrt()


def minimise(loss, theta, owner, passes, tolerance=1e-4, memory=10):
    """L-BFGS on F problems side by side, theta (D,) with number j a part of problem owner[j]; loss (D,) -> (F,).

    Each problem has its curvature and step length: one that did not gain enough tries a shorter step in the next pass
    while the others go on. Ends when the last step of each has gained less than `tolerance` of its loss.
    torch.optim.LBFGS solves one problem at a time; here all share each pass over the data.
    """
    dot = lambda a, b: a.new_zeros(len(value)).index_add_(0, owner, a * b)  # (D,), (D,) -> (F,)

    def evaluate(theta):
        theta = as_first(theta.detach())[0].requires_grad_()
        value = loss(theta)
        return theta.detach(), *as_first(value.detach(), torch.autograd.grad(value.sum(), theta)[0])

    theta, value, grad = evaluate(theta)
    norm = dot(grad, grad).sqrt()
    history, scale = [], 1 / norm.clamp_min(1e-300)
    size, done, direction = torch.ones_like(value), norm == 0, -grad * scale[owner]
    for _ in range(passes):
        slope = dot(grad, direction)
        trial = theta + torch.where(done, 0, size)[owner] * direction
        trial, new_value, new_grad = evaluate(trial)
        accepted = (new_value <= value + 1e-4 * size * slope) & ~done
        s, y = trial - theta, new_grad - grad
        sy, yy = dot(s, y), dot(y, y)
        curved = accepted & (sy > 1e-10 * yy)
        history = [*history[1 - memory :], (s, y, torch.where(curved, 1 / sy, 0))]
        scale = torch.where(curved, sy / yy, scale)
        done = done | accepted & (value - new_value <= tolerance * value.abs()) | (size < 1e-9)
        shorter = (-slope * size**2 / (2 * (new_value - value - slope * size))).clamp(0.1 * size, 0.5 * size)
        size, value = torch.where(accepted, 1, shorter), torch.where(accepted, new_value, value)
        theta, grad = (torch.where(accepted[owner], new, old) for new, old in ((trial, theta), (new_grad, grad)))
        if from_first(lambda: bool(done.all())):  # noqa: B023
            break
        q, weights = grad, []
        for s, y, r in reversed(history):  # r = 0: no curvature known of this problem
            weights.append(r * dot(s, q))
            q = q - weights[-1][owner] * y
        q = q * scale[owner]
        for s, y, r in history:
            q = q + (weights.pop() - r * dot(y, q))[owner] * s
        direction = torch.where(accepted[owner], -q, direction)
    return as_first(theta)[0]


class RidgeProblem:
    """Eq. 10 with Gaussian priors, for fits of several ranks side by side, and the prompts they are judged on.

        V_k = unit * (c * head + s * u + p * D_k),    w_i = softmax(L_i)
        loss = Eq. 10 + (c^2 / HEAD_SPREAD^2 + |u|^2 + sum_k |D_k|^2) / 2 m
               + SEEN_STRENGTH * sum_i |w_i - mean of w|^2 / 2 m_i

    head: V_ref at length sqrt(d), a typical u's; c is next to free, so that the ridge pulls towards a multiple of the
    head, or towards zero where there is none. u, common to all people, and D_k, a column's own, are N(0, I) before any
    pair is seen; with m pairs per user the loss is then minus the log posterior over m. unit = LOGIT_SCALE / (root mean
    square of |x|): s and p are in log-odds of a typical pair, whatever the scale of the embeddings. A fit is a vector
    (c, u, D, L).
    """

    def __init__(self, train, V_ref, seed, device):
        self.X = Rows.of(train, torch.zeros((), device=device))  # (n, d)
        self.d, self.C = train.num_features, len(train.user_ids)
        self.user, self.prompt = train.user.to(device), train.prompts().to(device)
        generator = torch.Generator().manual_seed(seed)
        order = torch.randperm(int(self.prompt.max()) + 1, generator=generator).to(device)
        if len(order) < HELD_OUT:
            raise InputError(
                f"{len(order)} different prompts to train on; to choose a ridge, at least {HELD_OUT} are needed"
            )
        self.fitted = order[self.prompt] % HELD_OUT > 0  # (n,) every pair of a prompt, or none
        rows = self.fitted.nonzero().flatten()
        places = shuffled_places(self.user[rows].cpu(), 1, generator)[0].to(device)
        self.few = rows[places < FEW_PAIRS]  # of each user, to pose as new
        add = lambda total, rows, x: total.add_(x.square().sum(dtype=torch.float64))
        square = self.X.total(torch.zeros((), dtype=torch.float64, device=device), add).item() / len(train)
        self.unit = LOGIT_SCALE / math.sqrt(square) if square else LOGIT_SCALE
        head = self.X.rest.new_zeros(self.d, 1) if V_ref is None else F.normalize(V_ref.to(self.X.rest), dim=0)
        self.head = math.sqrt(self.d) * head.double()

    def size(self, K):
        return 1 + self.d + (K * self.d + self.C * K if K > 1 else 0)

    def parts(self, theta, K):
        """One fit's vector -> c (1,), u (d,), D (K, d), L (C, K); K = 1 has nothing personal: D and L are empty."""
        c, u, D, L = theta.split([1, self.d, *((K * self.d, self.C * K) if K > 1 else (0, 0))])
        return c, u, D.view(-1, self.d), L.view(-1, K)

    def solution(self, theta, K, s, p):
        """One fit's vector -> V (d, K) float32, W (C, K)."""
        c, u, D, L = self.parts(theta, K)
        V = c * self.head + s * u.unsqueeze(1) + (p * D.T if K > 1 else 0)  # (d, 1) + (d, 1) + (d, K)
        return (self.unit * V).float(), L.softmax(1) if K > 1 else theta.new_ones(self.C, 1)

    def weights(self, rows):
        """Of the pairs in Eq. 10 when only those of a mask `rows` (n,) count, and per user: 1 / m_i. (n,), (C,)"""
        counts = torch.zeros(self.C, dtype=torch.float64, device=rows.device).index_add_(0, self.user, rows.double())
        per_user = 1 / counts.clamp_min(1)
        return rows * per_user[self.user], per_user

    def fit(self, thetas, ranks, s, ps, rows, passes):
        """Fits of ranks[f] with spreads s, ps[f] to the pairs of a mask, from thetas on; all share each pass over X."""
        (weight, per_user), m = self.weights(rows), rows.sum() / self.C
        sizes = [len(theta) for theta in thetas]
        owner = torch.arange(len(ranks)).repeat_interleave(torch.tensor(sizes)).to(rows.device)

        def loss(theta):
            thetas, values = theta.split(sizes), []
            fits = [self.solution(t, K, s, p) for t, K, p in zip(thetas, ranks, ps)]
            for theta, K, Z, (_, W) in zip(thetas, ranks, TallProduct.apply(self.X, *[V for V, _ in fits]), fits):
                c, u, D, _ = self.parts(theta, K)
                ridge = ((c / HEAD_SPREAD).square().sum() + u.square().sum() + D.square().sum()) / m
                apart = SEEN_STRENGTH * (per_user @ (W - W.mean(0)).square().sum(1))  # (C,) @ (C,)
                values.append(negative_log_likelihood(Z, W, self.user, weight) + (ridge + apart) / 2)  # Eq. 10 first
            return torch.stack(values)

        return list(minimise(loss, torch.cat(thetas), owner, passes).split(sizes))

    def log_p(self, V, W, Z=None):
        """(n,) log P of every pair."""
        Z = TallProduct.apply(self.X, V)[0] if Z is None else Z
        return F.logsigmoid(margins(Z.double(), W, self.user) / LOGIT_SCALE)

    def gain(self, log_p, reference):
        """By how much log P is larger on held-out pairs, averaged with the weights of Eq. 10, and its standard error.

        The larger of two errors: with the prompts, and with the users, as what was drawn at random.
        """
        held = ~self.fitted
        share = self.weights(torch.ones_like(held))[0][held]
        share, gained = share / share.sum(), (log_p - reference)[held]
        off = share * (gained - (share * gained).sum())
        sums = [off.new_zeros(len(key)).index_add_(0, key[held], off) for key in (self.prompt, self.user)]
        return from_first(lambda: ((share * gained).sum().item(), max(over.norm().item() for over in sums)))

    def corners(self, ranks, Z, p):
        """Starts of D and L: columns at the corners of a simplex in the K - 1 directions in which people differ most,
        each person near the corners that their own pairs pull Bradley-Terry's reward (Z (n, 1)) towards."""
        pull = (self.weights(self.fitted)[0] * torch.sigmoid(-Z.flatten() / LOGIT_SCALE)).float()
        add = lambda total, rows, x: total.index_add_(0, self.user[rows], x * pull[rows].unsqueeze(1))
        G = self.X.total(self.X.rest.new_zeros(self.C, self.d), add)  # minus the gradient of each user's part of Eq. 10
        left, singular, right = torch.linalg.svd(G.double(), full_matrices=False)
        scores = left * singular / (left * singular)[:, 0].std(correction=0).clamp_min(1e-30)  # (C, directions)
        for K in ranks:
            simplex = torch.linalg.qr(torch.eye(K, K - 1, dtype=torch.float64) - 1 / K)[0].to(right)[:, : len(right)]
            r = simplex.shape[1]
            yield F.normalize(simplex @ right[:r], dim=1) * math.sqrt(self.d) / p, scores[:, :r] @ simplex.T  # D, L


def fit_ridge(features, K_list, V_ref=None, seed=0, device="cpu"):
    """LoRe of every rank, its priors chosen on held-out prompts of the same people: {K: Fit}, K = 1 always among them.

    features: per-user list of (m_i, d) tensors, each row taken for a prompt of its own, or Comparisons, which can say
    what prompt a pair is about; V_ref: head (d, 1) or None. One reward for everybody is the answer at every rank
    whose personal rewards do not predict held-out prompts clearly better than that one does.
    """
    train, ranks = pack(features), sorted({K for K in K_list if K > 1})
    for K in ranks:
        check_rank(K, train.num_features, smallest=1)
    problem = RidgeProblem(train, reference_head(V_ref, train.num_features), seed, device)
    everything = torch.ones_like(problem.fitted)
    s, start, curve = common_path(problem)
    (theta,) = problem.fit([start], [1], s, [None], everything, FIRST_PASSES)
    V, W = problem.solution(theta, 1, s, None)
    common = {"common_spreads": COMMON_SPREADS[: len(curve)], "common_held_out_loss": curve, "common_spread": s}
    nothing_personal = Fit(V, W.float(), prior=Prior(W[0], EVERYBODY), choice=common)
    fits, chosen = {1: nothing_personal}, {}
    for K, (thetas, choice) in personal_path(problem, ranks, s, start).items():
        fits[K] = nothing_personal._replace(choice=common | choice)
        if choice["personal_spread"]:
            chosen[K] = thetas[PERSONAL_SPREADS.index(choice["personal_spread"])], choice
    if chosen:
        thetas, ps = zip(*((theta, choice["personal_spread"]) for theta, choice in chosen.values()))
        thetas = problem.fit(thetas, list(chosen), s, ps, everything, LAST_PASSES)
        for theta, p, (K, (_, choice)) in zip(thetas, ps, chosen.items()):
            V, W = problem.solution(theta, K, s, p)
            (Z,), mean = TallProduct.apply(problem.X, V), W.mean(0)
            W = solve_mixtures(Z, problem.user, problem.C, Prior(mean, SEEN_STRENGTH)).W
            fits[K] = Fit(V, W.float(), prior=Prior(mean, float(choice["strength"])), choice=common | choice)
    return fits


def common_path(problem):
    """Bradley-Terry from strong to weak ridge, as long as the held-out loss falls -> s, theta, curve."""
    theta, best, curve, last = problem.head.new_zeros(problem.size(1)), None, [], COMMON_SPREADS[0]
    weight = problem.weights(torch.ones_like(problem.fitted))[0] * ~problem.fitted
    for s in COMMON_SPREADS:
        theta[1:] *= last / s  # u, so that s * u stays
        (theta,), last = problem.fit([theta], [1], s, [None], problem.fitted, FIRST_PASSES), s
        held_out = -(weight @ problem.log_p(*problem.solution(theta, 1, s, None)) / weight.sum()).item()
        curve.append(from_first(lambda: held_out))  # noqa: B023
        if best is None or curve[-1] < (1 - WORTH) * best[0]:
            best = curve[-1], s, theta.clone()
        elif len(curve) > 2:  # the first two may be too strong to tell apart
            break
    return *best[1:], curve


def personal_path(problem, ranks, s, start):
    """Higher ranks from weak to strong ridge, from Bradley-Terry's theta on -> {K: (thetas along it, choice)}."""
    V, W = problem.solution(start, 1, s, None)
    (Z,) = TallProduct.apply(problem.X, V)
    reference = problem.log_p(V, W, Z)
    thetas = [torch.cat([start, D.flatten(), L.flatten()]) for D, L in problem.corners(ranks, Z, PERSONAL_SPREADS[0])]
    paths, last = {K: ([], []) for K in ranks}, PERSONAL_SPREADS[0]
    for p in PERSONAL_SPREADS if ranks else []:
        for theta, K in zip(thetas, ranks):
            problem.parts(theta, K)[2].mul_(last / p)  # D, so that p * D stays
        passes, last = FIRST_PASSES if p == PERSONAL_SPREADS[0] else NEXT_PASSES, p
        thetas = problem.fit(thetas, ranks, s, [p] * len(ranks), problem.fitted, passes)
        for theta, (K, (along, gains)) in zip(thetas, paths.items()):
            along.append(theta.clone())
            gains.append(problem.gain(problem.log_p(*problem.solution(theta, K, s, p)), reference))
    return {K: (along, choose(problem, K, s, along, gains, reference)) for K, (along, gains) in paths.items()}


def choose(problem, K, s, along, gains, reference):
    """The ridge with the largest gain on held-out prompts, and how strong a prior serves seen people posing as new.

    Only their mixtures are forgotten: V was fitted to their pairs as well, so the prior is rather weak than strong.
    """
    choice = {"personal_spreads": PERSONAL_SPREADS, "gain": gains, "personal_spread": None}
    best = max(range(len(gains)), key=lambda i: gains[i][0])
    clear = lambda gain: gain[0] > SURE * gain[1]
    if not clear(gains[best]):
        return choice
    V, W = problem.solution(along[best], K, s, PERSONAL_SPREADS[best])
    (Z,), T, C = TallProduct.apply(problem.X, V), len(STRENGTHS), problem.C
    user = torch.cat([problem.user[problem.few] + t * C for t in range(T)])  # everybody once for each strength
    prior = Prior(W.mean(0), torch.tensor(STRENGTHS).repeat_interleave(C))
    mixtures = solve_mixtures(Z[problem.few].repeat(T, 1), user, T * C, prior).W.view(T, C, K)
    as_new = {
        f"{strength:g}": problem.gain(problem.log_p(V, w, Z), reference) for strength, w in zip(STRENGTHS, mixtures)
    }
    strength = max(as_new, key=lambda strength: as_new[strength][0])  # as text: JSON has no infinity
    if not clear(as_new[strength]):
        strength = f"{EVERYBODY:g}"
    return choice | {"personal_spread": PERSONAL_SPREADS[best], "gain_as_new": as_new, "strength": strength}


# ------------------------------------------------------------------------------------------------------------------
# Sweeps: every alpha, K and seed in one pass
# ------------------------------------------------------------------------------------------------------------------

LORE = ""  # the fit itself; the others are baselines, in the order of the table
POPULATION, ANOTHER, SHUFFLED, ALONE = "population mixture", "another user's", "shuffled labels", "each user alone"
MODELS = (LORE, POPULATION, ANOTHER, SHUFFLED, ALONE)


class Accuracies(NamedTuple):
    """Accuracies (Eq. 15), one entry per (alpha, K), alpha outer, K inner; (seeds, entries) where `seeds` was given.

    The last four are the spread over users of the same entries: np.std of the per-user accuracies.
    Differs from the published code: no factor of 0.25. NaN for K = 0 without a reference head.
    """

    train: np.ndarray  # seen users, the pairs they were fitted on
    seen: np.ndarray  # seen users, new prompts
    few_shot_train: np.ndarray  # unseen users, their few-shot pairs
    unseen: np.ndarray  # unseen users, new prompts
    train_std: np.ndarray
    seen_std: np.ndarray
    few_shot_train_std: np.ndarray
    unseen_std: np.ndarray


class RunResult(Accuracies):
    """The eight arrays of a run, and behind them its `cells`: every fit and baseline with the accuracy of each user."""

    cells = ()


class FewShotAccuracies(NamedTuple):
    """(alphas, ranks, shots) arrays: accuracy averaged over users and trials, and its np.std over trials."""

    few_shot_train: np.ndarray
    few_shot_train_std: np.ndarray
    unseen: np.ndarray
    unseen_std: np.ndarray


class FewShotResult(FewShotAccuracies):
    """The four arrays of a curve, and its `cells`, one per (alpha, K, shots), with each user's mean over trials."""

    cells = ()


class Cell(NamedTuple):
    """One fit, or a baseline, and how it did with each user."""

    seed: int | None
    alpha: float | None
    K: int | str
    accuracy: dict  # group -> (C,) array: Eq. 15 before the mean over users
    users: dict  # group -> C user ids
    model: str = LORE
    shots: int | None = None
    fit: Fit | None = None
    W_unseen: torch.Tensor | None = None  # (C', K)


def run(
    K_list, alpha_list, V_final, train_features, test_features_sparse,
    train_features_unseen, test_features_sparse_unseen, N, N_unseen, device, *,
    num_iterations=1000, few_shot_learning_rate=0.1, **options,
):  # fmt: skip
    """LoRe for every alpha and K: V and W from N seen users, w of N_unseen new ones, scored on new prompts. RunResult.

    V_final: reference head (d, 1), or None. Features: per-user lists of (m_i, d) tensors, or Comparisons.
    options: learning_rate=0.5, few_shot_iterations=500, seed=0, seeds=None (a list repeats from several starts),
    solver="adam" (as published; "ridge" chooses its own penalties and needs no other option), baselines=False,
    save=None (a prefix: V, and W and ids of seen and unseen users, go to basis_path(prefix, K, alpha, seed)),
    model="" (what made the embeddings: noted there).
    """
    groups = Groups(train_features, test_features_sparse, train_features_unseen, test_features_sparse_unseen)
    options |= {"num_iterations": num_iterations, "few_shot_learning_rate": few_shot_learning_rate}
    return sweep(LoRe, K_list, alpha_list, V_final, groups, N, N_unseen, device, **options)


def run_regularized(
    K_list, alpha_list, V_final, train_features, test_features_sparse,
    train_features_unseen, test_features_sparse_unseen, N, N_unseen, device, *,
    num_iterations=20000, few_shot_learning_rate=0.5, **options,
):  # fmt: skip
    """LoRe_regularized for every alpha and K; otherwise as `run`, and the same with solver="ridge". RunResult."""
    groups = Groups(train_features, test_features_sparse, train_features_unseen, test_features_sparse_unseen)
    options |= {"num_iterations": num_iterations, "few_shot_learning_rate": few_shot_learning_rate}
    return sweep(LoRe_regularized, K_list, alpha_list, V_final, groups, N, N_unseen, device, **options)


class Groups(NamedTuple):
    """The four sets of comparisons of an experiment: two of seen users, two of unseen users."""

    train: Comparisons
    seen: Comparisons
    few_shot_train: Comparisons
    unseen: Comparisons

    def checked(self, N, N_unseen):
        """Packed. InputError: not N or N_unseen users, train and test of different users, different widths."""
        groups = Groups(*(pack(features) for features in self))
        for name, group, users, expected in zip(
            self._fields, groups, (groups.train,) * 2 + (groups.few_shot_train,) * 2, (N, N, N_unseen, N_unseen)
        ):
            if len(group.user_ids) != expected or group.user_ids != users.user_ids:
                raise InputError(
                    f"{name}: {len(group.user_ids)} users; expected the same {expected} in training and test"
                )
            if group.num_features != groups.train.num_features:
                raise InputError(
                    f"{name}: embeddings of width {group.num_features}, train: {groups.train.num_features}"
                )
        return groups


def fit_grid(model_class, grid, V_ref, train, device, num_iterations, learning_rate, solver):
    """(grid, Fits): one Fit per (seed, alpha, K) of the grid, without K = 0 where there is no head."""
    for _, repeats in itertools.groupby(sorted(grid)):
        if len(list(repeats)) > 1:
            raise InputError("K_list, alpha_list or seeds holds a value twice")
    for _, alpha, K in grid:
        check_rank(K, train.num_features, smallest=0)
        if solver == "ridge" and alpha:
            raise InputError(f"alpha = {alpha:g}: the ridge solver chooses its own pull to the head; alpha_list = [0]")
    possible = [cell for cell in grid if cell[2] > 0 or V_ref is not None]
    if not possible:
        raise InputError("nothing to fit: an empty list, or K = 0 alone for embeddings without a reference head")
    if len(possible) < len(grid):
        print("K = 0 is left out: these embeddings come without a reference head")
    if solver == "adam":
        return possible, fit_adam(model_class, possible, V_ref, train, device, num_iterations, learning_rate)
    if solver != "ridge":
        raise InputError(f"solver = {solver!r}: adam, as published, or ridge")
    fits = {}
    for seed in dict.fromkeys(seed for seed, _, K in possible if K > 0):
        by_rank = fit_ridge(train, [K for start, _, K in possible if start == seed], V_ref, seed, device)
        fits |= {(seed, K): fit for K, fit in by_rank.items()}
    head = lambda: reference_fit(V_ref, train, device)
    return possible, [fits[seed, K] if K > 0 else head() for seed, _, K in possible]


def fit_adam(model_class, grid, V_ref, train, device, num_iterations, learning_rate):
    """One Fit per (seed, alpha, K), all fitted together."""
    models, generators = {}, [torch.Generator().manual_seed(seed) for seed, _, _ in grid]
    for cell, ((_, alpha, K), generator) in enumerate(zip(grid, generators)):
        if K > 0:
            arguments = (V_ref, alpha, len(train.user_ids), train.num_features, K, num_iterations, learning_rate)
            models[cell] = model_class(*arguments, generator=generator).to(device)
    if models:
        model_class.fit_together(list(models.values()), train)
    fits = []
    for cell, generator in enumerate(generators):
        if cell not in models:
            fits.append(reference_fit(V_ref, train, device)._replace(generator=generator))
            continue
        if not models[cell].V.isfinite().all():
            raise InputError(f"the fit of K = {grid[cell][2]}, alpha = {grid[cell][1]:g} diverged; lower learning_rate")
        W, V = models[cell].solution()
        fits.append(Fit(V, W, generator))
    return fits


def reference_fit(V_ref, train, device):
    """K = 0: the reference head, weight 1 for everybody."""
    ones = torch.ones(len(train.user_ids), 1, device=device)
    return Fit(V_ref.float().to(device), ones, prior=Prior(ones[0], EVERYBODY))


def personalise(fits, Zs, user, shape, iterations, learning_rate):
    """Mixtures of new users by the solver that made the fits, from each fit's Z (n, K): [W (users, K), ..].

    shape: (trials, shots, people) whose product is the number of users; a person's trial starts alike at all shots.
    """
    trials, S, people = shape
    if fits[0].generator is None:
        return [solve_mixtures(Z, user.to(Z.device), trials * S * people, f.prior).W.to(Z) for f, Z in zip(fits, Zs)]
    models = []
    for fit in fits:
        model = PersonalizeBatch(trials * people, *fit.V.shape, iterations, learning_rate, generator=fit.generator)
        start = model.w.data.view(trials, 1, people, -1).expand(-1, S, -1, -1)
        model.w = nn.Parameter(start.reshape(trials * S * people, -1))
        models.append(model)
    return PersonalizeBatch.fit_together(models, Zs, user)


def sweep(
    model_class, K_list, alpha_list, V_final, groups, N, N_unseen, device, *, num_iterations, few_shot_learning_rate,
    learning_rate=0.5, few_shot_iterations=500, seed=0, seeds=None, solver="adam", baselines=False, save=None, model="",
):  # fmt: skip
    """What `run` and `run_regularized` share: joint fit, few-shot fit and the four accuracies of the whole grid."""
    groups = groups.checked(N, N_unseen)
    V_ref = reference_head(V_final, groups.train.num_features)
    grid = list(itertools.product([seed] if seeds is None else seeds, alpha_list, K_list))

    def fit_people(grid, train, few):
        """(grid, fits, mixtures of the unseen) from these pairs of the seen and the unseen."""
        grid, fits = fit_grid(model_class, grid, V_ref, train, device, num_iterations, learning_rate, solver)
        Zs = few.project([fit.V for fit in fits])
        shape = (1, 1, N_unseen)
        return grid, fits, personalise(fits, Zs, few.user, shape, few_shot_iterations, few_shot_learning_rate)

    starts = dict.fromkeys(start for start, _, _ in grid) if baselines else []
    alone = [each_alone(groups, V_ref, start, device) for start in starts]
    fitted = list(zip(*fit_people(grid, groups.train, groups.few_shot_train)))
    variants = [mixture_variants(K, fit, W_unseen, baselines) for (_, _, K), fit, W_unseen in fitted]
    cells = score_cells(fitted, variants, groups)
    main = {(cell.seed, cell.alpha, cell.K): cell for cell in cells if cell.model == LORE}
    if save is not None:
        for cell in (cell for cell in main.values() if cell.K > 0):
            people = (cell.fit.V, cell.fit.W, groups.train.user_ids, cell.W_unseen, groups.unseen.user_ids)
            strength = {} if cell.fit.prior is None else {"prior_strength": cell.fit.prior.strength}
            path = basis_path(save, cell.K, cell.alpha, cell.seed)
            save_basis(path, Basis(*people, model), alpha=cell.alpha, seed=cell.seed, **strength)
    for start in starts:
        to_fit = [cell for cell in grid if cell[0] == start and cell[2] > 0]
        if to_fit:
            fitted = list(zip(*fit_people(to_fit, groups.train.shuffled(start), groups.few_shot_train.shuffled(start))))
            cells += score_cells(fitted, [[(SHUFFLED, fit.W, W_unseen)] for _, fit, W_unseen in fitted], groups)
    table = np.full((8, len(grid)), np.nan)
    for column, cell in enumerate(grid):
        if cell in main:
            per_user = [main[cell].accuracy[name] for name in Groups._fields]
            table[:, column] = [*map(np.mean, per_user), *map(np.std, per_user)]
    result = RunResult(*(table if seeds is None else table.reshape(8, len(seeds), -1)))
    result.cells = sorted(cells + alone, key=lambda cell: MODELS.index(cell.model))
    return result


def mixture_variants(K, fit, W_unseen, baselines):
    """(name, W, W_unseen): the fit's own and, as baselines, one mixture for all people and the last person's before."""
    variants = [(LORE, fit.W, W_unseen)]
    if baselines and K > 1:
        mean = fit.W.mean(0)  # of the people seen, for the unseen as well
        variants.append((POPULATION, mean.expand_as(fit.W), mean.expand_as(W_unseen)))
        variants.append((ANOTHER, fit.W.roll(1, dims=0), W_unseen.roll(1, dims=0)))
    return variants


def score_cells(fitted, variants, groups):
    """Cells of fits [((seed, alpha, K), fit, W_unseen), ..], each with its own list of (name, W, W_unseen)."""
    users, cells = {name: group.user_ids for name, group in groups._asdict().items()}, []
    mixtures = [[(W, W_unseen) for _, W, W_unseen in named] for named in variants]
    scores = score([fit.V for _, fit, _ in fitted], mixtures, groups)
    for (cell, fit, _), named, found in zip(fitted, variants, scores):
        for (name, W, W_unseen), accuracy in zip(named, found):
            cells.append(Cell(*cell, accuracy, users, name, None, fit._replace(W=W), W_unseen))
    return cells


def score(Vs, mixtures, groups):
    """Accuracy of every user under each V (d, K) with each of its (W, W_unseen): [[{group: (C,)}, ..], ..]"""
    scores = [[{} for _ in pairs] for pairs in mixtures]
    for (name, group), unseen in zip(groups._asdict().items(), (0, 0, 1, 1)):
        for Z, pairs, found in zip(group.project(Vs), mixtures, scores):
            user = group.user.to(Z.device)
            for pair, accuracy in zip(pairs, found):
                accuracy[name] = share_right(margins(Z, pair[unseen], user), user, len(group.user_ids)).cpu().numpy()
    return scores


def share_right(margin, user, num_users):
    """Share of each user's pairs with x @ V @ w > 0, strictly: Eq. 15 before the mean over users. (n,) -> (C,)"""
    right = (margin > 0).double()
    return right.new_zeros(num_users).index_add_(0, user, right) / torch.bincount(user, minlength=num_users)


def run_few_shot_vary_shots(
    trials, alpha_list, K_list, num_shots, train_features, train_features_unseen, test_features_sparse_unseen, V_final,
    N, N_unseen, device, *, num_iterations=500, learning_rate=0.5, few_shot_iterations=500, few_shot_learning_rate=0.1,
    seed=0, solver="adam", model_class=LoRe,
):  # fmt: skip
    """Accuracy on unseen users against the number of shots known of each, for every alpha and K. FewShotResult.

    A shot is a pair, or the pairs of one dialogue where train_features_unseen.shot says so; ALL_SHOTS = all of them.
    Each trial puts every user's shots in one random order whose first s are taken, so that a curve compares like with
    like. All trials x shots x users are one batch of problems. InputError: more shots than a user has.
    """
    train = pack(train_features)  # seen users are fitted but not scored here: no test pairs of theirs
    groups = Groups(train, train, train_features_unseen, test_features_sparse_unseen).checked(N, N_unseen)
    few, unseen = groups.few_shot_train, groups.unseen
    if trials < 1 or not num_shots:
        raise InputError("trials and num_shots: at least one draw of at least one number of shots is needed")
    if len({*num_shots}) < len(num_shots):
        raise InputError("num_shots holds a value twice")
    shot = torch.arange(len(few)) if few.shot is None else few.shot
    shot_user = torch.zeros(shot.max() + 1, dtype=torch.long).scatter_(0, shot, few.user.cpu())  # (shots,)
    per_user = torch.bincount(shot_user)
    for user, count in zip(few.user_ids, per_user.tolist()):
        if max(num_shots) > count or min(num_shots) < ALL_SHOTS:
            wrong = max(num_shots) if max(num_shots) > count else min(num_shots)
            raise InputError(f"shots = {wrong}: user {user} has {count} to draw from; use 1..{per_user.min()}")
    grid = list(itertools.product([seed], alpha_list, K_list))
    V_ref = reference_head(V_final, train.num_features)
    possible, fits = fit_grid(model_class, grid, V_ref, train, device, num_iterations, learning_rate, solver)
    Vs = [fit.V for fit in fits]

    S, owner = len(num_shots), few.user.cpu()
    place = shuffled_places(shot_user, trials, torch.Generator().manual_seed(seed))[:, shot]  # (trials, n)
    limits = torch.tensor([len(few) if shots == ALL_SHOTS else shots for shots in num_shots])
    drawn = place.unsqueeze(1) < limits.view(1, S, 1)  # (trials, S, n)
    trial, shot, row = drawn.nonzero(as_tuple=True)
    problem = (trial * S + shot) * N_unseen + owner[row]  # one few-shot problem per (trial, shots, user), ascending
    Zs = [Z[row.to(Z.device)] for Z in few.project(Vs)]
    Ws = personalise(fits, Zs, problem, (trials, S, N_unseen), few_shot_iterations, few_shot_learning_rate)

    table, cells = np.full((4, len(grid), S), np.nan), []
    users = {"few_shot_train": few.user_ids, "unseen": unseen.user_ids}
    for cell, fit, Z, Z_test, W in zip(possible, fits, Zs, unseen.project(Vs), Ws):
        on_pairs = share_right(margins(Z, W, problem.to(Z.device)), problem.to(Z.device), len(W))
        user = unseen.user.to(Z.device)
        on_test = [share_right(margins(Z_test, w, user), user, N_unseen) for w in W.view(trials * S, N_unseen, -1)]
        accuracy = [part.view(trials, S, N_unseen).cpu().numpy() for part in (on_pairs, torch.cat(on_test))]
        over_users = [part.mean(2) for part in accuracy]  # (trials, S)
        table[:, grid.index(cell)] = [f(part) for part in over_users for f in (lambda x: x.mean(0), lambda x: x.std(0))]
        for s, shots in enumerate(num_shots):
            by_user = dict(zip(users, (part[:, s].mean(0) for part in accuracy)))
            cells.append(Cell(*cell, by_user, users, shots=shots, fit=fit))
    result = FewShotResult(*table.reshape(4, len(alpha_list), len(K_list), S))
    result.cells = cells
    return result


def shuffled_places(user, trials, generator):
    """Place of each shot in a random order of its own user's, 0 .. m_i - 1, per trial. (n,) -> (trials, n)"""
    keys = torch.rand(trials, len(user), generator=generator, dtype=torch.float64)
    order = (keys + user).argsort(dim=1)  # users stay in their stretches, their shots are shuffled
    first = torch.searchsorted(user, user)  # (n,) where each shot's user begins
    return torch.empty_like(order).scatter_(1, order, (torch.arange(len(user)) - first).expand(trials, -1))


# ------------------------------------------------------------------------------------------------------------------
# Baselines and statistics
# ------------------------------------------------------------------------------------------------------------------

USERS_AT_ONCE = 16  # whose own rewards are fitted together
RESAMPLES = 2000  # of the users, for an interval
INTERVAL = (2.5, 97.5)  # its percentiles


def each_alone(groups, V_ref, seed, device):
    """A reward of each user's own, from their own pairs, with Bradley-Terry's ridge: a Cell of its own kind.

    loss of user i = Eq. 11 for x @ r_i with r_i = unit * (c_i * head + s * u_i), plus RidgeProblem's ridge over m_i.
    Only s is not their own: it is chosen for the seen users as fit_ridge does.
    """
    problem, accuracy = RidgeProblem(groups.train, V_ref, seed, device), {}
    s, _, _ = common_path(problem)
    for to_fit, to_test in (("train", "seen"), ("few_shot_train", "unseen")):
        data, test = getattr(groups, to_fit), getattr(groups, to_test)
        blocks = torch.arange(len(data.user_ids)).split(USERS_AT_ONCE)
        on_pairs, on_test = zip(*(alone(data, test, users, problem, s) for users in blocks))
        accuracy |= {to_fit: np.concatenate(on_pairs), to_test: np.concatenate(on_test)}
    users = {name: group.user_ids for name, group in groups._asdict().items()}
    return Cell(seed, None, "alone", accuracy, users, ALONE)


def alone(data, test, users, problem, s):
    """Accuracies of some users in a row: on the pairs that they are fitted on, and on `test`. 2 x (users,)"""
    (X, user), (X_test, user_test) = (rows_of(pairs, users, problem.X.rest) for pairs in (data, test))
    weight, m, U = user_mean_weights(user), torch.bincount(user), len(users)
    owner = torch.cat([torch.arange(U), torch.arange(U).repeat_interleave(problem.d)]).to(X.device)

    def rewards(theta):
        c, u = theta[:U].unsqueeze(1), theta[U:].view(U, -1)
        return (problem.unit * (c * problem.head.T + s * u)).float()  # (U, 1) * (1, d) + (U, d)

    def loss(theta):
        nll = -F.logsigmoid(margins(X, rewards(theta), user) / LOGIT_SCALE) * weight  # (n,)
        ridge = (theta[:U] / HEAD_SPREAD).square() + theta[U:].view(U, -1).square().sum(1)
        return nll.new_zeros(U).index_add_(0, user, nll) + ridge / (2 * m)

    r = rewards(minimise(loss, problem.head.new_zeros(U * (1 + problem.d)), owner, FIRST_PASSES))
    return [share_right(margins(x, r, y), y, U).cpu().numpy() for x, y in ((X, user), (X_test, user_test))]


def rows_of(pairs, users, like):
    """X (n, d) of the pairs of some users in a row, and whose they are, counted from the first of them."""
    first, last = torch.searchsorted(pairs.user.cpu(), torch.stack([users[0], users[-1] + 1])).tolist()
    return pairs.differences(like, slice(first, last)), (pairs.user[first:last] - users[0]).to(like.device)


def summarise(cells, over="seeds"):
    """One dict per (alpha, K, model, shots): for each group its mean accuracy, interval and, with several repeats, std.

    NAME is the mean over repeats of the mean over users; NAME_interval = [low, high] holds 95 % of what it is when the
    users are drawn anew with all their pairs and repeats (bootstrap); NAME_std_OVER is over the repeats. `seen` and
    `unseen` also have NAME_gain, the difference to Bradley-Terry of the same alpha on the same users, and
    NAME_over_shuffled, to the same fit on shuffled labels or to its opposite, whichever is right more often, as coins
    could have made either; each as [mean, low, high] of paired draws.
    """
    rows, summary = {}, []
    for cell in cells:
        rows.setdefault((cell.alpha, cell.K, cell.model, cell.shots), []).append(cell)
    for key, repeats in sorted(rows.items(), key=lambda row: MODELS.index(row[0][2])):
        alpha, K, model, shots = key
        row = {"alpha": alpha, "K": K, "model": model} | ({} if shots is None else {"shots": shots})
        for name in repeats[0].accuracy:
            values, drawn = mean_accuracies(repeats, name), resampled(repeats, name)
            row |= {name: np.mean(values).item(), f"{name}_interval": np.percentile(drawn, INTERVAL).tolist()}
            if len(repeats) > 1:
                row[f"{name}_std_{over}"] = np.std(values).item()
        # of the same alpha; baselines without one are compared with the first alpha's
        bradley_terry = [k for k in rows if k[1:] == (1, LORE, shots) and alpha in (None, k[0]) and k != key][:1]
        shuffled = [k for k in rows if k == (alpha, K, SHUFFLED, shots) and model == LORE]
        for difference, others in (("gain", bradley_terry), ("over_shuffled", shuffled)):
            for other, name in itertools.product(others, [name for name in ("seen", "unseen") if name in row]):
                theirs = rows[other] if other[2] != SHUFFLED else [better_side(cell, name) for cell in rows[other]]
                row[f"{name}_{difference}"] = paired_difference(repeats, theirs, name)
        summary.append(row)
    return summary


def mean_accuracies(repeats, name):
    return [float(cell.accuracy[name].mean()) for cell in repeats]


def better_side(cell, name):
    """The cell, or that of the opposite rewards where these are right more often than it is."""
    accuracy = cell.accuracy[name]
    return cell._replace(accuracy={name: accuracy if accuracy.mean() >= 0.5 else 1 - accuracy})


def paired_difference(repeats, others, name):
    """[mean, low, high] of how much better the cells of one row are than those of another, over the seeds of both."""
    seeds = {cell.seed for cell in repeats} & {cell.seed for cell in others}
    ours, theirs = ([cell for cell in row if cell.seed in seeds] for row in (repeats, others))
    low, high = np.percentile(resampled(ours, name) - resampled(theirs, name), INTERVAL).tolist()
    return [np.mean(mean_accuracies(ours, name)).item() - np.mean(mean_accuracies(theirs, name)).item(), low, high]


def resampled(repeats, name):
    """(RESAMPLES,) mean accuracies, over repeats and then users, when the users of all repeats are drawn anew."""
    everyone = {user: i for i, user in enumerate(sorted({user for cell in repeats for user in cell.users[name]}))}
    present, total = np.zeros((2, len(repeats), len(everyone)))
    for r, cell in enumerate(repeats):
        place = [everyone[user] for user in cell.users[name]]
        present[r, place], total[r, place] = 1, cell.accuracy[name]
    drawn = drawn_users(len(everyone))
    counted = drawn @ present.T  # (draws, users) @ (users, repeats)
    return np.nanmean(np.where(counted > 0, drawn @ total.T / np.maximum(counted, 1), np.nan), axis=1)


@lru_cache(maxsize=4)
def drawn_users(count):
    """(RESAMPLES, users) how often each of `count` users is drawn; always the same, so that differences are paired."""
    drawn = np.random.default_rng(0).multinomial(count, np.full(count, 1 / count), RESAMPLES)
    return drawn.astype(np.float64)


# ------------------------------------------------------------------------------------------------------------------
# Results: table, JSON, pictures, basis files
# ------------------------------------------------------------------------------------------------------------------

GROUP_NAMES = {"train": "train", "seen": "seen", "few_shot_train": "few-shot train", "unseen": "unseen"}
RANK_NAMES = {0: "0 reference", 1: "1 Bradley-Terry", "best": "best possible", "alone": ALONE}


def report(path, cells, args, rows=None):
    """Print the choices and the table; PATH.json with the rows of all cells and their summary, PATH.png. -> summary"""
    over = "splits" if args.resplit else "seeds"
    summary = summarise(cells, over)
    print_choices(cells)
    print_run_table(summary, over)
    save_results(path, run_rows(cells) if rows is None else rows, args, summary=summary)
    plot_accuracy_vs_rank(path)
    return summary


def run_rows(cells):
    """One dict per cell: mean over users of each accuracy and its std over users; what the ridge solver chose."""
    rows = []
    for cell in cells:
        row = {"seed": cell.seed, "alpha": cell.alpha, "K": cell.K, "model": cell.model}
        row |= {name: float(accuracy.mean()) for name, accuracy in cell.accuracy.items()}
        row |= {f"{name}_std_users": float(accuracy.std()) for name, accuracy in cell.accuracy.items()}
        if cell.model == LORE and cell.fit is not None and cell.fit.choice:
            row["choice"] = cell.fit.choice
        rows.append(row)
    return rows


def best_cell(V, W, W_unseen, groups, seed):
    """A planted population's own V (d, K), W (N, K) and W_unseen (N_unseen, K): nobody can know better."""
    (cell,) = score_cells([((seed, None, "best"), Fit(V, W), W_unseen)], [[(LORE, W, W_unseen)]], groups)
    return cell


def few_shot_rows(result, K_list, alpha_list, num_shots):
    """FewShotResult -> one dict per (alpha, K, shots): std over trials, interval over users. Rows of NaN left out."""
    rows, summaries = [], iter(summarise(result.cells))
    for (a, _), (k, _), (s, shots) in itertools.product(*map(enumerate, (alpha_list, K_list, num_shots))):
        _, few_std, _, unseen_std = (float(array[a, k, s]) for array in result)
        if not np.isnan(unseen_std):
            row = {"few_shot_train_std_trials": few_std, "unseen_std_trials": unseen_std, **next(summaries)}
            rows.append(row | {"shots": "all" if shots == ALL_SHOTS else shots})
    return rows


def basis_health(V, W, V_ref):
    """What tells a healthy basis V (d, K) with mixtures W (C, K) from a collapsed one, as a dict.

    columns: of V, after pruning; alike: largest |cos| of two of them, 1 = the same reward twice; to_head: smallest and
    largest cosine to V_ref (d, 1) or None; used: exp of the entropy of the mean mixture, 1 = all people use one
    column, K = all columns alike; used_by_one: mean of exp of the entropy of w_i, 1 = everybody is a pure type.
    """
    cosines = F.normalize(V, dim=0).T @ F.normalize(V, dim=0)  # (K, d) @ (d, K) -> (K, K)
    entropy = lambda w: torch.special.entr(w).sum(-1)
    to_head = None if V_ref is None else F.cosine_similarity(V, V_ref.to(V), dim=0).aminmax()
    return {
        "columns": V.shape[1],
        "alike": cosines.fill_diagonal_(0).abs().max().item() if V.shape[1] > 1 else None,
        "to_head": None if to_head is None else [value.item() for value in to_head],
        "used": entropy(W.mean(0)).exp().item(),
        "used_by_one": entropy(W).exp().mean().item(),
    }


def print_health(rows):
    """One aligned line per fitted basis whose row holds its basis_health."""
    keys = [key for key in ("K", "alpha", "seed") if key == "K" or len({row[key] for row in rows} - {None}) > 1]
    lines = [[*keys, "columns", "alike", "cosine to head", "used", "used by one"]]
    for row in (row for row in rows if "columns" in row):
        alike = "-" if row["alike"] is None else f"{row['alike']:.2f}"
        head = "-" if row["to_head"] is None else "{:.2f} .. {:.2f}".format(*row["to_head"])
        numbers = [str(row["columns"]), alike, head, f"{row['used']:.1f}", f"{row['used_by_one']:.1f}"]
        lines.append([*(key_text(row, key) for key in keys), *numbers])
    print_aligned(lines)
    print(
        "alike: largest |cos| of two columns; used: columns the population uses, in effect, and one person on average"
    )
    print("alike or cosine to head near 1, or used near 1 at a higher rank: a basis that has collapsed")


def print_run_table(summary, over="seeds"):
    """One aligned line per (alpha, K) and baseline, in percent; a line for each that shuffled labels reach as well."""
    several = any(f"unseen_std_{over}" in row for row in summary)
    print_table(summary, ["K", "alpha"], GROUP_NAMES, over if several else None)
    print_legend(summary, f" ± std over {over}" if several else "")
    for row in summary:
        for name in ("seen", "unseen"):
            difference, low, high = row.get(f"{name}_over_shuffled", (1, 1, 1))
            if low <= 0:
                alpha = f", alpha {row['alpha']:g}" if len({r["alpha"] for r in summary} - {None}) > 1 else ""
                interval = f"{100 * difference:+.1f} [{100 * low:+.1f}, {100 * high:+.1f}]"
                print(f"no better than shuffled labels: K = {key_text(row, 'K')}{alpha}, {name}: {interval}")


def print_few_shot_table(rows):
    """One aligned line per (alpha, K, shots)."""
    print_table(rows, ["K", "alpha", "shots"], ("few_shot_train", "unseen"), "trials")
    print_legend(rows, " ± std over trials")


def print_legend(rows, spread):
    gain = "; last column: paired difference" if any("unseen_gain" in row for row in rows) else ""
    print(f"accuracy in percent, mean over users{spread} [95 % interval over users]{gain}")


def print_table(rows, keys, names, over):
    """Aligned columns: the keys (alpha only where there are several), then each accuracy, and what personal adds."""
    keys = [key for key in keys if key != "alpha" or len({row["alpha"] for row in rows} - {None}) > 1]
    gains = ["over Bradley-Terry, unseen"] if any("unseen_gain" in row for row in rows) else []
    lines = [[*keys, *(GROUP_NAMES[name] for name in names), *gains]]
    for row in rows:
        line = [key_text(row, key) for key in keys]
        for name in names:
            std = row.get(f"{name}_std_{over}")
            spread = "" if not over else " " * 6 if std is None else f" ±{100 * std:4.1f}"
            held_out = name in ("seen", "unseen")
            interval = " [{:4.1f}, {:4.1f}]".format(*(100 * np.array(row[f"{name}_interval"]))) if held_out else ""
            line.append(f"{100 * row[name]:5.1f}{spread}{interval}")
        if gains:
            gain = 100 * np.array(row.get("unseen_gain", []))
            line.append("{:+.1f} [{:+.1f}, {:+.1f}]".format(*gain) if len(gain) else "")
        lines.append(line)
    print_aligned(lines)


def print_choices(cells):
    """What the ridge solver chose, and the gains on held-out prompts that it chose by. Nothing for other solvers."""
    own = [cell for cell in cells if cell.model == LORE and cell.fit is not None and cell.fit.choice]
    choices = {(cell.seed, cell.K): cell.fit.choice for cell in own}
    gain_text = lambda gain: "{:+.4f} ±{:.4f}".format(*gain)
    for seed in dict.fromkeys(seed for seed, _ in choices):
        lines = [["K", *(f"p = {p:g}" for p in PERSONAL_SPREADS), "chosen", "as new", "prior"]]
        for K, choice in ((K, choice) for (start, K), choice in choices.items() if start == seed):
            end = ["1 Bradley-Terry", "", ""]
            if choice.get("personal_spread"):
                strength = choice["strength"]
                prior = "everybody's" if float(strength) == EVERYBODY else f"{strength} pairs"
                end = [f"p = {choice['personal_spread']:g}", gain_text(choice["gain_as_new"][strength]), prior]
            if "gain" in choice:
                lines.append([str(K), *map(gain_text, choice["gain"]), *end])
        path = zip(choice["common_spreads"], choice["common_held_out_loss"])
        print(f"ridge, seed {seed}: held-out loss of Bradley-Terry " + ", ".join(f"{s:.2g}: {v:.4f}" for s, v in path))
        print(f"chosen s = {choice['common_spread']:.2g}")
        if len(lines) > 1:
            print("what more rewards than that one gain in log P of a held-out pair, ± standard error:")
            print_aligned(lines)


def print_aligned(lines):
    """Lists of texts as columns, the first to the left, the others to the right."""
    widths = [max(map(len, column)) for column in zip(*lines)]
    for line in lines:
        print("  ".join([line[0].ljust(widths[0]), *(cell.rjust(w) for cell, w in zip(line[1:], widths[1:]))]))


def key_text(row, key):
    if key == "K":
        name = str(RANK_NAMES.get(row["K"], row["K"]))
        return f"{name}, {row['model']}" if row.get("model") not in (None, LORE, ALONE) else name
    return "" if row[key] is None else str(row[key])


@by_first_process
def save_results(path, rows, args, **more):
    """PATH.json: settings, versions, git commit, rows, and what else is given."""
    settings = {name: str(value) if isinstance(value, Path) else value for name, value in vars(args).items()}
    environment = {"python": sys.version.split()[0], **{name: version(name) for name in ("torch", "numpy")}}
    report = {"settings": settings, "environment": environment, "git_commit": git_commit(), "rows": rows}
    with written_whole(f"{path}.json") as file:
        file.write_text(json.dumps(report | more, indent=2, allow_nan=False) + "\n")


def git_commit():
    """Commit of this code, with "+" where the files differ from it; None outside a git checkout."""
    here = Path(__file__).resolve().parent
    try:
        commands = (["git", "rev-parse", "HEAD"], ["git", "status", "--porcelain"])
        commit, changes = (
            subprocess.run(c, cwd=here, capture_output=True, text=True, check=True).stdout for c in commands
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return commit.strip() + ("+" if changes else "")


@by_first_process
def plot_accuracy_vs_rank(path):
    """PATH.json -> PATH.png: the accuracies against K >= 1 with their intervals over users; in grey, on unseen users,
    the baselines, the reference head and the best possible."""
    rows = json.loads(Path(f"{path}.json").read_text())["summary"]
    figure, axes = new_figure("rank K", "accuracy (%), bars: 95 % interval over users")
    alphas = sorted({r["alpha"] for r in rows} - {None})
    for style, alpha in zip(itertools.cycle(("-", "--", "-.", ":")), alphas):
        ranked = sorted((r for r in rows if r["alpha"] == alpha and r["K"] != 0), key=lambda r: r["K"])
        of_alpha = f", alpha {alpha:g}" * (len(alphas) > 1)
        for colour, (name, label) in enumerate(GROUP_NAMES.items()):
            curve = [r for r in ranked if r["model"] == LORE]
            y, interval = (100 * np.array([r[key] for r in curve]) for key in (name, f"{name}_interval"))
            axes.errorbar(
                [r["K"] for r in curve], y, yerr=abs(interval.T - y) if curve and name in ("seen", "unseen") else None,
                fmt=f"o{style}", color=f"C{colour}", markersize=4, capsize=2, label=label + of_alpha,
            )  # fmt: skip
        for marker, model in zip("xv+", (POPULATION, ANOTHER, SHUFFLED)):
            curve = [(r["K"], 100 * r["unseen"]) for r in ranked if r["model"] == model]
            if curve:
                axes.plot(
                    *zip(*curve), f"{marker}{style}", color="0.6", linewidth=1, label=f"{model}, unseen{of_alpha}"
                )
    for K, style in ((0, ":"), ("best", "--"), ("alone", "-.")):
        for row in [r for r in rows if r["K"] == K][:1]:
            label = f"{RANK_NAMES[K].lstrip('0 ')}, unseen"
            axes.axhline(100 * row["unseen"], color="0.4", linestyle=style, linewidth=1, label=label)
    axes.xaxis.get_major_locator().set_params(integer=True)
    save_figure(figure, axes, path)


@by_first_process
def plot_accuracy_vs_shots(path, shot="pairs"):
    """PATH.json -> PATH.png: accuracy of unseen users against shots; one colour per (alpha, K), band: std of trials."""
    rows = json.loads(Path(f"{path}.json").read_text())["rows"]
    figure, axes = new_figure(f"{shot} known of each unseen user (shots)", "accuracy on unseen users, new prompts (%)")
    numbers = sorted({r["shots"] for r in rows} - {"all"})
    place = {**{shots: shots for shots in numbers}, "all": max(numbers, default=0) + 1}
    if any(r["shots"] == "all" for r in rows):
        axes.set_xticks(list(place.values()), list(map(str, place)))
    for colour, (alpha, K) in enumerate(dict.fromkeys((r["alpha"], r["K"]) for r in rows)):
        curve = sorted((r for r in rows if (r["alpha"], r["K"]) == (alpha, K)), key=lambda r: place[r["shots"]])
        shots = [place[r["shots"]] for r in curve]
        y, spread = (100 * np.array([r[key] for r in curve]) for key in ("unseen", "unseen_std_trials"))
        label = f"K = {RANK_NAMES.get(K, K)}" + (f", alpha {alpha:g}" if alpha else "")
        axes.plot(shots, y, "o-", color=f"C{colour}", markersize=4, label=label)
        axes.fill_between(shots, y - spread, y + spread, color=f"C{colour}", alpha=0.2, linewidth=0)
    save_figure(figure, axes, path)


def new_figure(x_label, y_label):
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(6, 4), layout="constrained")
    axes.set(xlabel=x_label, ylabel=y_label)
    axes.grid(alpha=0.3)
    return figure, axes


def save_figure(figure, axes, path):
    from matplotlib import pyplot

    axes.set_title(Path(path).name, fontsize=9)
    if len(axes.get_legend_handles_labels()[0]) > 7:  # it would hide the curves
        figure.set_size_inches(8, 4)
        figure.legend(fontsize=8, loc="outside right upper")
    else:
        axes.legend(fontsize=8)
    with written_whole(f"{path}.png") as file:
        figure.savefig(file, dpi=150, format="png")
    pyplot.close(figure)


def basis_path(prefix, K, alpha, seed):
    return f"{prefix}_K{K}_alpha{alpha:g}_seed{seed}.safetensors"


class Basis(NamedTuple):
    """What a fit has learned. Mixtures are probabilities."""

    V: torch.Tensor  # (d, K)
    W: torch.Tensor  # (C, K) seen users
    user_ids: tuple  # C strings
    W_unseen: torch.Tensor  # (C', K) unseen users, from their few-shot pairs
    unseen_ids: tuple  # C' strings
    model: str = ""  # what made the embeddings


@by_first_process
def save_basis(path, basis, **metadata):
    """A Basis as one safetensors file: three tensors, the ids and the model in its header."""
    ids = {"user_ids": json.dumps(basis.user_ids), "unseen_ids": json.dumps(basis.unseen_ids), "model": basis.model}
    tensors = {name: getattr(basis, name).detach().cpu().contiguous() for name in ("V", "W", "W_unseen")}
    with written_whole(path) as file:
        save_file(tensors, file, ids | {key: str(value) for key, value in metadata.items()})


def load_basis(path, num_features):
    """The Basis of save_basis. InputError: missing, not such a file, or of another width than num_features."""
    if not Path(path).exists():
        raise InputError(f"{path} is missing; a train_basis.py writes such files to its results folder")
    try:
        with safe_open(path, framework="pt") as file:
            V, W, W_unseen = (file.get_tensor(name) for name in ("V", "W", "W_unseen"))
            header = file.metadata()
        user_ids, unseen_ids = (tuple(json.loads(header[name])) for name in ("user_ids", "unseen_ids"))
    except (SafetensorError, KeyError, TypeError) as error:
        raise InputError(f"{path} is not a basis saved by train_basis.py ({error})") from error
    if len(V) != num_features:
        raise InputError(f"{path}: basis of width {len(V)}, but the embeddings have {num_features}: not the same model")
    return Basis(V, W, user_ids, W_unseen, unseen_ids, header["model"])


@contextmanager
def written_whole(path):
    """A temporary path beside PATH, renamed to PATH when the block ends well and removed when it does not."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    os.umask(umask := os.umask(0))
    try:
        yield temporary
        temporary.chmod(0o666 & ~umask)  # as any new file; safetensors would hide its own from the group
        with open(temporary, "rb") as file:
            os.fsync(file.fileno())  # the name must not be there before the numbers are
        os.replace(temporary, path)
    except (SafetensorError, OSError) as error:
        if getattr(error, "filename", None) is not None:
            raise
        raise InputError(f"{path} cannot be written: {error}") from error
    finally:
        temporary.unlink(missing_ok=True)


# ------------------------------------------------------------------------------------------------------------------
# Planted populations: --synthetic
# ------------------------------------------------------------------------------------------------------------------


class Planted(NamedTuple):
    splits: dict  # side -> Split
    V: torch.Tensor  # (d, directions) the hidden rewards
    W: dict  # user id -> (directions,) hidden mixture


def planted_population(num_users, pairs, *, num_features, num_directions, concentration, best_accuracy, seed):
    """Users who mix a few hidden reward directions, w ~ Dirichlet(concentration), and judge shared prompts with noise.

    pairs: side -> comparisons per user; every side has twice as many prompts of its own, two replies each, embeddings
    N(0, I). User i prefers reply a with probability sigmoid((e_a - e_b) @ V @ w_i / T), the Bradley-Terry model; T is
    solved so that the true V and w are right with probability best_accuracy. The head that comes with the embeddings is
    the mean direction, blurred: it knows roughly what people like, as a reward model does.
    """
    import pandas as pd

    rng = np.random.default_rng(seed)
    V, W, head = planted_rewards(num_users, num_features, num_directions, concentration, rng)
    user_ids = [f"planted{i:04d}" for i in range(num_users)]
    tables, frames = {}, {}
    for side, count in pairs.items():
        tables[side] = rng.standard_normal((4 * count, num_features)).astype(np.float32)  # rows 2p and 2p + 1: prompt p
        prompt = np.stack([rng.permutation(2 * count)[:count] for _ in user_ids])  # (C, count), each user's own choice
        first = 2 * prompt + rng.integers(0, 2, prompt.shape)
        scores = tables[side] @ V  # (rows, d) @ (d, directions)
        margin = ((scores[first] - scores[first ^ 1]) * W[:, None]).sum(-1)  # (C, count, directions) -> (C, count)
        frames[side] = pd.DataFrame(
            {
                "user_id": np.repeat(user_ids, count),
                "prompt": [f"{side}{p}" for p in prompt.ravel()],
                "first": first.ravel(),
                "margin": margin.ravel(),
            }
        )
    margin = np.abs(np.concatenate([f["margin"] for f in frames.values()]))
    temperature = solve_temperature(lambda T: np.mean(1 / (1 + np.exp(-margin / T))), best_accuracy, margin.mean())
    splits = {}
    for side, frame in frames.items():
        prefers_first = rng.random(len(frame)) < 1 / (1 + np.exp(-frame["margin"] / temperature))
        frame["chosen"] = np.where(prefers_first, frame["first"], frame["first"] ^ 1)
        frame["rejected"] = frame["chosen"] ^ 1
        columns = frame[["user_id", "prompt", "chosen", "rejected"]]
        splits[side] = Split(torch.from_numpy(tables[side]), columns, torch.from_numpy(head.astype(np.float32)))
    mixture = {user: torch.from_numpy(w.astype(np.float32)) for user, w in zip(user_ids, W)}
    return Planted(splits, torch.from_numpy(V.astype(np.float32)), mixture)


def planted_rewards(num_users, num_features, num_directions, concentration, rng):
    """V (d, directions) orthonormal, W (C, directions) ~ Dirichlet, head (d, 1): the mean direction, blurred."""
    if not (1 <= num_directions <= num_features and concentration > 0 and num_users > 1):
        raise InputError("planted: at least 2 people, directions between 1 and the width, a concentration above 0")
    V = np.linalg.qr(rng.standard_normal((num_features, num_directions)))[0]
    W = rng.dirichlet(np.full(num_directions, concentration), num_users)
    direction = V.mean(axis=1, keepdims=True)
    return V, W, direction + np.linalg.norm(direction) * rng.standard_normal((num_features, 1)) / np.sqrt(num_features)


def solve_temperature(accuracy_at, accuracy, scale):
    """T with accuracy_at(T) = accuracy, by bisection of log T around `scale`; more noise, less accuracy."""
    if not 0.5 < accuracy < 1:
        raise InputError(f"planted accuracy {accuracy:g}: above 0.5, which is chance, and below 1")
    low, high = np.log(1e-6 * scale), np.log(1e6 * scale)
    for _ in range(100):
        middle = (low + high) / 2
        low, high = (middle, high) if accuracy_at(np.exp(middle)) > accuracy else (low, middle)
    return np.exp(middle)


# ------------------------------------------------------------------------------------------------------------------
# Scripts: settings, device, ending
# ------------------------------------------------------------------------------------------------------------------

SETTING = re.compile(r"^(\w+) = .*?(?:\s+# (.*))?$")


class OneLineParser(argparse.ArgumentParser):
    def error(self, message):
        raise InputError(f"{message} (--help lists the flags)")


def settings(module):
    """Flags of a script, from its own settings block: `module` is its globals().

    Every `name = value  # meaning` between the two ruled lines is the flag --name with that default and that help.
    """
    source = Path(module["__file__"]).read_text()
    block = source.split("settings ---", 1)[1].split("# ---", 1)[0]
    layout = argparse.RawDescriptionHelpFormatter
    parser = OneLineParser(description=module["__doc__"], formatter_class=layout, allow_abbrev=False)
    for name, meaning in (match.groups() for match in map(SETTING.match, block.splitlines()) if match):
        default = module[name]
        if isinstance(default, range | tuple):
            default = list(default)
        if name in ("data", "results"):
            default = Path(default)
        kind = {"type": type(default)}
        if isinstance(default, bool):
            kind = {"action": argparse.BooleanOptionalAction}
        elif isinstance(default, list):
            kind = {"type": type(default[0]) if default else str, "nargs": "+"}
        parser.add_argument(
            f"--{name}", default=default, help=f"{meaning or ''} [{default}]".replace("%", "%%"), **kind
        )
    arguments = parser.parse_args()
    for name, value in vars(arguments).items():
        for number in value if isinstance(value, list) else [value]:
            if isinstance(number, int | float) and not 0 <= number < math.inf:
                raise InputError(f"--{name} {number}: a setting is never negative, and a number")
            if name == "seed" and number >= 2**32:
                raise InputError(f"--seed {number}: a seed is below 2 ** 32")
    return arguments


def alphas_of(args):
    """The alpha_list of a script's settings, or no pull where the solver finds its own."""
    if args.solver == "ridge" and any(args.alpha_list):
        print(f"alpha_list = {args.alpha_list} is not used: the ridge solver chooses its own pull to the head")
    return [0.0] if args.solver == "ridge" else args.alpha_list


def repeats_of(args):
    """Lists of seeds: one list for one split, or, to draw each repeat's split anew, a list for each."""
    if args.repeats < 1:
        raise InputError("repeats = 0: at least one is needed")
    seeds = [args.seed + i for i in range(args.repeats)]
    return [[seed] for seed in seeds] if args.resplit else [seeds]


def pick_device(name):
    """auto, cpu, cuda, cuda:1 -> torch.device; each process has its own GPU. InputError: no such device."""
    try:
        device = torch.device(("cuda" if torch.cuda.is_available() else "cpu") if name == "auto" else name)
    except RuntimeError as error:
        raise InputError(f"device = {name}: use auto, cpu, cuda or cuda:1") from error
    if device.type not in ("cpu", "cuda"):
        raise InputError(f"device = {name}: use auto, cpu, cuda or cuda:1")
    if device.type == "cuda" and world() > 1:
        if device.index is not None:
            raise InputError(f"device = {name}: each process takes its own GPU; use cuda or auto")
        device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise InputError(f"device = {device}: this machine shows {torch.cuda.device_count()} CUDA devices")
    if device.type == "cuda" and device.index is not None:
        torch.cuda.set_device(device)
    return device


def start(main):
    """Run a script's main: a mistake in the input ends it with one line on stderr and status 2, Ctrl-C with 130."""
    try:
        with one_run():
            main()
    except (InputError, OSError) as error:  # OSError: a folder that cannot be written, a full disk; it names the file
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)
