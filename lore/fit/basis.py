"""V and W on disk, and what tells whether they are healthy."""

import json
import shutil
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from lore.common import InputError, require, written_whole
from lore.fit.evaluation import log_losses
from lore.fit.likelihood import LOGIT_SCALE
from lore.fit.mixtures import Prior
from lore.fit.product import project
from lore.processes import by_first_process

NEEDED = ("V", "W", "W_unseen")  # tensors of a file
MORE = ("E", "E_unseen", "mean")  # where e is not 0; where the solver has a prior
ANSWERS = ("answers", "answered")  # where adapt.py has taken people in; as apply/answers.py has them
SAID = ("held_out", "pairs", "words")  # JSON in the header
OFF = 1e-3  # by how much a mixture may miss the simplex
STRENGTH = 1.0  # pairs that the mean mixture counts as, where the solver (adam) has no prior


def basis_path(prefix, K, alpha, seed):
    return f"{prefix}_K{K}_alpha{alpha:g}_seed{seed}.safetensors"


def best_path(prefix, alpha, seed):
    """Of the basis of the rank that held-out prompts speak for."""
    return f"{prefix}_best_alpha{alpha:g}_seed{seed}.safetensors"


class Basis(NamedTuple):
    """What a fit has learned. Mixtures are probabilities."""

    V: torch.Tensor  # (d, K)
    W: torch.Tensor  # (C, K) seen users
    user_ids: tuple  # C strings
    W_unseen: torch.Tensor  # (C', K) unseen users, from their few-shot pairs
    unseen_ids: tuple  # C' strings
    model: str = ""  # what made the embeddings
    E: torch.Tensor | None = None  # (C, d) e_i of the seen users; None: nothing of one's own
    E_unseen: torch.Tensor | None = None  # (C', d)
    mean: torch.Tensor | None = None  # (K,) the population's mixture; None: the mean of W
    strength: float = STRENGTH  # and how many pairs it counts as, for new people
    deviation_spread: float = 0.0  # std of e_i in each direction
    doubt: float = 0.0  # share of what is unsure of new people that probabilities allow for
    held_out: dict | None = None  # log-loss on new prompts of unseen people: see losses_held_out
    pairs: dict | None = None  # of each person, how many they were fitted to
    words: dict | None = None  # of people whom adapt.py has taken in, what it said of them
    answers: torch.Tensor | None = None  # (rows, d) vectors of the replies that these people compared
    answered: torch.Tensor | None = None  # (n, 5) whole numbers: who preferred which of them

    @property
    def everybody(self):
        """Ids of all people, seen ones first."""
        return (*self.user_ids, *self.unseen_ids)

    @property
    def prior(self):
        """What is known of a person before the first pair."""
        mean = self.W.mean(0) if self.mean is None else self.mean
        return Prior(mean, self.strength, self.deviation_spread, self.doubt)

    def positions(self, users):
        """Theirs among everybody; an id of two (lists have numbers for ids) is the seen one's.

        InputError: somebody unknown.
        """
        number = numbered(self.everybody)
        for user in users:
            if user not in number:
                hint = f"it has {len(number)}, such as {next(iter(number), 'nobody')}"
                raise InputError(f"the basis has no user {user}; {hint}")
        return [number[user] for user in users]

    def parameters_of(self, users):
        """w_i (P, K) and e_i (P, d), or None, of some of them; nobody else's are copied."""
        numbers = torch.tensor(self.positions(users), dtype=torch.long)
        W = gather(self.W, self.W_unseen, numbers)
        E = None if self.E is None else gather(self.E, self.E_unseen, numbers)
        return W, E

    def rewards(self, users):
        """V w_i + e_i of some of them, one per column. (d, P)"""
        W, E = self.parameters_of(users)
        rewards = self.V @ W.T  # (d, K) @ (K, P)
        return rewards if E is None else rewards + E.T

    def log_odds(self, table, users):
        """What embeddings are worth to some of them: (rows, d) -> (rows, P), float32.

        The difference of two replies to one prompt is the log-odds of a choice between them.
        """
        table = table.float()
        W, E = self.parameters_of(users)
        scores = (table @ self.V) @ W.T  # (rows, d) @ (d, K) @ (K, P)
        if E is not None:
            scores += table @ E.T  # (rows, d) @ (d, P)
        return scores / LOGIT_SCALE

    def log_odds_by_row(self, table, users):
        """What each embedding is worth to the user of its row: (rows, d) -> (rows,), float32."""
        table = table.float()
        W, E = self.parameters_of(users)
        scores = ((table @ self.V) * W).sum(1)  # (rows, d) @ (d, K), * (rows, K) -> (rows,)
        if E is not None:
            scores += (table * E).sum(1)  # (rows, d) -> (rows,)
        return scores / LOGIT_SCALE

    def of_columns(self):
        """The same basis with each column of V as a person, to see replies as it does."""
        K = self.V.shape[1]
        names = tuple(f"basis reward {k}" for k in range(K))
        return Basis(self.V, torch.eye(K), names, self.W_unseen[:0], (), self.model)

    def population(self, table):
        """The same to everybody alike: the population's mixture. (rows,)"""
        reward = self.V @ self.prior.mean.float()  # (d, K) @ (K,)
        return table.float() @ reward / LOGIT_SCALE


