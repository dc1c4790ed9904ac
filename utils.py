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
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
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
QUIET_SECONDS = 3.0  # a progress bar appears after this long


class InputError(ValueError):
    """A mistake in the input, told in one line. Scripts end on it with status 2 and no traceback."""


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
    """

    table: torch.Tensor
    user: torch.Tensor
    user_ids: tuple
    chosen: torch.Tensor | None = None
    rejected: torch.Tensor | None = None
    shot: torch.Tensor | None = None

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
    def from_frame(cls, table, frame, user_ids=None, shot=None):
        """Rows of a data frame (user_id, chosen, rejected) -> Comparisons of user_ids, in that order.

        shot: the column whose equal values make one shot of a user's pairs.
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
        return cls(table, user[order], user_ids, chosen, rejected, shot)

    def __len__(self):
        return len(self.user)

    @property
    def num_features(self):
        return self.table.shape[1]

    @property
    def counts(self):
        """(C,) pairs of each user."""
        return torch.bincount(self.user, minlength=len(self.user_ids))

    def differences(self, like):
        """X = e(chosen) - e(rejected), both cast before they are subtracted. (n, d), dtype and device of `like`."""
        if self.chosen is None:
            return self.table.detach().to(like)
        X = like.new_empty(len(self), self.num_features)
        for out, chosen, rejected in zip(*(t.split(TABLE_ROWS) for t in (X, self.chosen, self.rejected))):
            out.copy_(self.table[chosen]).sub_(self.table[rejected].to(like))
        return X

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


def save_split(path, split, **metadata):
    """PATH.safetensors (`embeddings`, `head`; model and metadata in its header) and PATH.parquet, each whole."""
    tensors = {"embeddings": split.table.contiguous()}
    if split.head is not None:
        tensors["head"] = split.head.contiguous()
    with written_whole(f"{path}.parquet") as file:  # first, so that a fingerprint vouches for both files
        split.frame.to_parquet(file)
    with written_whole(f"{path}.safetensors") as file:
        header = {"model": split.model, "made_from": split.made_from, **metadata}
        save_file(tensors, file, {key: str(value) for key, value in header.items()})


def load_split(path, made_by, columns=("chosen", "rejected")):
    """The Split saved at PATH; `columns` of its frame hold table rows.

    InputError: missing, damaged, NaN, rows outside the table, head of another width.
    """
    import pandas as pd

    for file in (f"{path}.safetensors", f"{path}.parquet"):
        if not Path(file).exists():
            raise InputError(f"{file} is missing; make it with: {made_by}")
    try:
        with safe_open(f"{path}.safetensors", framework="pt") as file:
            table, header = file.get_tensor("embeddings"), file.metadata() or {}
            head = file.get_tensor("head") if "head" in file.keys() else None  # noqa: SIM118, not a dict
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


