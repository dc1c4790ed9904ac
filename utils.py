"""LoRe: many people, one low-rank basis of reward functions (arXiv 2504.14439). The method.

    P(user i prefers the chosen reply) = sigmoid(x @ V @ w_i / LOGIT_SCALE)
    x = e(chosen) - e(rejected),    w_i on the simplex

    code    paper                    shape        meaning
    e       e(x, y)                  (d,)         embedding of prompt and reply, frozen reward model
    X, y    all the D_i, Eq. 10      (n, d) (n,)  e(chosen) - e(rejected) of all users stacked, and
                                                  whose each is
    V       A transposed, Eq. 8      (d, K)       basis rewards, one per column
    W       w_1 .. w_C, Eq. 7        (C, K)       user mixtures, rows on the simplex
    K       B                        int          rank; 0 = the reference head as it is, 1 = one
                                                  Bradley-Terry reward for everybody
    V_ref   reference reward model   (d, 1)       the reward model's own `score` weight
    Z       R_phi                    (n, K)       X @ V, the differences seen through the basis

    joint fit   min over V, W of  sum_i mean_j -log P     over the pairs j of each user i    Eq. 10
    few-shot    min over w_i  of  mean_j -log P           V frozen                           Eq. 11
    accuracy    share of pairs with x @ V @ w_i > 0, per user, then the mean over users      Eq. 15

The likelihood is lore/fit/likelihood.py, the product X @ V lore/fit/product.py. Two solvers: adam, the
published recipe and the default; ridge (lore/fit/ridge.py), which chooses priors on held-out prompts.

Fits of several ranks, alphas and seeds are solved side by side: X is multiplied once for all of
them, with all their V next to each other; everything else happens fit by fit, so that each takes
the path that it would have taken alone, bit for bit where the matrix library rounds a column alike
whatever stands beside it (`rounded_alike`; a table says where it does not).
"""

from functools import partial

import torch
import torch.nn.functional as F
from torch import nn

from lore.common import InputError, progress, require
from lore.fit.basis import Basis, load_basis, save_best, save_fits
from lore.fit.comparisons import Comparisons, check_rank, pack
from lore.fit.evaluation import ALL_SHOTS, fitted_cell, score_cells
from lore.fit.few_shot import Draws, draw_shots, drawn_terms, score_draws
from lore.fit.groups import Groups
from lore.fit.likelihood import LOGIT_SCALE, equal_weights, mean_weights, negative_log_likelihood
from lore.fit.mixtures import EVERYBODY, Fit, Mixtures, Prior, solve_mixtures
from lore.fit.product import TallProduct, joint_likelihoods, project
from lore.fit.refits import baseline_cells, mark_best_rank
from lore.fit.ridge import fit_ridge
from lore.fit.rows import Rows
from lore.fit.sweeps import FewShotResult, Recipe, RunResult, fittable, grid_of
from lore.processes import Adam
from lore.splits import reference_head

__all__ = [
    "LoRe", "LoRe_regularized", "PersonalizeBatch", "run", "run_regularized",
    "run_few_shot_vary_shots", "fit_ridge", "Comparisons", "Groups", "Fit", "Basis", "load_basis",
    "InputError", "LOGIT_SCALE", "ALL_SHOTS",
]  # fmt: skip

PRUNE_BELOW = 1e-2  # LoRe_regularized drops a column that no user gives more weight; as published


# ------------------------------------------------------------------------------------------------
# The joint fit: V and the mixtures of the seen users
# ------------------------------------------------------------------------------------------------


