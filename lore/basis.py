"""V and W on disk."""

import json
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from lore.common import InputError, written_whole
from lore.processes import by_first_process


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
    ids = {
        "user_ids": json.dumps(basis.user_ids),
        "unseen_ids": json.dumps(basis.unseen_ids),
        "model": basis.model,
    }
    tensors = {
        name: getattr(basis, name).detach().cpu().contiguous() for name in ("V", "W", "W_unseen")
    }
    with written_whole(path) as file:
        save_file(tensors, file, ids | {key: str(value) for key, value in metadata.items()})


def save_fits(prefix, fitted, groups, model):
    """One basis file for each fit of a rank above 0."""
    seen = groups.train.user_ids
    unseen = groups.unseen.user_ids
    for one in fitted:
        seed, alpha, K = one.setting
        if K > 0:
            noted = {"alpha": alpha, "seed": seed}
            if one.fit.prior is not None:
                noted["prior_strength"] = one.fit.prior.strength
            basis = Basis(one.fit.V, one.fit.W, seen, one.W_unseen, unseen, model)
            save_basis(basis_path(prefix, K, alpha, seed), basis, **noted)


def load_basis(path, num_features):
    """The Basis of save_basis. InputError: missing, not such a file, or of another width than num_features."""
    if not Path(path).exists():
        raise InputError(
            f"{path} is missing; a train_basis.py writes such files to its results folder"
        )
    try:
        with safe_open(path, framework="pt") as file:
            V, W, W_unseen = (file.get_tensor(name) for name in ("V", "W", "W_unseen"))
            header = file.metadata()
        user_ids, unseen_ids = (
            tuple(json.loads(header[name])) for name in ("user_ids", "unseen_ids")
        )
    except (SafetensorError, KeyError, TypeError) as error:
        raise InputError(f"{path} is not a basis saved by train_basis.py ({error})") from error
    if len(V) != num_features:
        raise InputError(
            f"{path}: basis of width {len(V)}, but the embeddings have {num_features}: not the same model"
        )
    return Basis(V, W, user_ids, W_unseen, unseen_ids, header["model"])


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
