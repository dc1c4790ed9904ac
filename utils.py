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

import itertools
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from lore.basis import Basis, basis_path, save_basis
from lore.common import InputError, progress
from lore.comparisons import Groups, pack, shuffled_places
from lore.evaluation import (
    ALL_SHOTS,
    LORE,
    MODELS,
    SHUFFLED,
    Cell,
    each_alone,
    mixture_variants,
    score_cells,
    share_right,
)
from lore.likelihood import (
    Rows,
    TallProduct,
    margins,
    negative_log_likelihood,
    project,
    user_mean_weights,
)
from lore.mixtures import EVERYBODY, Fit, Prior, solve_mixtures
from lore.processes import as_first
from lore.ridge import check_rank, fit_ridge
from lore.tables import reference_head

PRUNE_BELOW = 1e-2  # LoRe_regularized drops a basis reward that no user gives more weight than this; as published


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
        self.alpha, self.num_iterations, self.learning_rate = (
            float(alpha),
            num_iterations,
            learning_rate,
        )
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
        return Rows.of(data, self.V), lambda Z, W: negative_log_likelihood(
            Z, W.softmax(dim=1), user, weight
        )

    @classmethod
    def fit_together(cls, models, data):
        """Fit models that differ in rank, alpha or start to the same Comparisons, in place, one pass over X for all."""
        cls.descend(
            models, *models[0].objective(data), models[0].num_iterations, models[0].learning_rate
        )

    @staticmethod
    def descend(models, X, nll, steps, learning_rate):
        Vs, Ws = [m.V for m in models], [m.W for m in models]
        optimizer = torch.optim.Adam([*Ws, *Vs], lr=learning_rate)
        for _ in progress(range(steps), "joint fit"):
            optimizer.zero_grad()
            Zs = TallProduct.apply(X, *Vs)
            loss = sum(nll(Z, W) for Z, W in zip(Zs, Ws)) + sum(
                m.penalty() for m in models
            )  # Eq. 10, fit by fit
            loss.backward()
            as_first(*(parameter.grad for parameter in (*Ws, *Vs)))
            optimizer.step()

    @staticmethod
    def pair_weights(user):
        return user_mean_weights(user)

    def penalty(self):
        """alpha * sum_k ||V_k - V_ref||^2. Differs from the published code, which broadcasts to (d, d)."""
        return (
            self.alpha * (self.V - self.V_sft.to(self.V)).square().sum()
            if self.alpha
            else self.V.new_zeros(())
        )


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
        kept = largest >= min(
            PRUNE_BELOW, largest.max().item()
        )  # above rank 100 nobody may reach it: keep the largest
        return W[:, kept] / W[:, kept].sum(dim=1, keepdim=True), V[:, kept]

    @staticmethod
    def descend(models, X, nll, steps, learning_rate):
        Vs, Ws = [m.V for m in models], [m.W for m in models]
        adam_W, adam_V = (torch.optim.Adam(parameters, lr=learning_rate) for parameters in (Ws, Vs))
        for step in progress(range(steps), "joint fit"):
            Zs = TallProduct.apply(
                X, *Vs
            )  # serves both halves of the step: V moves only at its end
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

    def __init__(
        self,
        num_classes,
        num_features,
        num_basis_vectors,
        num_iterations,
        learning_rate,
        *,
        generator=None,
    ):
        super().__init__()
        check_rank(num_basis_vectors, num_features, smallest=1)
        self.num_features, self.num_iterations, self.learning_rate = (
            num_features,
            num_iterations,
            learning_rate,
        )
        self.w = nn.Parameter(torch.randn(num_classes, num_basis_vectors, generator=generator))

    def fit(self, features, V):
        """Per-user list or Comparisons, basis V (d, K) -> W: probabilities (C, K)."""
        data, (C, K) = pack(features), self.w.shape
        if (len(data.user_ids), data.num_features, *V.shape) != (
            C,
            self.num_features,
            self.num_features,
            K,
        ):
            raise InputError(
                f"{len(data.user_ids)} users, embeddings of width {data.num_features} and a basis of shape"
                f" {tuple(V.shape)} for a model of {C} users and a basis of ({self.num_features}, {K})"
            )
        return self.fit_together([self], project(data, [V.detach().to(self.w)]), data.user)[0]

    @staticmethod
    def fit_together(models, Zs, user):
        """Models of several ranks or starts, each with its own Z = X @ V (n, K), at once -> [W (C, K), ..]."""
        weight, user = user_mean_weights(user).to(Zs[0]), user.to(Zs[0].device)
        logits = [m.w.detach().to(Z).requires_grad_() for m, Z in zip(models, Zs)]
        optimizer = torch.optim.Adam(logits, lr=models[0].learning_rate)
        for _ in progress(range(models[0].num_iterations), "few-shot fit"):
            optimizer.zero_grad()
            loss = sum(
                negative_log_likelihood(Z, w.softmax(dim=1), user, weight)
                for Z, w in zip(Zs, logits)
            )  # Eq. 11
            loss.backward()
            optimizer.step()
        for model, w in zip(models, logits):
            model.w.data.copy_(w.detach())
        return [w.detach().softmax(dim=1) for w in logits]


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
    groups = Groups(
        train_features, test_features_sparse, train_features_unseen, test_features_sparse_unseen
    )
    options |= {"num_iterations": num_iterations, "few_shot_learning_rate": few_shot_learning_rate}
    return sweep(LoRe, K_list, alpha_list, V_final, groups, N, N_unseen, device, **options)