class LoRe(nn.Module):
    """min over V, W of Eq. 10 + alpha * sum_k |V_k - V_ref|^2, by one Adam over both, as published.

    V_sft: (d, 1) reference head or None; alpha: pull towards it, 0 = none. W: (C, K) logits and V:
    (d, K) are drawn from N(0, 1), by `generator` or torch's global state, and may be overwritten
    before `fit`. num_classes = C users, num_features = d, num_basis_vectors = K.
    InputError: K outside 1 .. d, a head of another width, alpha without a head.
    """

    draw_W = staticmethod(torch.randn)
    pair_weights = staticmethod(mean_weights)  # 1 / m_i: every user counts the same, Eq. 10

    def __init__(
        self, V_sft, alpha, num_classes, num_features, num_basis_vectors, num_iterations,
        learning_rate, *, generator=None,
    ):  # fmt: skip
        super().__init__()
        check_rank(num_basis_vectors, num_features, smallest=1)
        require(
            alpha == 0 or (alpha > 0 and V_sft is not None),
            f"alpha = {alpha:g}: never negative, and 0 (--alpha_list 0) where there is no"
            " reference head to pull to",
        )
        self.register_buffer("V_sft", reference_head(V_sft, num_features))
        self.alpha = float(alpha)
        self.num_iterations = num_iterations
        self.learning_rate = learning_rate
        self.W = nn.Parameter(self.draw_W(num_classes, num_basis_vectors, generator=generator))
        self.V = nn.Parameter(torch.randn(num_features, num_basis_vectors, generator=generator))

    def fit(self, features):
        """Per-user (m_i, d) tensors, or Comparisons -> W (C, K), probabilities, and V (d, K)."""
        self.fit_together([self], pack(features))
        return self.solution()

    def forward(self, features):
        """(negative log likelihood, penalty at full alpha) of the present W and V."""
        X, *terms = self.problem(pack(features))
        (nll,) = joint_likelihoods(X, [self.V], [self.W.softmax(1)], *terms)
        return nll, self.penalty()

    @classmethod
    def fit_together(cls, models, data):
        """Fit models that differ in rank, alpha or start to the same Comparisons, in place; all with
        the first one's steps and learning rate."""
        first = models[0]
        X, *terms = first.problem(data)
        cls.descend(models, X, terms, first.num_iterations, first.learning_rate)

    @staticmethod
    def descend(models, X, terms, steps, learning_rate):
        Ws = [model.W for model in models]
        Vs = [model.V for model in models]
        adam = Adam([*Ws, *Vs], lr=learning_rate)
        for _ in progress(range(steps), "joint fit"):
            adam.zero_grad()
            nlls = joint_likelihoods(X, Vs, [W.softmax(1) for W in Ws], *terms)  # Eq. 10
            loss = sum(nlls) + sum(model.penalty() for model in models)
            loss.backward()
            adam.step()

    def penalty(self):
        """alpha * sum_k |V_k - V_ref|^2. Differs from the published code, which broadcasts."""
        if not self.alpha:
            return self.V.new_zeros(())
        return self.alpha * (self.V - self.V_sft.to(self.V)).square().sum()

    def solution(self):
        """W as probabilities, Eq. 7, and V."""
        return self.W.detach().softmax(dim=1), self.V.detach()

    def problem(self, data):
        """X (n, d), and `terms`: whose each row is (n,), how much it counts (n,), its choice or None."""
        data.expect(len(self.W), len(self.V))
        X = Rows.of(data, self.V)
        return X, *data.terms(self.pair_weights, self.V)


class LoRe_regularized(LoRe):
    """min over V, W of the mean of -log P over all pairs + alpha_t * mean_k (1 - cos(V_k, V_ref)).

    Arguments as LoRe. Each step moves W first, then V with the new W (two Adams); alpha_t is 0
    before 20 % of the steps and grows linearly to alpha at 80 %. W starts from U(0, 1). `fit`
    returns only the columns that some user weighs PRUNE_BELOW or more.
    """

    draw_W = staticmethod(torch.rand)
    pair_weights = staticmethod(equal_weights)

    @staticmethod
    def descend(models, X, terms, steps, learning_rate):
        Ws = [model.W for model in models]
        Vs = [model.V for model in models]
        adam_W = Adam(Ws, lr=learning_rate)
        adam_V = Adam(Vs, lr=learning_rate)
        for step in progress(range(steps), "joint fit"):
            Zs = TallProduct.apply(X, *Vs)  # serves both halves: V moves only at the step's end
            adam_W.zero_grad()
            loss = 0
            for W, Z in zip(Ws, Zs):
                loss = loss + negative_log_likelihood(Z.detach(), W.softmax(1), *terms)
            loss.backward()
            adam_W.step()

            adam_V.zero_grad()
            loss = 0
            for model, W, Z in zip(models, Ws, Zs):
                nll = negative_log_likelihood(Z, W.detach().softmax(1), *terms)
                loss = loss + nll + warm_up(step, steps) * model.penalty()
            loss.backward()  # a second read of X: these slopes had to wait for the new W
            adam_V.step()

    def penalty(self):
        """alpha * mean_k (1 - cos(V_k, V_ref))."""
        if not self.alpha:
            return self.V.new_zeros(())
        V_ref = self.V_sft.to(self.V)
        cosines = F.cosine_similarity(self.V, V_ref, dim=0)  # (d, K), (d, 1) -> (K,)
        return self.alpha * (1 - cosines).mean()

    def solution(self):
        """W and V without the columns that nobody uses. Differs from the published code: what is
        left of a mixture is divided by its sum, so that it stays on the simplex."""
        W, V = super().solution()
        largest = W.amax(dim=0)  # (K,)
        # above rank 100 nobody may reach the threshold: the largest column is kept
        used = largest >= min(PRUNE_BELOW, largest.max().item())
        return W[:, used] / W[:, used].sum(dim=1, keepdim=True), V[:, used]


