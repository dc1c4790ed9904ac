"""PersonalLLM, step 2: simulated people who mix ten reward models; a basis from seen ones, adapted to unseen ones.

    python PersonalLLM/train_basis.py --synthetic       planted reward models, nothing to download or prepare
    python PersonalLLM/train_basis.py                   the prepared responses; three populations as in the paper
    python PersonalLLM/train_basis.py --dirichlet_list 0.1 --K_list 1 2 5 10 20 50 --standardise

Reads:  data/{train,test}.{safetensors,parquet}, made by prepare.py
Writes: for each population results/train_basis_a*.json, .png, _mixtures.png, and V, W of each rank (planted:
        train_basis_synthetic_a*)
Cost:   no GPU needed; benchmarks/personalllm.py measures the full size. No model is loaded.
"""

import sys
from pathlib import Path
from typing import NamedTuple

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

import numpy as np  # noqa: E402
import torch  # noqa: E402

from utils import (  # noqa: E402
    Comparisons,
    Groups,
    InputError,
    average_over_seeds,
    basis_path,
    key_text,
    load_basis,
    load_split,
    pick_device,
    plot_accuracy_vs_rank,
    print_aligned,
    print_run_table,
    run,
    run_rows,
    save_results,
    settings,
    start,
    written_whole,
)

# --------------------------------------------------------------------------------------------------- settings ---
K_list = [0, 1, 2, 3, 4, 5]  # ranks: 0 = the reference head as it is, 1 = Bradley-Terry; up to 50 in the paper
alpha_list = [0.0]  # pull of every basis reward to the reference head, 0 = none
dirichlet_list = [0.001, 0.01, 0.1]  # one population each: w ~ Dirichlet(a); small a = everybody has one reward model
num_seen = 1000  # seen people of a population
num_unseen = 1000  # unseen people of a population
train_prompts = 45  # training prompts of a seen person
few_shot_prompts = 9  # training prompts known of an unseen person
standardise = False  # each reward model's scores to mean 0 and std 1 first, so that none outweighs another by its scale
num_iterations = 1000  # Adam steps of the joint fit, as published
learning_rate = 0.5  # of the joint fit, as published
repeats = 1  # fits from seeds seed, seed + 1, ...; the table then shows the spread over seeds
seed = 0  # of the people, of their prompts, of the start of the fits, of the planted reward models
device = "auto"  # auto, cpu, cuda, cuda:1
data = HERE / "data"  # prepared responses
results = HERE / "results"  # tables, pictures and bases
synthetic = False  # planted reward models instead of the prepared data
planted_prompts = 2000  # of --synthetic: training prompts, eight responses each
planted_tests = 300  # of --synthetic: test prompts
planted_features = 64  # of --synthetic: width of the embeddings
planted_agreement = 0.25  # of --synthetic: correlation of two reward models' scores
planted_unexplained = 0.15  # of --synthetic: share of a score's variance that no embedding tells
# --------------------------------------------------------------------------------------------------------------------

PREPARE = "python PersonalLLM/prepare.py"
REWARD_MODELS, RESPONSES = 10, 8  # of --synthetic, as upstream


class Prompts(NamedTuple):
    table: torch.Tensor  # (rows, d) embeddings
    reply: np.ndarray  # (P, R) table row of each response
    scores: np.ndarray  # (P, R, M) of each response by each reward model
    head: torch.Tensor | None  # V_ref, (d, 1)
    model: str = ""


def load_prompts(folder):
    """(train, test) Prompts. InputError: incomplete rows, embeddings of different width or by different models."""
    sides = []
    for side in ("train", "test"):
        split = load_split(folder / side, PREPARE, columns=["reply"])
        names = [name for name in split.frame if name not in ("prompt", "response", "reply")]
        R = int(split.frame["response"].max()) + 1
        P = len(split.frame) // R
        order = np.stack([np.repeat(np.arange(P), R), np.tile(np.arange(R), P)], axis=1)
        if not np.array_equal(split.frame[["prompt", "response"]].to_numpy(), order):
            raise InputError(f"{folder / side}.parquet: {len(split.frame)} rows are not {R} responses to each prompt")
        scores = split.frame[names].to_numpy(dtype=np.float64).reshape(P, R, len(names))
        if np.isnan(scores).any():
            raise InputError(f"{folder / side}.parquet: a score is NaN; make it again with: {PREPARE}")
        sides.append(
            Prompts(split.table, split.frame["reply"].to_numpy().reshape(P, R), scores, split.head, split.model)
        )
    train, test = sides
    if (train.table.shape[1], train.model) != (test.table.shape[1], test.model):
        widths = f"{train.table.shape[1]} and {test.table.shape[1]}"
        raise InputError(
            f"{folder}: train and test were embedded by different models, or have different widths: {widths}"
        )
    if train.scores.shape[2] != test.scores.shape[2]:
        raise InputError(f"{folder}: {train.scores.shape[2]} reward models in train, {test.scores.shape[2]} in test")
    return train, test