class TallProduct(torch.autograd.Function):
    """Z = X @ V of every fit, for one tall X (no gradient) and several thin V (d, K): (n, K), ..

    One product for all columns together, by blocks of rows, one block per core at a time: forward and backward then
    read X at close to memory speed; X.T @ G as one call can be ten times slower.
    """

    @staticmethod
    def blocks(X):  # (n, d) -> (ROW_BLOCKS, r, d) and the few rows left over
        r = len(X) // ROW_BLOCKS
        return X[: ROW_BLOCKS * r].reshape(ROW_BLOCKS, r, X.shape[1]), X[ROW_BLOCKS * r :]

    @staticmethod
    def padding(P):
        return -P % COLUMN_TILE

    @staticmethod
    def forward(ctx, X, *Vs):
        ctx.save_for_backward(X)
        ctx.widths = [V.shape[1] for V in Vs]
        main, rest = TallProduct.blocks(X)
        P = sum(ctx.widths)
        Vt = F.pad(torch.cat([V.T for V in Vs]), (0, 0, 0, TallProduct.padding(P)))  # (P, d)
        Zt = torch.bmm(Vt.expand(ROW_BLOCKS, -1, -1), main.transpose(1, 2))  # (blocks, P, d) @ (blocks, d, r)
        Z_rest = (rest.unsqueeze(1) * Vt).sum(2)  # (1 .. 15 rows, 1, d) * (P, d) -> (rows, P)
        Z = torch.cat([Zt.transpose(1, 2).flatten(0, 1), Z_rest])  # (n, P)
        return tuple(columns.contiguous() for columns in Z[:, :P].split(ctx.widths, dim=1))

    @staticmethod
    def backward(ctx, *Gs):
        (X,) = ctx.saved_tensors
        P = sum(ctx.widths)
        G = F.pad(torch.cat(Gs, dim=1), (0, TallProduct.padding(P)))  # (n, P)
        (main, rest), (G_main, G_rest) = TallProduct.blocks(X), TallProduct.blocks(G)
        Gt = G_main.transpose(1, 2).contiguous()
        Vt_grad = torch.bmm(Gt, main).sum(0)  # (blocks, P, r) @ (blocks, r, d) -> (P, d)
        Vt_grad += (G_rest.unsqueeze(2) * rest.unsqueeze(1)).sum(0)  # (rows, P, 1) * (rows, 1, d) -> (P, d)
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
        """X (n, d), and the first part of the loss as a function of Z (n, K) and logits W (C, K)."""
        C, d = len(self.W), len(self.V)
        if (len(data.user_ids), data.num_features) != (C, d):
            raise InputError(
                f"data of {len(data.user_ids)} users, width {data.num_features} for a model of {C} users, width {d}"
            )
        user, weight = data.user.to(self.V.device), self.pair_weights(data.user).to(self.V)
        return data.differences(self.V), lambda Z, W: negative_log_likelihood(Z, W.softmax(dim=1), user, weight)

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
            adam_W.step()
            adam_V.zero_grad()
            loss = sum(nll(Z, W.detach()) for Z, W in zip(Zs, Ws))
            loss = loss + warm_up(step, steps) * sum(m.penalty() for m in models)
            loss.backward()
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
    return tqdm(steps, desc=text, delay=QUIET_SECONDS, leave=False)


# ------------------------------------------------------------------------------------------------------------------
# Sweeps: every alpha, K and seed in one pass
# ------------------------------------------------------------------------------------------------------------------


class RunResult(NamedTuple):
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


class FewShotResult(NamedTuple):
    """(alphas, ranks, shots) arrays: accuracy averaged over users and trials, and its np.std over trials."""

    few_shot_train: np.ndarray
    few_shot_train_std: np.ndarray
    unseen: np.ndarray
    unseen_std: np.ndarray


def run(
    K_list, alpha_list, V_final, train_features, test_features_sparse,
    train_features_unseen, test_features_sparse_unseen, N, N_unseen, device, *,
    num_iterations=1000, few_shot_learning_rate=0.1, **options,
):  # fmt: skip
    """LoRe for every alpha and K: V and W from N seen users, w of N_unseen new ones, scored on new prompts. RunResult.

    V_final: reference head (d, 1), or None. Features: per-user lists of (m_i, d) tensors, or Comparisons.
    options: learning_rate=0.5, few_shot_iterations=500, seed=0, seeds=None (a list repeats from several starts),
    solver="adam", save=None (a prefix: V, and W and ids of seen and unseen users, go to basis_path(prefix, K, alpha,
    seed)), model="" (what made the embeddings: noted there).
    """
    groups = Groups(train_features, test_features_sparse, train_features_unseen, test_features_sparse_unseen)
    options |= {"num_iterations": num_iterations, "few_shot_learning_rate": few_shot_learning_rate}
    return sweep(LoRe, K_list, alpha_list, V_final, groups, N, N_unseen, device, **options)


def run_regularized(
    K_list, alpha_list, V_final, train_features, test_features_sparse,
    train_features_unseen, test_features_sparse_unseen, N, N_unseen, device, *,
    num_iterations=20000, few_shot_learning_rate=0.5, **options,
):  # fmt: skip
    """LoRe_regularized for every alpha and K; otherwise as `run`. RunResult."""
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


class Fit(NamedTuple):
    V: torch.Tensor  # (d, K)
    W: torch.Tensor  # (C, K) probabilities of the seen users
    generator: torch.Generator  # goes on to draw the starts of the unseen users