def run_regularized(
    K_list, alpha_list, V_final, train_features, test_features_sparse,
    train_features_unseen, test_features_sparse_unseen, N, N_unseen, device, *,
    num_iterations=20000, few_shot_learning_rate=0.5, **options,
):  # fmt: skip
    """LoRe_regularized for every alpha and K; otherwise as `run`, and the same with solver="ridge". RunResult."""
    groups = Groups(
        train_features, test_features_sparse, train_features_unseen, test_features_sparse_unseen
    )
    options |= {"num_iterations": num_iterations, "few_shot_learning_rate": few_shot_learning_rate}
    return sweep(
        LoRe_regularized, K_list, alpha_list, V_final, groups, N, N_unseen, device, **options
    )


def fit_grid(model_class, grid, V_ref, train, device, num_iterations, learning_rate, solver):
    """(grid, Fits): one Fit per (seed, alpha, K) of the grid, without K = 0 where there is no head."""
    for _, repeats in itertools.groupby(sorted(grid)):
        if len(list(repeats)) > 1:
            raise InputError("K_list, alpha_list or seeds holds a value twice")
    for _, alpha, K in grid:
        check_rank(K, train.num_features, smallest=0)
        if solver == "ridge" and alpha:
            raise InputError(
                f"alpha = {alpha:g}: the ridge solver chooses its own pull to the head; alpha_list = [0]"
            )
    possible = [cell for cell in grid if cell[2] > 0 or V_ref is not None]
    if not possible:
        raise InputError(
            "nothing to fit: an empty list, or K = 0 alone for embeddings without a reference head"
        )
    if len(possible) < len(grid):
        print("K = 0 is left out: these embeddings come without a reference head")
    if solver == "adam":
        return possible, fit_adam(
            model_class, possible, V_ref, train, device, num_iterations, learning_rate
        )
    if solver != "ridge":
        raise InputError(f"solver = {solver!r}: adam, as published, or ridge")
    fits = {}
    for seed in dict.fromkeys(seed for seed, _, K in possible if K > 0):
        by_rank = fit_ridge(
            train, [K for start, _, K in possible if start == seed], V_ref, seed, device
        )
        fits |= {(seed, K): fit for K, fit in by_rank.items()}
    head = lambda: reference_fit(V_ref, train, device)
    return possible, [fits[seed, K] if K > 0 else head() for seed, _, K in possible]