@lru_cache(maxsize=8)
def numbered(ids):
    """{id: its first position} of a tuple."""
    number = {}
    for position, user in enumerate(ids):
        number.setdefault(user, position)
    return number


def gather(seen, unseen, numbers):
    """Rows of the one table, and behind it the other, by their numbers."""
    rows = seen.new_empty(len(numbers), seen.shape[1])
    among_seen = numbers < len(seen)
    rows[among_seen] = seen[numbers[among_seen]]
    rows[~among_seen] = unseen[numbers[~among_seen] - len(seen)]
    return rows


@by_first_process
def save_basis(path, basis, **metadata):
    """A Basis as one safetensors file: its tensors; the ids and the model in the header."""
    header = {name: str(value) for name, value in metadata.items()}
    header |= {"model": basis.model, "strength": str(basis.strength)}
    header |= {"deviation_spread": str(basis.deviation_spread), "doubt": str(basis.doubt)}
    for name in ("user_ids", "unseen_ids", *SAID):
        header[name] = json.dumps(getattr(basis, name))
    tensors = {}
    for name in (*NEEDED, *MORE, *ANSWERS):
        if getattr(basis, name) is not None:
            tensors[name] = getattr(basis, name).detach().cpu().clone(memory_format=torch.contiguous_format)
    with written_whole(path) as file:
        save_file(tensors, file, header)


def save_fits(prefix, cells, groups, model):
    """One basis file for each fit; none of an earlier run is left that is called the best."""
    seen = groups.train.user_ids
    unseen = groups.unseen.user_ids
    pairs = {}
    for group in (groups.train, groups.few_shot_train):
        pairs |= dict(zip(group.user_ids, group.counts.tolist()))
    for cell, held_out in zip(cells, losses_held_out(cells, groups)):
        seed, alpha, K = cell.setting
        remove(best_path(prefix, alpha, seed))
        E = stacked_deviations(cell.fit.deviations, seen)
        E_unseen = stacked_deviations(cell.deviations_unseen, unseen)
        basis = Basis(cell.fit.V, cell.fit.W, seen, cell.W_unseen, unseen, model, E, E_unseen)
        basis = basis._replace(held_out=held_out, pairs=pairs)
        if cell.fit.prior is not None:
            basis = basis._replace(**cell.fit.prior._asdict())
        save_basis(basis_path(prefix, K, alpha, seed), basis, alpha=alpha, seed=seed)


@by_first_process
def remove(path):
    Path(path).unlink(missing_ok=True)