def warm_up(step, steps):
    """Share of alpha in force: 0 before 20 % of the steps, then linear, 1 from 80 % on."""
    start = int(0.2 * steps)
    end = int(0.8 * steps)
    if step >= end:
        return 1.0
    return max(0.0, (step - start) / (end - start))


# ------------------------------------------------------------------------------------------------
# The few-shot fit: mixtures of new users, V frozen
# ------------------------------------------------------------------------------------------------


class PersonalizeBatch(nn.Module):
    """min over w_i on the simplex, V frozen, of the mean of -log P over the user's pairs. Eq. 11

    All users at once. `w`: (C, K) logits from N(0, 1), may be overwritten before `fit`.
    """

    def __init__(
        self, num_classes, num_features, num_basis_vectors, num_iterations, learning_rate, *,
        generator=None,
    ):  # fmt: skip
        super().__init__()
        check_rank(num_basis_vectors, num_features, smallest=1)
        self.num_features = num_features
        self.num_iterations = num_iterations
        self.learning_rate = learning_rate
        self.w = nn.Parameter(torch.randn(num_classes, num_basis_vectors, generator=generator))

    def fit(self, features, V):
        """Per-user list or Comparisons, basis V (d, K) -> W: probabilities (C, K)."""
        data = pack(features)
        C, K = self.w.shape
        data.expect(C, self.num_features)
        expected = (self.num_features, K)
        words = f"a basis of shape {tuple(V.shape)} for a model of one of {expected}"
        require(V.shape == expected, words)
        Zs = project(data, [V.detach().to(self.w)])  # (n, d) @ (d, K) -> (n, K)
        return self.fit_together([self], Zs, *data.terms(mean_weights, self.w))[0]

    @staticmethod
    def fit_together(models, Zs, *terms):
        """Models of several ranks or starts, each with its Z (n, K), at once -> [W (C, K), ..]."""
        logits = [model.w.detach().to(Z).requires_grad_() for model, Z in zip(models, Zs)]
        # torch's own: each process has all of Z, and what the first one finds is kept
        adam = torch.optim.Adam(logits, lr=models[0].learning_rate)
        for _ in progress(range(models[0].num_iterations), "few-shot fit"):
            adam.zero_grad()
            loss = 0
            for Z, w in zip(Zs, logits):
                loss = loss + negative_log_likelihood(Z, w.softmax(dim=1), *terms)  # Eq. 11
            loss.backward()
            adam.step()
        for model, w in zip(models, logits):
            model.w.data.copy_(w.detach())
        return [w.detach().softmax(dim=1) for w in logits]


# ------------------------------------------------------------------------------------------------
# Sweeps: every seed, alpha and K in one pass
# ------------------------------------------------------------------------------------------------