def planted(
    seed, num_prompts=planted_prompts, num_tests=planted_tests, num_features=planted_features,
    agreement=planted_agreement, unexplained=planted_unexplained,
):  # fmt: skip
    """(train, test) Prompts: ten correlated reward models, linear in N(0, I) embeddings but for an unexplained part.

    The head is the mean of the ten directions, blurred: it knows roughly what people like, as a reward model does.
    """
    rng = np.random.default_rng(seed)
    unit = lambda columns: columns / np.linalg.norm(columns, axis=0)
    common, own = (unit(rng.standard_normal((num_features, count))) for count in (1, REWARD_MODELS))
    directions = unit(np.sqrt(agreement) * common + np.sqrt(1 - agreement) * own)  # (d, M)
    mean = directions.mean(axis=1, keepdims=True)
    head = mean + np.linalg.norm(mean) * rng.standard_normal((num_features, 1)) / np.sqrt(num_features)
    sides = []
    for count in (num_prompts, num_tests):
        table = rng.standard_normal((count * RESPONSES, num_features)).astype(np.float32)
        known = table @ directions  # (rows, d) @ (d, M)
        scores = np.sqrt(1 - unexplained) * known + np.sqrt(unexplained) * rng.standard_normal(known.shape)
        reply = np.arange(count * RESPONSES).reshape(count, RESPONSES)
        vectors = (torch.from_numpy(array) for array in (table, head.astype(np.float32)))
        sides.append(Prompts(next(vectors), reply, scores.reshape(count, RESPONSES, -1), next(vectors)))
    return tuple(sides)


def standardised(train, test):
    """Both sides with each reward model's scores in units of its spread over the training responses."""
    mean, std = train.scores.mean((0, 1)), train.scores.std((0, 1))
    return tuple(side._replace(scores=(side.scores - mean) / std) for side in (train, test))


def comparisons(prompts, weights, chosen_prompts, names):
    """Each person's best against worst response to each of their prompts, and how many prompts tell neither.

    weights: (C, M) over the reward models; chosen_prompts: C arrays of prompt numbers. -> (Comparisons, int)
    """
    users, best, worst, equal = [], [], [], 0
    for user, (w, rows) in enumerate(zip(weights, chosen_prompts)):
        score = prompts.scores[rows] @ w  # (P, R, M) @ (M,) -> (P, R)
        told = score.max(1) > score.min(1)
        rows, score = rows[told], score[told]
        best.append(prompts.reply[rows, score.argmax(1)])
        worst.append(prompts.reply[rows, score.argmin(1)])
        users.append(np.full(len(rows), user))
        equal += (~told).sum()
    user, best, worst = (torch.from_numpy(np.concatenate(part)) for part in (users, best, worst))
    return Comparisons(prompts.table, user, names, best, worst), int(equal)


def draw_people(train, test, a, num_seen, num_unseen, train_prompts, few_shot_prompts, seed):
    """(Groups, (C, M) weights of everybody, the seen first): one population, whatever other populations there are."""
    if not a > 0:
        raise InputError(f"dirichlet_list: {a:g} is no Dirichlet parameter; it must be above 0")
    P = len(train.scores)
    if not 0 < max(train_prompts, few_shot_prompts) <= P or not train_prompts or not few_shot_prompts:
        raise InputError(
            f"{train_prompts} and {few_shot_prompts} prompts a person: between 1 and {P} are there to draw from"
        )
    if not (num_seen and num_unseen):
        raise InputError("num_seen and num_unseen: at least one person each")
    rng = np.random.default_rng([seed, round(1e9 * a)])
    weights = rng.dirichlet(np.full(train.scores.shape[2], a), num_seen + num_unseen)
    names = tuple(f"person{i:04d}" for i in range(num_seen + num_unseen))
    everything = [np.arange(len(test.scores))] * len(names)
    groups, equal = [], []
    for people, count in ((slice(num_seen), train_prompts), (slice(num_seen, None), few_shot_prompts)):
        some = [rng.permutation(P)[:count] for _ in names[people]]
        for prompts, which in ((train, some), (test, everything[people])):
            group, dropped = comparisons(prompts, weights[people], which, names[people])
            groups.append(group)
            equal.append(dropped)
    groups = Groups(*groups)
    for name, group, dropped in zip(groups._fields, groups, equal):
        note = f"; {dropped} prompts left out, all responses equal" if dropped else ""
        print(f"{name:15} {len(group.user_ids):5} people {len(group):8} pairs, d = {group.num_features}{note}")
    return groups, weights