def fit_adam(model_class, grid, V_ref, train, device, num_iterations, learning_rate):
    """One Fit per (seed, alpha, K), all fitted together."""
    models, generators = {}, [torch.Generator().manual_seed(seed) for seed, _, _ in grid]
    for cell, ((_, alpha, K), generator) in enumerate(zip(grid, generators)):
        if K > 0:
            arguments = (
                V_ref,
                alpha,
                len(train.user_ids),
                train.num_features,
                K,
                num_iterations,
                learning_rate,
            )
            models[cell] = model_class(*arguments, generator=generator).to(device)
    if models:
        model_class.fit_together(list(models.values()), train)
    fits = []
    for cell, generator in enumerate(generators):
        if cell not in models:
            fits.append(reference_fit(V_ref, train, device)._replace(generator=generator))
            continue
        if not models[cell].V.isfinite().all():
            raise InputError(
                f"the fit of K = {grid[cell][2]}, alpha = {grid[cell][1]:g} diverged; lower learning_rate"
            )
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
        return [
            solve_mixtures(Z, user.to(Z.device), trials * S * people, f.prior).W.to(Z)
            for f, Z in zip(fits, Zs)
        ]
    models = []
    for fit in fits:
        model = PersonalizeBatch(
            trials * people, *fit.V.shape, iterations, learning_rate, generator=fit.generator
        )
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
        grid, fits = fit_grid(
            model_class, grid, V_ref, train, device, num_iterations, learning_rate, solver
        )
        Zs = project(few, [fit.V for fit in fits])
        shape = (1, 1, N_unseen)
        return (
            grid,
            fits,
            personalise(fits, Zs, few.user, shape, few_shot_iterations, few_shot_learning_rate),
        )

    starts = dict.fromkeys(start for start, _, _ in grid) if baselines else []
    alone = [each_alone(groups, V_ref, start, device) for start in starts]
    fitted = list(zip(*fit_people(grid, groups.train, groups.few_shot_train)))
    variants = [
        mixture_variants(K, fit, W_unseen, baselines) for (_, _, K), fit, W_unseen in fitted
    ]
    cells = score_cells(fitted, variants, groups)
    main = {(cell.seed, cell.alpha, cell.K): cell for cell in cells if cell.model == LORE}
    if save is not None:
        for cell in (cell for cell in main.values() if cell.K > 0):
            people = (
                cell.fit.V,
                cell.fit.W,
                groups.train.user_ids,
                cell.W_unseen,
                groups.unseen.user_ids,
            )
            strength = {} if cell.fit.prior is None else {"prior_strength": cell.fit.prior.strength}
            path = basis_path(save, cell.K, cell.alpha, cell.seed)
            save_basis(path, Basis(*people, model), alpha=cell.alpha, seed=cell.seed, **strength)
    for start in starts:
        to_fit = [cell for cell in grid if cell[0] == start and cell[2] > 0]
        if to_fit:
            fitted = list(
                zip(
                    *fit_people(
                        to_fit, groups.train.shuffled(start), groups.few_shot_train.shuffled(start)
                    )
                )
            )
            cells += score_cells(
                fitted, [[(SHUFFLED, fit.W, W_unseen)] for _, fit, W_unseen in fitted], groups
            )
    table = np.full((8, len(grid)), np.nan)
    for column, cell in enumerate(grid):
        if cell in main:
            per_user = [main[cell].accuracy[name] for name in Groups._fields]
            table[:, column] = [*map(np.mean, per_user), *map(np.std, per_user)]
    result = RunResult(*(table if seeds is None else table.reshape(8, len(seeds), -1)))
    result.cells = sorted(cells + alone, key=lambda cell: MODELS.index(cell.model))
    return result


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
    train = pack(
        train_features
    )  # seen users are fitted but not scored here: no test pairs of theirs
    groups = Groups(train, train, train_features_unseen, test_features_sparse_unseen).checked(
        N, N_unseen
    )
    few, unseen = groups.few_shot_train, groups.unseen
    if trials < 1 or not num_shots:
        raise InputError(
            "trials and num_shots: at least one draw of at least one number of shots is needed"
        )
    if len({*num_shots}) < len(num_shots):
        raise InputError("num_shots holds a value twice")
    shot = torch.arange(len(few)) if few.shot is None else few.shot
    shot_user = torch.zeros(shot.max() + 1, dtype=torch.long).scatter_(
        0, shot, few.user.cpu()
    )  # (shots,)
    per_user = torch.bincount(shot_user)
    for user, count in zip(few.user_ids, per_user.tolist()):
        if max(num_shots) > count or min(num_shots) < ALL_SHOTS:
            wrong = max(num_shots) if max(num_shots) > count else min(num_shots)
            raise InputError(
                f"shots = {wrong}: user {user} has {count} to draw from; use 1..{per_user.min()}"
            )
    grid = list(itertools.product([seed], alpha_list, K_list))
    V_ref = reference_head(V_final, train.num_features)
    possible, fits = fit_grid(
        model_class, grid, V_ref, train, device, num_iterations, learning_rate, solver
    )
    Vs = [fit.V for fit in fits]

    S, owner = len(num_shots), few.user.cpu()
    place = shuffled_places(shot_user, trials, torch.Generator().manual_seed(seed))[
        :, shot
    ]  # (trials, n)
    limits = torch.tensor([len(few) if shots == ALL_SHOTS else shots for shots in num_shots])
    drawn = place.unsqueeze(1) < limits.view(1, S, 1)  # (trials, S, n)
    trial, shot, row = drawn.nonzero(as_tuple=True)
    problem = (trial * S + shot) * N_unseen + owner[
        row
    ]  # one few-shot problem per (trial, shots, user), ascending
    Zs = [Z[row.to(Z.device)] for Z in project(few, Vs)]
    Ws = personalise(
        fits, Zs, problem, (trials, S, N_unseen), few_shot_iterations, few_shot_learning_rate
    )

    table, cells = np.full((4, len(grid), S), np.nan), []
    users = {"few_shot_train": few.user_ids, "unseen": unseen.user_ids}
    for cell, fit, Z, Z_test, W in zip(possible, fits, Zs, project(unseen, Vs), Ws):
        on_pairs = share_right(margins(Z, W, problem.to(Z.device)), problem.to(Z.device), len(W))
        user = unseen.user.to(Z.device)
        on_test = [
            share_right(margins(Z_test, w, user), user, N_unseen)
            for w in W.view(trials * S, N_unseen, -1)
        ]
        accuracy = [
            part.view(trials, S, N_unseen).cpu().numpy() for part in (on_pairs, torch.cat(on_test))
        ]
        over_users = [part.mean(2) for part in accuracy]  # (trials, S)
        table[:, grid.index(cell)] = [
            f(part) for part in over_users for f in (lambda x: x.mean(0), lambda x: x.std(0))
        ]
        for s, shots in enumerate(num_shots):
            by_user = dict(zip(users, (part[:, s].mean(0) for part in accuracy)))
            cells.append(Cell(*cell, by_user, users, shots=shots, fit=fit))
    result = FewShotResult(*table.reshape(4, len(alpha_list), len(K_list), S))
    result.cells = cells
    return result