def fit_grid(model_class, grid, V_ref, train, device, num_iterations, learning_rate, solver):
    """One Fit per (seed, alpha, K) of the grid, all fitted together; None for K = 0 where there is no head."""
    for _, repeats in itertools.groupby(sorted(grid)):
        if len(list(repeats)) > 1:
            raise InputError("K_list, alpha_list or seeds holds a value twice")
    if solver != "adam":
        raise InputError(f"solver = {solver!r}: there is only 'adam'")
    C, d = len(train.user_ids), train.num_features
    models, generators = {}, [torch.Generator().manual_seed(seed) for seed, _, _ in grid]
    for cell, ((_, alpha, K), generator) in enumerate(zip(grid, generators)):
        check_rank(K, d, smallest=0)
        if K > 0:
            arguments = (V_ref, alpha, C, d, K, num_iterations, learning_rate)
            models[cell] = model_class(*arguments, generator=generator).to(device)
    if models:
        model_class.fit_together(list(models.values()), train)
    fits = []
    for cell, generator in enumerate(generators):
        if cell in models:
            if not models[cell].V.isfinite().all():
                raise InputError(
                    f"the fit of K = {grid[cell][2]}, alpha = {grid[cell][1]:g} diverged; lower learning_rate"
                )
            W, V = models[cell].solution()
            fits.append(Fit(V, W, generator))
        elif V_ref is not None:  # K = 0: the reference head, weight 1 for everybody
            fits.append(Fit(V_ref.float().to(device), torch.ones(C, 1, device=device), generator))
        else:
            fits.append(None)
    if not any(fits):
        raise InputError("nothing to fit: an empty list, or K = 0 alone for embeddings without a reference head")
    if None in fits:
        print("K = 0 is left out: these embeddings come without a reference head")
    return fits


def sweep(
    model_class, K_list, alpha_list, V_final, groups, N, N_unseen, device, *, num_iterations, few_shot_learning_rate,
    learning_rate=0.5, few_shot_iterations=500, seed=0, seeds=None, solver="adam", save=None, model="",
):  # fmt: skip
    """What `run` and `run_regularized` share: joint fit, few-shot fit and the four accuracies of the whole grid."""
    groups = groups.checked(N, N_unseen)
    V_ref = reference_head(V_final, groups.train.num_features)
    grid = list(itertools.product([seed] if seeds is None else seeds, alpha_list, K_list))
    cells = fit_grid(model_class, grid, V_ref, groups.train, device, num_iterations, learning_rate, solver)
    fits = [fit for fit in cells if fit is not None]
    Vs, Ws = [fit.V for fit in fits], [fit.W for fit in fits]
    newcomers = [
        PersonalizeBatch(N_unseen, *fit.V.shape, few_shot_iterations, few_shot_learning_rate, generator=fit.generator)
        for fit in fits
    ]
    few = groups.few_shot_train
    Ws_unseen = PersonalizeBatch.fit_together(newcomers, few.project(Vs), few.user)
    if save is not None:
        fitted = [cell for cell, fit in zip(grid, cells) if fit is not None]
        for (cell_seed, alpha, K), V, W, W_unseen in zip(fitted, Vs, Ws, Ws_unseen):
            if K > 0:
                basis = Basis(V, W, groups.train.user_ids, W_unseen, few.user_ids, model)
                save_basis(basis_path(save, K, alpha, cell_seed), basis, alpha=alpha, seed=cell_seed)
    table = np.full((8, len(cells)), np.nan)
    table[:, [fit is not None for fit in cells]] = four_accuracies(Vs, Ws, Ws_unseen, groups)
    return RunResult(*(table if seeds is None else table.reshape(8, len(seeds), -1)))


def four_accuracies(Vs, Ws, Ws_unseen, groups):
    """Four means over users, then four stds over users, of each of F fits: (d, K), (N, K), (N_unseen, K) -> (8, F)"""
    means, stds = [], []
    for group, mixtures in zip(groups, (Ws, Ws, Ws_unseen, Ws_unseen)):
        per_user = [user_accuracy(Z, W, group.user).double() for Z, W in zip(group.project(Vs), mixtures)]  # F x (C,)
        means.append([accuracy.mean().item() for accuracy in per_user])
        stds.append([accuracy.std(correction=0).item() for accuracy in per_user])
    return np.array([*means, *stds])


