"""PersonalLLM, step 2: simulated people who mix ten reward models; a basis from seen ones, adapted to unseen ones.

    python PersonalLLM/train_basis.py --synthetic       planted reward models, nothing to download or prepare
    python PersonalLLM/train_basis.py                   the prepared responses; three populations as in the paper
    python PersonalLLM/train_basis.py --dirichlet_list 0.1 --K_list 1 2 5 10 20 50 --standardise

Reads:  data/{train,test}.{safetensors,parquet}, made by prepare.py
Writes: for each population results/train_basis_a*.json, .png, _mixtures.png, and V, W of each rank (planted:
        train_basis_synthetic_a*)
Cost:   no GPU needed; benchmarks/personalllm.py measures the full size. No model is loaded.
"""

import itertools
import math
import sys
from pathlib import Path
from typing import NamedTuple

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

import numpy as np
import torch

from lore.common import InputError, pick_device, start, written_whole
from lore.comparisons import Comparisons, Groups
from lore.evaluation import LORE
from lore.report import key_text, print_aligned, report
from lore.settings import alphas_of, repeats_of, settings
from lore.tables import load_split
from utils import run

# --------------------------------------------------------------------------------------------------- settings ---
K_list = [
    0,
    1,
    2,
    3,
    4,
    5,
]  # ranks: 0 = the reference head as it is, 1 = Bradley-Terry; up to 50 in the paper
alpha_list = [0.0]  # pull of every basis reward to the reference head, 0 = none
dirichlet_list = [
    0.001,
    0.01,
    0.1,
]  # one population each: w ~ Dirichlet(a); small a = everybody has one reward model
num_seen = 1000  # seen people of a population
num_unseen = 1000  # unseen people of a population
train_prompts = 45  # training prompts of a seen person
few_shot_prompts = 9  # training prompts known of an unseen person
standardise = False  # each reward model's scores to mean 0 and std 1 first, so that none outweighs another by its scale
solver = "adam"  # adam = as published, for num_iterations steps; ridge = chooses its own penalties on held-out prompts
num_iterations = 1000  # Adam steps of the joint fit, as published
learning_rate = 0.5  # of the joint fit, as published
repeats = 1  # fits from seeds seed, seed + 1, ...; the table then shows the spread over them
resplit = False  # each repeat also draws its people and their prompts anew; the spread is then over splits
baselines = False  # also one mixture for all, another's mixture, each user alone, and fits to shuffled labels
seed = 0  # of the people, of their prompts, of the start of the fits, of the planted reward models
device = "auto"  # auto, cpu, cuda, cuda:1
data = HERE / "data"  # prepared responses
results = HERE / "results"  # tables, pictures and bases
synthetic = False  # planted reward models instead of the prepared data
planted_prompts = 2000  # of --synthetic: training prompts, eight responses each
planted_tests = 300  # of --synthetic: test prompts
planted_features = 64  # of --synthetic: width of the embeddings
planted_agreement = (
    0.25  # of --synthetic: correlation of the explained parts of two reward models' scores
)
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
    """(train, test) Prompts. InputError: incomplete rows; sides that differ in model, width, responses or scores."""
    sides, kinds = [], []
    for side in ("train", "test"):
        path, split = (
            folder / f"{side}.parquet",
            load_split(folder / side, PREPARE, columns=["prompt", "response", "reply"]),
        )
        frame = split.frame.drop(columns=["prompt", "response", "reply"])
        R = split.frame["response"].nunique()
        P = split.frame["prompt"].nunique()
        order = np.stack([np.repeat(np.arange(P), R), np.tile(np.arange(R), P)], axis=1)
        if not P or not np.array_equal(split.frame[["prompt", "response"]].to_numpy(), order):
            raise InputError(
                f"{path}: {len(split.frame)} rows are not {R} responses to each of {P} prompts"
            )
        try:
            scores = frame.to_numpy(dtype=np.float64).reshape(P, R, -1)
        except ValueError as error:
            raise InputError(
                f"{path}: a score that is no number; make it again with: {PREPARE}"
            ) from error
        if not np.isfinite(scores).all():
            raise InputError(f"{path}: a score is NaN or infinite; make it again with: {PREPARE}")
        sides.append(
            Prompts(
                split.table,
                split.frame["reply"].to_numpy().reshape(P, R),
                scores,
                split.head,
                split.model,
            )
        )
        kinds.append(
            {
                "model": split.model,
                "width": split.table.shape[1],
                "responses": R,
                "reward models": [*frame],
            }
        )
    for what, value in kinds[0].items():
        if value != kinds[1][what]:
            raise InputError(
                f"{folder}: train and test differ in {what}: {value} and {kinds[1][what]}"
            )
    return tuple(sides)