@by_first_process
def save_best(prefix, cells):
    """The files of the ranks that are marked as best, under a name that tells no rank; no prefix: none."""
    for cell in cells:
        if cell.best and prefix is not None:
            seed, alpha, K = cell.setting
            with written_whole(best_path(prefix, alpha, seed)) as file:
                shutil.copyfile(basis_path(prefix, K, alpha, seed), file)


def losses_held_out(cells, groups):
    """For each scored Cell the mean over unseen people of -log P of their pairs, none of them fitted.

    {personal: by their own rewards, population: by the mean mixture of everybody}
    """
    test = groups.unseen
    losses = []
    for cell, Z in zip(cells, project(test, [cell.fit.V for cell in cells])):  # (n, K)
        prior = cell.fit.prior
        mean = cell.fit.W.mean(0) if prior is None else prior.mean
        by_pair = {
            "personal": torch.from_numpy(cell.outcomes["unseen"].log_loss),
            "population": log_losses(Z @ mean.to(Z)),  # (n, K) @ (K,)
        }
        losses.append({name: by_user_mean(loss, test) for name, loss in by_pair.items()})
    return losses


def by_user_mean(values, group):
    """Mean over the users of a group of the mean of their pairs' values (n,)."""
    counts = group.counts.to(values.device)
    sums = values.new_zeros(len(counts)).index_add_(0, group.user.to(values.device), values)
    return (sums / counts).mean().item()


def stacked_deviations(deviations, user_ids):
    """e_i of everybody, (C, d); on disk they are less than the pairs that make them."""
    if deviations is None:
        return None
    return torch.stack([deviations.vector(person) for person in range(len(user_ids))])


def load_basis(path, num_features=None):
    """The Basis of save_basis. InputError: missing, not such a file, NaN, of another width than asked."""
    folder = "a train_basis.py writes such files to its results folder"
    require(Path(path).exists(), f"{path} is missing; {folder}")
    try:
        with safe_open(path, framework="pt") as file:
            names = {*file.keys()} & {*MORE} | {*NEEDED}
            tensors = {name: file.get_tensor(name) for name in names}
            answers = {name: file.get_tensor(name) for name in {*file.keys()} & {*ANSWERS}}
            header = file.metadata()
        numbers = {name: float(header[name]) for name in ("strength", "deviation_spread", "doubt")}
        ids = {name: ids_of(header[name]) for name in ("user_ids", "unseen_ids")}
        said = {name: said_in(header, name) for name in SAID}
        basis = Basis(**tensors, **answers, **ids, **said, model=header["model"], **numbers)
    except (SafetensorError, KeyError, TypeError, ValueError) as error:
        raise InputError(f"{path} is not a basis saved by train_basis.py ({error})") from error
    for name, tensor in tensors.items():
        words = f"{path}: {name} is of {tensor.dtype}, no floating-point numbers"
        require(tensor.is_floating_point(), words)
        require(tensor.isfinite().all(), f"{path}: {name} holds NaN or infinity")
    basis = basis._replace(**{name: tensor.float() for name, tensor in tensors.items()})
    require_shapes(path, basis)
    widths = f"basis of width {len(basis.V)}, but the embeddings have {num_features}"
    require(num_features in (None, len(basis.V)), f"{path}: {widths}: not the same model")
    return basis


def ids_of(text):
    """People's ids in a header. ValueError: no list of texts."""
    ids = json.loads(text)
    if not isinstance(ids, list) or not all(isinstance(user, str) for user in ids):
        raise ValueError(f"ids are {text[:40]}, not a list of texts")
    return tuple(ids)


def said_in(header, name):
    """An object of a header, or None where it says nothing. ValueError: something else."""
    value = json.loads(header.get(name, "null"))
    is_usable = isinstance(value, dict | None)
    if value is not None and name == "held_out":
        is_usable = is_usable and {*value} == {"personal", "population"}
        is_usable = is_usable and all(isinstance(loss, float) for loss in value.values())
    if not is_usable:
        raise ValueError(f"{name} is {header[name][:40]}")
    return value