def user_accuracy(Z, W, user):
    """Share of each user's pairs with x @ V @ w > 0, strictly: Eq. 15 before the mean over users. (C,)"""
    user = user.to(Z.device)
    right = (margins(Z, W, user) > 0).to(Z.dtype)  # (n,)
    return right.new_zeros(len(W)).index_add_(0, user, right) / torch.bincount(user, minlength=len(W))


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
    shot = torch.arange(len(few)) if few.shot is None else few.shot
    shot_user = torch.zeros(shot.max() + 1, dtype=torch.long).scatter_(0, shot, few.user.cpu())  # (shots,)
    per_user = torch.bincount(shot_user)
    for user, count in zip(few.user_ids, per_user.tolist()):
        if max(num_shots) > count or min(num_shots) < ALL_SHOTS:
            wrong = max(num_shots) if max(num_shots) > count else min(num_shots)
            raise InputError(f"shots = {wrong}: user {user} has {count} to draw from; use 1..{per_user.min()}")
    grid = list(itertools.product([seed], alpha_list, K_list))
    V_ref = reference_head(V_final, train.num_features)
    cells = fit_grid(model_class, grid, V_ref, train, device, num_iterations, learning_rate, solver)
    fits = [fit for fit in cells if fit is not None]
    Vs = [fit.V for fit in fits]

    S, owner = len(num_shots), few.user.cpu()
    place = shuffled_places(shot_user, trials, torch.Generator().manual_seed(seed))[:, shot]  # (trials, n)
    limits = torch.tensor([len(few) if shots == ALL_SHOTS else shots for shots in num_shots])
    drawn = place.unsqueeze(1) < limits.view(1, S, 1)  # (trials, S, n)
    trial, shot, row = drawn.nonzero(as_tuple=True)
    problem = (trial * S + shot) * N_unseen + owner[row]  # one few-shot problem per (trial, shots, user), ascending
    newcomers = []
    for fit in fits:  # a user starts from the same logits at every number of shots
        model = PersonalizeBatch(
            trials * N_unseen, *fit.V.shape, few_shot_iterations, few_shot_learning_rate, generator=fit.generator
        )
        start = model.w.data.view(trials, 1, N_unseen, -1).expand(-1, S, -1, -1)
        model.w = nn.Parameter(start.reshape(trials * S * N_unseen, -1))
        newcomers.append(model)
    Zs = [Z[row.to(Z.device)] for Z in few.project(Vs)]
    Ws = PersonalizeBatch.fit_together(newcomers, Zs, problem)  # each (trials * S * N_unseen, K)

    over_trials = []  # of each fit: four arrays over shots
    for Z, Z_test, W in zip(Zs, unseen.project(Vs), Ws):
        on_pairs = user_accuracy(Z, W, problem).view(trials, S, N_unseen).mean(2)  # (trials, S)
        on_test = [user_accuracy(Z_test, w, unseen.user).mean() for w in W.view(trials * S, N_unseen, -1)]
        on_test = torch.stack(on_test).view(trials, S)
        pairs, test = on_pairs.cpu().numpy(), on_test.cpu().numpy()
        over_trials.append([pairs.mean(0), pairs.std(0), test.mean(0), test.std(0)])
    result = np.full((4, len(cells), S), np.nan)
    result[:, [fit is not None for fit in cells]] = np.array(over_trials).transpose(1, 0, 2)  # (F, 4, S) -> (4, F, S)
    return FewShotResult(*result.reshape(4, len(alpha_list), len(K_list), S))


def shuffled_places(user, trials, generator):
    """Place of each shot in a random order of its own user's, 0 .. m_i - 1, per trial. (n,) -> (trials, n)"""
    keys = torch.rand(trials, len(user), generator=generator, dtype=torch.float64)
    order = (keys + user).argsort(dim=1)  # users stay in their stretches, their shots are shuffled
    first = torch.searchsorted(user, user)  # (n,) where each shot's user begins
    return torch.empty_like(order).scatter_(1, order, (torch.arange(len(user)) - first).expand(trials, -1))