def planted(
    seed, num_prompts=planted_prompts, num_tests=planted_tests, num_features=planted_features,
    agreement=planted_agreement, unexplained=planted_unexplained,
):  # fmt: skip
    """(train, test) Prompts: ten correlated reward models, linear in N(0, I) embeddings but for an unexplained part.

    The head is the mean of the ten directions, blurred: it knows roughly what people like, as a reward model does.
    """
    if not (num_prompts and num_tests and num_features and agreement <= 1 and unexplained < 1):
        raise InputError(
            "planted: at least one prompt, test and feature; agreement up to 1, unexplained below 1"
        )
    rng = np.random.default_rng(seed)
    unit = lambda columns: columns / np.linalg.norm(columns, axis=0)
    common, own = (unit(rng.standard_normal((num_features, count))) for count in (1, REWARD_MODELS))
    directions = unit(np.sqrt(agreement) * common + np.sqrt(1 - agreement) * own)  # (d, M)
    mean = directions.mean(axis=1, keepdims=True)
    head = mean + np.linalg.norm(mean) * rng.standard_normal((num_features, 1)) / np.sqrt(
        num_features
    )
    sides = []
    for count in (num_prompts, num_tests):
        table = rng.standard_normal((count * RESPONSES, num_features)).astype(np.float32)
        known = table @ directions  # (rows, d) @ (d, M)
        scores = np.sqrt(1 - unexplained) * known + np.sqrt(unexplained) * rng.standard_normal(
            known.shape
        )
        reply = np.arange(count * RESPONSES).reshape(count, RESPONSES)
        vectors = (torch.from_numpy(array) for array in (table, head.astype(np.float32)))
        sides.append(
            Prompts(next(vectors), reply, scores.reshape(count, RESPONSES, -1), next(vectors))
        )
    return tuple(sides)


def standardised(train, test):
    """Both sides with each reward model's scores in units of its spread over the training responses."""
    mean, std = train.scores.mean((0, 1)), train.scores.std((0, 1))
    if not std.all():
        raise InputError(
            f"standardise: reward model number {std.argmin()} gives all training responses one score"
        )
    return tuple(side._replace(scores=(side.scores - mean) / std) for side in (train, test))


def comparisons(prompts, weights, orders, count, names):
    """Each person's best against worst response to the first `count` prompts of their order that tell two apart.

    weights: (C, M) over the reward models; orders: C orders of prompt numbers; count 0 = all that do.
    -> (Comparisons, how many prompts were passed over: all scores equal, or best and worst one text)
    """
    users, chosen, rejected, asked, passed = [], [], [], [], 0
    for user, (w, order) in enumerate(zip(weights, orders)):
        score = prompts.scores @ w  # (P, R, M) @ (M,) -> (P, R)
        place, every = np.stack([score.argmax(1), score.argmin(1)]), np.arange(len(score))
        best, worst = prompts.reply[every, place]  # (P,) each
        told = (score[every, place[0]] > score[every, place[1]]) & (best != worst)
        usable = np.flatnonzero(told[order])[: count or None]  # places in the order
        if len(usable) < count:
            raise InputError(
                f"{names[user]}: {len(usable)} prompts tell responses apart, {count} were asked for"
            )
        passed += (~told[order[: usable[-1] + 1 if count else None]]).sum()
        users.append(np.full(len(usable), user))
        chosen.append(best[order[usable]])
        rejected.append(worst[order[usable]])
        asked.append(order[usable])
    parts = (users, chosen, rejected, asked)
    user, chosen, rejected, asked = (torch.from_numpy(np.concatenate(part)) for part in parts)
    return Comparisons(prompts.table, user, names, chosen, rejected, prompt=asked), int(passed)


def check_populations(dirichlet_list):
    for a in dirichlet_list:
        if not 0 < a < math.inf:
            raise InputError(
                f"dirichlet_list: {a:g} is no Dirichlet parameter; it must be above 0 and finite"
            )
    if len({f"{a:g}" for a in dirichlet_list}) < len(dirichlet_list):
        raise InputError("dirichlet_list holds a value twice")


def draw_people(train, test, a, num_seen, num_unseen, train_prompts, few_shot_prompts, seed):
    """(Groups, (C, M) weights of the seen people): one population, whatever other populations there are.

    Each person's weights and order of prompts follow from seed, a and their number alone.
    """
    P, M = len(train.scores), train.scores.shape[2]
    if not (0 < train_prompts <= P and 0 < few_shot_prompts <= P):
        raise InputError(
            f"{train_prompts} and {few_shot_prompts} prompts a person: between 1 and {P} are there to draw from"
        )
    if not (num_seen and num_unseen):
        raise InputError("num_seen and num_unseen: at least one person each")
    groups, passed, truth = [], [], []
    root = np.random.default_rng([seed, round(1e9 * a)])
    for kind, count, prompts_each in (
        ("seen", num_seen, train_prompts),
        ("unseen", num_unseen, few_shot_prompts),
    ):
        weights_rng, order_rng = root.spawn(2)
        weights = weights_rng.dirichlet(np.full(M, a), count)
        names = tuple(f"{kind}{i:04d}" for i in range(count))
        orders = (order_rng.permutation(P) for _ in names)
        everything = itertools.repeat(np.arange(len(test.scores)))
        truth.append(weights)
        for prompts, order, number in ((train, orders, prompts_each), (test, everything, 0)):
            group, dropped = comparisons(prompts, weights, order, number, names)
            groups.append(group)
            passed.append(dropped)
    groups = Groups(*groups)
    for name, group, dropped in zip(groups._fields, groups, passed):
        note = f"; {dropped} prompts passed over: equal scores, or one text" if dropped else ""
        print(
            f"{name:15} {len(group.user_ids):5} people {len(group):8} pairs, d = {group.num_features}{note}"
        )
    return groups, truth[0]