def run(
    K_list, alpha_list, V_final, train_features, test_features_sparse, train_features_unseen,
    test_features_sparse_unseen, N, N_unseen, device, *, num_iterations=1000,
    few_shot_learning_rate=0.1, seed=0, seeds=None, baselines=False, mark_best=False, save=None,
    model="", model_class=LoRe, **options,
):  # fmt: skip
    """V and W from N seen users, w of N_unseen new ones, all scored on new prompts -> RunResult.

    V_final: reference head (d, 1), or None. Features: per-user lists of (m_i, d), or Comparisons.
    seeds: a list repeats everything from several starts. baselines: what a fit has to beat, as
    further cells. mark_best: mark the rank that held-out training prompts speak for; a second joint
    fit with adam. save: a prefix of basis_path, where each basis is kept; model: of the embeddings.
    options: learning_rate=0.5, few_shot_iterations=500, solver="adam" (as published) or "ridge",
    which chooses its own penalties; weigh="pairs" is of the ridge solver, "people" = as Eq. 10.
    """
    groups = Groups(train_features, test_features_sparse, train_features_unseen, test_features_sparse_unseen)
    groups = groups.checked(N, N_unseen)
    recipe = Recipe(model_class, device, num_iterations, few_shot_learning_rate, **options)
    V_ref = reference_head(V_final, groups.train.num_features)
    grid = grid_of(recipe.solver, K_list, alpha_list, [seed] if seeds is None else seeds)
    settings = fittable(grid, V_ref, groups.train.num_features)

    fit = partial(fit_people, recipe, V_ref)
    cells = fit(settings, groups.train, groups.few_shot_train)
    cells = score_cells(cells, groups)
    if save is not None:
        save_fits(save, cells, groups, model)
    if baselines:
        cells += baseline_cells(cells, groups, V_ref, device, recipe.weigh, refit=fit)
    if mark_best:
        cells = mark_best_rank(cells, groups, refit=fit)
        save_best(save, cells)
    return RunResult.of(cells, grid, () if seeds is None else (len(seeds),))


def run_regularized(
    K_list, alpha_list, V_final, train_features, test_features_sparse, train_features_unseen,
    test_features_sparse_unseen, N, N_unseen, device, *, num_iterations=20000,
    few_shot_learning_rate=0.5, **options,
):  # fmt: skip
    """As `run`, with LoRe_regularized; the same with solver="ridge"."""
    return run(
        K_list, alpha_list, V_final, train_features, test_features_sparse, train_features_unseen,
        test_features_sparse_unseen, N, N_unseen, device, num_iterations=num_iterations,
        few_shot_learning_rate=few_shot_learning_rate, model_class=LoRe_regularized, **options,
    )  # fmt: skip


def fit_people(recipe, V_ref, settings, train, few_shot_train):
    """Cells of fits to these pairs of the seen and the unseen users, not yet scored."""
    fits = fit_all(recipe, settings, V_ref, train)
    Zs = project(few_shot_train, [fit.V for fit in fits])  # (n, d) @ (d, K) -> (n, K)
    draws = Draws(few_shot_train.user, len(few_shot_train.user_ids))
    people = personalise(recipe, fits, Zs, few_shot_train, draws)
    return [*map(fitted_cell, settings, fits, people)]


def fit_all(recipe, settings, V_ref, train):
    """One Fit per setting."""
    solve = fit_by_adam if recipe.solver == "adam" else fit_by_ridge
    fits = solve(recipe, [setting for setting in settings if setting.K > 0], V_ref, train)
    for setting in settings:
        if setting.K == 0:  # the reference head, weight 1 for everybody
            ones = torch.ones(len(train.user_ids), 1, device=recipe.device)
            generator = torch.Generator().manual_seed(setting.seed)
            V = V_ref.float().to(recipe.device)
            fits[setting] = Fit(V, ones, generator, Prior(ones[0], EVERYBODY))
    return [fits[setting] for setting in settings]