# ------------------------------------------------------------------------------------------------------------------
# Results: table, JSON, pictures, basis files
# ------------------------------------------------------------------------------------------------------------------

GROUP_NAMES = {"train": "train", "seen": "seen", "few_shot_train": "few-shot train", "unseen": "unseen"}
RUN_COLUMNS = [*GROUP_NAMES, *(f"{name}_std_users" for name in GROUP_NAMES)]  # the order of RunResult
RANK_NAMES = {0: "0 reference", 1: "1 Bradley-Terry", "best": "best possible"}


def run_rows(result, K_list, alpha_list, seeds):
    """RunResult -> one dict per (seed, alpha, K): four accuracies, their std over users. NaN is left out."""
    rows = []
    for cell, (seed, alpha, K) in enumerate(itertools.product(seeds, alpha_list, K_list)):
        values = [float(column.flat[cell]) for column in result]
        if not np.isnan(values[0]):
            rows.append({"seed": seed, "alpha": alpha, "K": K, **dict(zip(RUN_COLUMNS, values))})
    return rows


def best_row(V, W, W_unseen, groups):
    """The row of a planted population's own V (d, K), W (N, K) and W_unseen (N_unseen, K): nobody can know better."""
    values = four_accuracies([V], [W], [W_unseen], groups).flatten().tolist()
    return {"seed": None, "alpha": None, "K": "best", **dict(zip(RUN_COLUMNS, values))}


def few_shot_rows(result, K_list, alpha_list, num_shots):
    """FewShotResult -> one dict per (alpha, K, shots), spreads over trials. Rows of NaN left out."""
    rows = []
    for (a, alpha), (k, K), (s, shots) in itertools.product(*map(enumerate, (alpha_list, K_list, num_shots))):
        few, few_std, unseen, unseen_std = (float(array[a, k, s]) for array in result)
        if not np.isnan(unseen):
            spreads = {"few_shot_train_std_trials": few_std, "unseen_std_trials": unseen_std}
            name = "all" if shots == ALL_SHOTS else shots
            rows.append({"alpha": alpha, "K": K, "shots": name, "few_shot_train": few, "unseen": unseen, **spreads})
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


def average_over_seeds(rows):
    """Rows of the same (alpha, K) -> one row of means with the std over seeds; (rows, "seeds" or "users")."""
    cells = {}
    for row in rows:
        cells.setdefault((row["alpha"], row["K"]), []).append(row)
    if len({row["seed"] for row in rows} - {None}) == 1:
        return rows, "users"
    averaged = []
    for (alpha, K), repeats in cells.items():
        means = {name: float(np.mean([r[name] for r in repeats])) for name in GROUP_NAMES}
        spread = (lambda values: float(np.std(values))) if len(repeats) > 1 else lambda values: None
        stds = {f"{name}_std_seeds": spread([r[name] for r in repeats]) for name in GROUP_NAMES}
        averaged.append({"alpha": alpha, "K": K, **means, **stds})
    return averaged, "seeds"


def print_run_table(rows):
    """One aligned line per (alpha, K): the four accuracies in percent, and one spread, named in the heading."""
    rows, over = average_over_seeds(rows)
    print_table(rows, ["K", "alpha"], [(name, f"{name}_std_{over}") for name in GROUP_NAMES])
    print(f"accuracy in percent, mean over users \u00b1 std over {over}")


def print_few_shot_table(rows):
    """One aligned line per (alpha, K, shots)."""
    print_table(rows, ["K", "alpha", "shots"], [(name, f"{name}_std_trials") for name in ("few_shot_train", "unseen")])
    print("accuracy in percent, mean over users and trials \u00b1 std over trials")


def print_table(rows, keys, accuracies):
    """Aligned columns: the keys (alpha only where there are several), then mean and spread of each accuracy."""
    keys = [key for key in keys if key != "alpha" or len({row["alpha"] for row in rows} - {None}) > 1]
    lines = [[*keys, *(GROUP_NAMES[name] for name, _ in accuracies)]]
    for row in rows:
        cells = [f"{100 * row[name]:5.1f} " + spread_text(row[std]) for name, std in accuracies]
        lines.append([*(key_text(row, key) for key in keys), *cells])
    print_aligned(lines)