def is_mixture(shares):
    return (shares >= -OFF).all() and ((shares.sum(-1) - 1).abs() <= OFF).all()


def require_shapes(path, basis):
    """InputError unless all tensors fit one another, mixtures are such, and each person stands once."""
    there = basis.V.ndim == 2 and basis.V.numel() and basis.user_ids
    require(there, f"{path}: V has shape {tuple(basis.V.shape)}, for nobody or nothing")
    d, K = basis.V.shape
    expected = {"W": (len(basis.user_ids), K), "W_unseen": (len(basis.unseen_ids), K), "mean": (K,)}
    expected |= {"E": (len(basis.user_ids), d), "E_unseen": (len(basis.unseen_ids), d)}
    for name, shape in expected.items():
        tensor = getattr(basis, name)
        if tensor is not None:
            shapes = f"{name} has shape {tuple(tensor.shape)}, not {shape}"
            require(tensor.shape == shape, f"{path}: {shapes}: written by something else?")
    for name in ("W", "W_unseen", "mean"):
        shares = getattr(basis, name)
        words = f"{path}: {name} holds no mixtures: weights below 0, or of another sum than 1"
        require(shares is None or is_mixture(shares), words)
    for ids in (basis.user_ids, basis.unseen_ids):
        if len({*ids}) < len(ids):
            raise InputError(f"{path}: the id {max(ids, key=ids.count)} stands for two people")
    numbers = (basis.strength, basis.deviation_spread, basis.doubt)
    words = "{}: a prior of strength {}, spread {} and doubt {}".format(path, *numbers)
    require(all(number >= 0 for number in numbers), words)  # NaN is not
    require_answers(path, basis)
    one_sided = (basis.E is None) != (basis.E_unseen is None)
    require(not one_sided, f"{path}: only one of E and E_unseen is there")


def require_answers(path, basis):
    """InputError unless each answer is of somebody who is there, on two replies that are."""
    words = f"{path}: answers of nobody, or on replies without vectors: damaged?"
    answers, answered = basis.answers, basis.answered
    require((answers is None) == (answered is None), words)
    if answered is None:
        return
    usable = answers.ndim == 2 and answers.shape[1] == len(basis.V) and answers.is_floating_point()
    usable = usable and answered.dtype == torch.int64 and answered.ndim == 2 and answered.shape[1] == 5
    require(usable and len(answered) and answers.isfinite().all(), words)
    limits = torch.tensor([len(basis.everybody), len(answers), len(answers)])
    require((answered[:, :3] >= 0).all() and (answered[:, :3] < limits).all(), words)


def basis_health(V, W, V_ref):
    """What tells a healthy basis V (d, K) with mixtures W (C, K) from a collapsed one, as a dict.

    columns: of V, after pruning; alike: largest |cos| of two of them, 1 = the same reward twice;
    to_head: smallest and largest cosine to V_ref (d, 1) or None; used: exp of the entropy of the
    mean mixture, 1 = all people use one column, K = all columns alike; used_by_one: mean of exp of
    the entropy of w_i, 1 = everybody is a pure type.
    """
    cosines = F.normalize(V, dim=0).T @ F.normalize(V, dim=0)  # (K, d) @ (d, K) -> (K, K)
    alike = cosines.fill_diagonal_(0).abs().max().item() if V.shape[1] > 1 else None
    to_head = None
    if V_ref is not None:
        smallest, largest = F.cosine_similarity(V, V_ref.to(V), dim=0).aminmax()
        to_head = [smallest.item(), largest.item()]
    used = entropy(W.mean(0)).exp().item()
    by_one = entropy(W).exp().mean().item()
    health = {"columns": V.shape[1], "alike": alike, "to_head": to_head}
    return health | {"used": used, "used_by_one": by_one}


def entropy(w):
    return torch.special.entr(w).sum(-1)