def fit_by_adam(recipe, settings, V_ref, train):
    """{Setting: Fit}, all fitted together, each from the random numbers of its own seed."""
    models = {}
    generators = {}
    for setting in settings:
        generators[setting] = torch.Generator().manual_seed(setting.seed)
        model = recipe.model_class(
            V_ref, setting.alpha, len(train.user_ids), train.num_features, setting.K,
            recipe.num_iterations, recipe.learning_rate, generator=generators[setting],
        )  # fmt: skip
        models[setting] = model.to(recipe.device)
    if models:
        recipe.model_class.fit_together([*models.values()], train)
    fits = {}
    for setting, model in models.items():
        where = f"K = {setting.K}, alpha = {setting.alpha:g}"
        require(model.V.isfinite().all(), f"the fit of {where} diverged; lower learning_rate")
        W, V = model.solution()
        fits[setting] = Fit(V, W, generators[setting])
    return fits


def fit_by_ridge(recipe, settings, V_ref, train):
    """{Setting: Fit}, all ranks of a seed together."""
    by_seed = {}
    for setting in settings:
        by_seed.setdefault(setting.seed, {})[setting.K] = setting
    fits = {}
    for seed, by_rank in by_seed.items():
        solved = fit_ridge(train, [*by_rank], V_ref, seed, recipe.device, recipe.weigh)
        for K, setting in by_rank.items():
            fits[setting] = solved[K]
    return fits


def personalise(recipe, fits, Zs, pairs, draws):
    """[Mixtures] of new users by the solver that made the fits, from each fit's Z (n, K).

    Z is of the pairs that are drawn, each problem being a user; a person's trial starts alike at all
    numbers of shots.
    """
    if recipe.solver == "ridge":
        user = draws.problem.to(Zs[0].device)
        given = (pairs, draws.row)
        return [solve_mixtures(Z, user, draws.problems, fit.prior, *given) for fit, Z in zip(fits, Zs)]
    trials, S, people = draws.axes
    models = []
    for fit in fits:
        model = PersonalizeBatch(
            trials * people, *fit.V.shape, recipe.few_shot_iterations,
            recipe.few_shot_learning_rate, generator=fit.generator,
        )  # fmt: skip
        start = model.w.data.view(trials, 1, people, -1).expand(-1, S, -1, -1)  # (trials, S, people, K)
        model.w = nn.Parameter(start.reshape(draws.problems, -1))
        models.append(model)
    terms = drawn_terms(pairs, draws, Zs[0])
    return [*map(Mixtures, PersonalizeBatch.fit_together(models, Zs, *terms))]


def run_few_shot_vary_shots(
    trials, alpha_list, K_list, num_shots, train_features, train_features_unseen,
    test_features_sparse_unseen, V_final, N, N_unseen, device, *, num_iterations=500,
    few_shot_learning_rate=0.1, seed=0, model_class=LoRe, **options,
):  # fmt: skip
    """Accuracy on unseen users against the number of shots known of each -> FewShotResult.

    A shot is a pair, or the pairs of one dialogue where train_features_unseen.shot says so;
    ALL_SHOTS = all of them. A trial puts every user's shots in one random order whose first s are
    taken, so that a curve compares like with like; all draws are one batch of problems.
    options: learning_rate=0.5, few_shot_iterations=500, solver="adam".
    """
    train = pack(train_features)  # seen users are not scored here: no test pairs of theirs
    groups = Groups(train, train, train_features_unseen, test_features_sparse_unseen)
    groups = groups.checked(N, N_unseen)
    few = groups.few_shot_train
    recipe = Recipe(model_class, device, num_iterations, few_shot_learning_rate, **options)
    V_ref = reference_head(V_final, train.num_features)
    grid = grid_of(recipe.solver, K_list, alpha_list, [seed])
    settings = fittable(grid, V_ref, train.num_features)
    draws = draw_shots(few, num_shots, trials, seed)

    fits = fit_all(recipe, settings, V_ref, train)
    Vs = [fit.V for fit in fits]
    Zs = [Z[draws.row.to(Z.device)] for Z in project(few, Vs)]  # (n, K) -> (drawn, K)
    Zs_test = project(groups.unseen, Vs)
    people = personalise(recipe, fits, Zs, few, draws)
    cells = []
    for setting, fit, mixtures, Z, Z_test in zip(settings, fits, people, Zs, Zs_test):
        cells += score_draws(setting, fit, mixtures, draws, Z, Z_test, groups)
    return FewShotResult.of(cells, grid, K_list, list(num_shots))