def print_aligned(lines):
    """Lists of texts as columns, the first to the left, the others to the right."""
    widths = [max(map(len, column)) for column in zip(*lines)]
    for line in lines:
        print("  ".join([line[0].ljust(widths[0]), *(cell.rjust(w) for cell, w in zip(line[1:], widths[1:]))]))


def key_text(row, key):
    value = RANK_NAMES.get(row["K"], row["K"]) if key == "K" else row[key]
    return "" if value is None else str(value)


def spread_text(std):
    return " " * 6 if std is None else f"\u00b1{100 * std:5.1f}"


def save_results(path, rows, args):
    """PATH.json: settings, versions, git commit and rows."""
    settings = {name: str(value) if isinstance(value, Path) else value for name, value in vars(args).items()}
    environment = {"python": sys.version.split()[0], **{name: version(name) for name in ("torch", "numpy")}}
    report = {"settings": settings, "environment": environment, "git_commit": git_commit(), "rows": rows}
    with written_whole(f"{path}.json") as file:
        file.write_text(json.dumps(report, indent=2) + "\n")


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


def plot_accuracy_vs_rank(path):
    """PATH.json -> PATH.png: the four accuracies against K >= 1, the reference head and the best possible as lines."""
    rows, over = average_over_seeds(json.loads(Path(f"{path}.json").read_text())["rows"])
    figure, axes = new_figure("rank K", "accuracy (%)")
    alphas = sorted({r["alpha"] for r in rows} - {None})
    for colour, (name, label) in enumerate(GROUP_NAMES.items()):
        for style, alpha in zip(itertools.cycle(("-", "--", "-.", ":")), alphas):
            curve = sorted((r for r in rows if r["alpha"] == alpha and r["K"] != 0), key=lambda r: r["K"])
            y, spread = (100 * np.array([r[key] for r in curve]) for key in (name, f"{name}_std_{over}"))
            axes.errorbar(
                [r["K"] for r in curve], y, yerr=spread if over == "seeds" else None, fmt=f"o{style}",
                color=f"C{colour}", markersize=4, capsize=2, label=label + f", alpha {alpha:g}" * (len(alphas) > 1),
            )  # fmt: skip
    for K, style, label in ((0, ":", "reference, unseen"), ("best", "--", "best possible, unseen")):
        for row in [r for r in rows if r["K"] == K][:1]:
            axes.axhline(100 * row["unseen"], color="0.4", linestyle=style, linewidth=1, label=label)
    axes.xaxis.get_major_locator().set_params(integer=True)
    save_figure(figure, axes, path)


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
    axes.set_title(Path(path).name, fontsize=9)
    if len(axes.get_legend_handles_labels()[0]) > 7:  # it would hide the curves
        figure.set_size_inches(8, 4)
        figure.legend(fontsize=8, loc="outside right upper")
    else:
        axes.legend(fontsize=8)
    with written_whole(f"{path}.png") as file:
        figure.savefig(file, dpi=150, format="png")


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
        os.replace(temporary, path)
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


def pick_device(name):
    """auto, cpu, cuda, cuda:1 -> torch.device. InputError: no such device here."""
    try:
        device = torch.device(("cuda" if torch.cuda.is_available() else "cpu") if name == "auto" else name)
    except RuntimeError as error:
        raise InputError(f"device = {name}: use auto, cpu, cuda or cuda:1") from error
    if device.type not in ("cpu", "cuda"):
        raise InputError(f"device = {name}: use auto, cpu, cuda or cuda:1")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise InputError(f"device = {name}: this machine shows {torch.cuda.device_count()} CUDA devices")
    return device


def start(main):
    """Run a script's main: a mistake in the input ends it with one line on stderr and status 2, Ctrl-C with 130."""
    try:
        main()
    except (
        InputError,
        OSError,
    ) as error:  # OSError: a folder that cannot be written, a full disk; its text names the file
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)