def plot_mixtures(path, weights, basis):
    """PATH.png: each seen person's true weights over the reward models beside the learned ones over the basis."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    order = np.lexsort((-weights.max(axis=1), weights.argmax(axis=1)))
    figure, panels = pyplot.subplots(1, 2, figsize=(7, 4), sharey=True, layout="constrained")
    titles = (("true mixtures", "reward model"), ("learned mixtures", "basis reward"))
    for axes, values, (title, label) in zip(panels, (weights, basis.W.numpy()), titles):
        extent = (-0.5, values.shape[1] - 0.5, len(values), 0)
        image = axes.imshow(values[order], aspect="auto", vmin=0, vmax=1, interpolation="nearest", extent=extent)
        axes.set_title(title, fontsize=9)
        axes.set_xlabel(label)
        axes.xaxis.get_major_locator().set_params(integer=True)
    panels[0].set_ylabel("seen people, by their strongest reward model")
    figure.colorbar(image, ax=panels, label="weight")
    with written_whole(f"{path}.png") as file:
        figure.savefig(file, dpi=150, format="png")


def print_paper_table(populations, num_seen, num_unseen):
    """As Table 1 of the paper: a line per rank, seen, unseen and overall accuracy of each population in percent."""
    means = [average_over_seeds(rows)[0] for rows in populations.values()]
    keys = ["K", "alpha"] if len({row["alpha"] for row in means[0]}) > 1 else ["K"]
    lines = [[*keys, *(text for a in populations for text in (f"a = {a:g}: seen", "unseen", "overall"))]]
    for ranks in zip(*means):
        line = [key_text(ranks[0], key) for key in keys]
        for row in ranks:
            overall = (num_seen * row["seen"] + num_unseen * row["unseen"]) / (num_seen + num_unseen)
            line += [f"{100 * value:.1f}" for value in (row["seen"], row["unseen"], overall)]
        lines.append(line)
    print_aligned(lines)


def main():
    args = settings(globals())
    torch_device = pick_device(args.device)
    args.results.mkdir(parents=True, exist_ok=True)
    sizes = (args.planted_prompts, args.planted_tests, args.planted_features)
    planted_kind = (*sizes, args.planted_agreement, args.planted_unexplained)
    train, test = planted(args.seed, *planted_kind) if args.synthetic else load_prompts(args.data)
    if args.standardise:
        train, test = standardised(train, test)
    seeds, populations = [args.seed + i for i in range(args.repeats)], {}
    for a in args.dirichlet_list:
        print(f"\npeople mix the reward models with w ~ Dirichlet({a:g})")
        people = (args.num_seen, args.num_unseen, args.train_prompts, args.few_shot_prompts, args.seed)
        groups, weights = draw_people(train, test, a, *people)
        output = args.results / f"train_basis{'_synthetic' if args.synthetic else ''}_a{a:g}"
        result = run(
            args.K_list, args.alpha_list, train.head, *groups, args.num_seen, args.num_unseen, torch_device,
            num_iterations=args.num_iterations, learning_rate=args.learning_rate, seeds=seeds, save=output,
            model=train.model,
        )  # fmt: skip
        populations[a] = rows = run_rows(result, args.K_list, args.alpha_list, seeds)
        print_run_table(rows)
        save_results(output, rows, args)
        plot_accuracy_vs_rank(output)
        K, alpha = max(args.K_list), args.alpha_list[0]
        if K > 0:
            basis = load_basis(basis_path(output, K, alpha, args.seed), train.table.shape[1])
            plot_mixtures(f"{output}_mixtures", weights[: args.num_seen], basis)
    print()
    print_paper_table(populations, args.num_seen, args.num_unseen)
    print(f"accuracy in percent; results are in {args.results}, one JSON and two pictures for each population")


if __name__ == "__main__":
    start(main)