def plot_mixtures(path, weights, learned, title):
    """PATH.png: each seen person's true weights over the reward models beside the learned ones, (C, K)."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    order = np.lexsort((-weights.max(axis=1), weights.argmax(axis=1)))
    figure, panels = pyplot.subplots(1, 2, figsize=(7, 4), sharey=True, layout="constrained")
    titles = (("true mixtures", "reward model"), (title, "basis reward"))
    for axes, values, (title, label) in zip(panels, (weights, learned), titles):
        extent = (-0.5, values.shape[1] - 0.5, len(values), 0)
        image = axes.imshow(
            values[order], aspect="auto", vmin=0, vmax=1, interpolation="nearest", extent=extent
        )
        axes.set_title(title, fontsize=9)
        axes.set_xlabel(label)
        axes.xaxis.get_major_locator().set_params(integer=True)
    panels[0].set_ylabel("seen people, by their strongest reward model")
    figure.colorbar(image, ax=panels, label="weight")
    with written_whole(f"{path}.png") as file:
        figure.savefig(file, dpi=150, format="png")
    pyplot.close(figure)


def print_paper_table(populations, num_seen, num_unseen):
    """As Table 1 of the paper: a line per rank, seen, unseen and overall accuracy of each population in percent."""
    means = list(populations.values())
    keys = ["K", "alpha"] if len({row["alpha"] for row in means[0]} - {None}) > 1 else ["K"]
    lines = [
        [*keys, *(text for a in populations for text in (f"a = {a:g}: seen", "unseen", "overall"))]
    ]
    for ranks in zip(*means):
        line = [key_text(ranks[0], key) for key in keys]
        for row in ranks:
            overall = (num_seen * row["seen"] + num_unseen * row["unseen"]) / (
                num_seen + num_unseen
            )
            line += [f"{100 * value:.1f}" for value in (row["seen"], row["unseen"], overall)]
        lines.append(line)
    print_aligned(lines)


def main():
    args = settings(globals())
    torch_device, alpha_list = pick_device(args.device), alphas_of(args)
    args.results.mkdir(parents=True, exist_ok=True)
    sizes = (args.planted_prompts, args.planted_tests, args.planted_features)
    planted_kind = (*sizes, args.planted_agreement, args.planted_unexplained)
    train, test = planted(args.seed, *planted_kind) if args.synthetic else load_prompts(args.data)
    check_populations(args.dirichlet_list)
    kind = "_synthetic" * args.synthetic + "_standardised" * args.standardise
    if args.standardise:
        train, test = standardised(train, test)
    populations = {}
    for a in args.dirichlet_list:
        print(f"\npeople mix the reward models with w ~ Dirichlet({a:g})")
        sizes, output = (args.num_seen, args.num_unseen), args.results / f"train_basis{kind}_a{a:g}"
        cells, truth = [], {}
        for starts in repeats_of(args):
            people = (*sizes, args.train_prompts, args.few_shot_prompts, starts[0])
            groups, truth[starts[0]] = draw_people(train, test, a, *people)
            cells += run(
                args.K_list, alpha_list, train.head, *groups, *sizes, torch_device,
                num_iterations=args.num_iterations, learning_rate=args.learning_rate, seeds=starts, solver=args.solver,
                baselines=args.baselines, save=output, model=train.model,
            ).cells  # fmt: skip
        populations[a] = report(output, cells, args)
        first = next(
            (c for c in cells if (c.K, c.seed, c.model) == (max(args.K_list), args.seed, LORE)),
            None,
        )
        if first is not None and first.K > 0:
            title = f"learned, K = {first.K}, alpha = {first.alpha:g}, seed {args.seed}"
            plot_mixtures(f"{output}_mixtures", truth[args.seed], first.fit.W.cpu().numpy(), title)
    print()
    print_paper_table(populations, args.num_seen, args.num_unseen)
    print(
        f"accuracy in percent; results are in {args.results}, one JSON and its pictures for each population"
    )


if __name__ == "__main__":
    start(main)
