"""PRISM, step 3: learn a basis of rewards from seen people, adapt it to unseen ones, sweep the rank.

    python PRISM/train_basis.py --synthetic        planted people in dialogues of the real structure, nothing to prepare
    python PRISM/train_basis.py                    the prepared dialogues
    python PRISM/train_basis.py --K_list 1 10 --alpha_list 0 1e4 --num_iterations 2000

Reads:  data/prism.{safetensors,parquet}, data/prism_split_ids_50.json, made by the two steps before
Writes: results/train_basis.json, .png, and V, W, user ids of each rank as .safetensors (planted: *_synthetic.*)
Cost:   20,000 steps; the default sweep of planted people takes about two minutes on two cores. No model is loaded.
"""

import hashlib
import json
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

import numpy as np
import torch
from prepare import split_users

from lore.basis import basis_health
from lore.common import InputError, pick_device, start
from lore.comparisons import Comparisons, Groups
from lore.evaluation import LORE, best_cell
from lore.planted import Planted, planted_rewards, solve_temperature
from lore.report import print_health, report, run_rows
from lore.settings import alphas_of, repeats_of, settings
from lore.tables import Split, load_split
from utils import run_regularized

# --------------------------------------------------------------------------------------------------- settings ---
K_list = [0, 1, 5, 10, 15, 20, 25, 50]  # ranks: 0 = the reference head as it is, 1 = Bradley-Terry
alpha_list = [
    1e4
]  # pull of every basis reward to the reference head, 0 = none (needed where there is no head)
solver = "adam"  # adam = as published, for num_iterations steps; ridge = chooses its own penalties on held-out prompts
num_iterations = 20000  # alternating Adam steps of the joint fit, as published
learning_rate = 0.5  # of the joint fit, as published
repeats = 1  # fits from seeds seed, seed + 1, ...; the table then shows the spread over them
resplit = False  # each repeat also draws its people and dialogues anew, as many; the spread is then over splits
baselines = False  # also one mixture for all, another's mixture, each user alone, and fits to shuffled labels
seed = 0  # of the start of the fits, of the planted people
device = "auto"  # auto, cpu, cuda, cuda:1
data = HERE / "data"  # prepared dialogues
results = HERE / "results"  # table, picture and bases
synthetic = False  # planted people instead of the prepared data
planted_users = 200  # of --synthetic: people, 80 % of them seen
planted_features = 64  # of --synthetic: width of the embeddings
planted_directions = 4  # of --synthetic: hidden rewards that people mix
planted_concentration = (
    0.2  # of --synthetic: Dirichlet parameter of the mixtures; small = different people
)
planted_accuracy = (
    0.9  # of --synthetic: how often a pair agrees with the person's true reward; the rest is noise
)
# --------------------------------------------------------------------------------------------------------------------

COLLAPSED = (
    0.99  # cosine to the reference head above which a column counts as nothing but that head
)
STEPS_BEFORE = "python PRISM/prepare.py && python PRISM/generate-prism-embeddings.py"

# How many dialogues of PRISM have so many replies, and how many people with six or more dialogues have so many: counted
# in the ids that github.com/HannahKirk/prism-alignment publishes (results/clusters: 8,011 dialogues, 68,371 replies).
DIALOGUES_OF_REPLIES = {
    3: 4, 4: 57, 5: 525, 6: 2191, 7: 497, 8: 1906, 9: 311, 10: 1083, 11: 151, 12: 554, 13: 68, 14: 309, 15: 34, 16: 119,
    17: 19, 18: 69, 19: 7, 20: 33, 21: 8, 22: 43, 23: 2, 24: 9, 26: 6, 27: 3, 28: 2, 44: 1,
}  # fmt: skip
PEOPLE_OF_DIALOGUES = {6: 1283, 7: 5}


def replies_per_turn(replies):
    """Replies of a dialogue, turn by turn: up to four to the first question, two to each later one."""
    first = replies - 2 if replies < 5 else 4 - replies % 2
    return [first] + [2] * ((replies - first) // 2)


def draw(rng, counts, size):
    """Keys of a {key: count}, drawn as often as they occur."""
    values, weights = np.array(list(counts)), np.array(list(counts.values()))
    return rng.choice(values, size, p=weights / weights.sum())


def planted_dialogues(
    seed, num_users=planted_users, num_features=planted_features, num_directions=planted_directions,
    concentration=planted_concentration, best_accuracy=planted_accuracy,
):  # fmt: skip
    """(Planted, split ids): people who mix hidden rewards choose one of the replies of each turn of their dialogues.

    Reply embeddings N(0, I); reply a is chosen with probability softmax((e_a @ V @ w_i) / T) among the turn's, and T is
    solved so that a pair (chosen, rejected) agrees with the true reward with probability best_accuracy.
    """
    import pandas as pd

    rng = np.random.default_rng(seed)
    V, W, head = planted_rewards(num_users, num_features, num_directions, concentration, rng)
    users = {f"planted{i:04d}": [] for i in range(num_users)}
    turns = []  # (user number, dialogue, turn, replies)
    for number, (user, count) in enumerate(zip(users, draw(rng, PEOPLE_OF_DIALOGUES, num_users))):
        for replies in draw(rng, DIALOGUES_OF_REPLIES, count):
            dialogue = f"{user}.{len(users[user])}"
            users[user].append(dialogue)
            turns += [
                (number, dialogue, turn, size)
                for turn, size in enumerate(replies_per_turn(int(replies)))
            ]
    sizes = np.array([size for *_, size in turns])
    first = np.cumsum(sizes) - sizes  # table row of each turn's first reply
    table = rng.standard_normal((sizes.sum(), num_features)).astype(np.float32)
    owner = np.repeat([number for number, *_ in turns], sizes)
    score = ((table @ V) * W[owner]).sum(
        1
    )  # (rows, d) @ (d, directions) -> (rows, directions) -> (rows,)
    place = np.arange(4)
    padded = np.where(
        place < sizes[:, None], score[np.minimum(first[:, None] + place, len(score) - 1)], -np.inf
    )
    worse = (padded[:, None, :] < padded[:, :, None]) & (place < sizes[:, None])[
        :, None, :
    ]  # (turns, reply, other)

    def choice(T):  # probability of each reply of each turn, (turns, 4)
        odds = np.exp((padded - padded.max(1, keepdims=True)) / T)
        return odds / odds.sum(1, keepdims=True)

    agreement = lambda T: (choice(T) * worse.sum(2)).sum() / (sizes - 1).sum()
    probability = choice(solve_temperature(agreement, best_accuracy, np.abs(score).mean()))
    chosen = (
        probability.cumsum(1) < rng.random((len(turns), 1)) * probability.sum(1, keepdims=True)
    ).sum(1)
    pairs = [
        (f"planted{number:04d}", dialogue, turn, begin + picked, begin + other)
        for (number, dialogue, turn, size), begin, picked in zip(turns, first, chosen)
        for other in range(size)
        if other != picked
    ]
    frame = pd.DataFrame(pairs, columns=["user_id", "dialogue", "turn", "chosen", "rejected"])
    mixtures = {user: torch.from_numpy(w.astype(np.float32)) for user, w in zip(users, W)}
    split = Split(torch.from_numpy(table), frame, torch.from_numpy(head.astype(np.float32)))
    ids = split_users(users, seen_fraction=0.8, train_fraction=0.5, min_dialogues=6, seed=seed)
    return Planted({"prism": split}, torch.from_numpy(V.astype(np.float32)), mixtures), ids


def load_dialogues(folder):
    """(Split, split ids) of the prepared data."""
    path = folder / "prism_split_ids_50.json"
    if not path.exists():
        raise InputError(f"{path} is missing; make it with: {STEPS_BEFORE}")
    try:
        ids = json.loads(path.read_text())
        if not {"train_dialog_ids", "test_dialog_ids", "seen_user_ids", "unseen_user_ids"} <= {
            *ids
        }:
            raise ValueError("a key is missing")
    except (ValueError, TypeError) as error:
        raise InputError(
            f"{path} is damaged ({error}); make it again with: python PRISM/prepare.py"
        ) from error
    split, dialogues = load_split(folder / "prism", STEPS_BEFORE), folder / "dialogues.jsonl"
    if dialogues.exists() and hashlib.sha256(dialogues.read_bytes()).hexdigest() != split.made_from:
        raise InputError(
            f"{folder / 'prism'}.safetensors was made of another {dialogues}; delete it and its .parquet and run again:"
            " python PRISM/generate-prism-embeddings.py"
        )
    return split, ids


def split_dialogues(split, ids):
    """Groups of the seen and unseen people by training and test dialogues; one shot is one dialogue."""
    on_train, on_test = (
        split.frame["dialogue"].isin(ids[f"{side}_dialog_ids"]) for side in ("train", "test")
    )
    if (on_train & on_test).any() or {*ids["seen_user_ids"]} & {*ids["unseen_user_ids"]}:
        raise InputError(
            "a dialogue is on both the training and the test side of the split, or a person seen and unseen"
        )
    train, test = split.frame[on_train], split.frame[on_test]
    complete = {*train["user_id"]} & {*test["user_id"]}
    seen, unseen = (sorted(complete & {*ids[f"{kind}_user_ids"]}) for kind in ("seen", "unseen"))
    missing = len(ids["seen_user_ids"]) + len(ids["unseen_user_ids"]) - len(seen) - len(unseen)
    if not (seen and unseen):
        raise InputError(
            "no seen or no unseen people have pairs in both training and test dialogues"
        )
    groups = Groups(
        Comparisons.from_frame(split.table, train, seen, "dialogue", prompt="dialogue"),
        Comparisons.from_frame(split.table, test, seen, "dialogue"),
        Comparisons.from_frame(split.table, train, unseen, "dialogue"),
        Comparisons.from_frame(split.table, test, unseen, "dialogue"),
    )
    for name, group in zip(groups._fields, groups):
        counts, dialogues = group.counts, len(group.shot.unique())
        spread = f"{counts.min()} .. {counts.max()} a person, mean {counts.double().mean():.1f}"
        print(
            f"{name:15} {len(group.user_ids):5} people {dialogues:6} dialogues {len(group):7} pairs ({spread})"
        )
    print(
        f"left out: {missing} people without pairs on both sides; {(~(on_train | on_test)).sum()} pairs of no side"
    )
    return groups


def drawn_anew(split, ids, seed):
    """Split ids of the same people and dialogues, drawn anew: as many seen, the same share of dialogues to train on."""
    sides = {name: {*ids[name]} for name in ids}
    used = split.frame[
        split.frame["dialogue"].isin(sides["train_dialog_ids"] | sides["test_dialog_ids"])
    ]
    users = {user: sorted({*dialogues}) for user, dialogues in used.groupby("user_id")["dialogue"]}
    seen, train = (
        len(sides[a]) / (len(sides[a]) + len(sides[b]))
        for a, b in (("seen_user_ids", "unseen_user_ids"), ("train_dialog_ids", "test_dialog_ids"))
    )
    return split_users(
        users, seen, round(train, 2), min_dialogues=1, seed=seed
    )  # odd numbers are rounded down: 0.4997


def main():
    args = settings(globals())
    torch_device, alpha_list = pick_device(args.device), alphas_of(args)
    args.results.mkdir(parents=True, exist_ok=True)
    if args.synthetic:
        population, ids = planted_dialogues(
            args.seed, args.planted_users, args.planted_features, args.planted_directions, args.planted_concentration,
            args.planted_accuracy,
        )  # fmt: skip
        split = population.splits["prism"]
    else:
        population, (split, ids) = None, load_dialogues(args.data)
    output = args.results / ("train_basis_synthetic" if args.synthetic else "train_basis")
    cells = []
    for starts in repeats_of(args):
        groups = split_dialogues(split, drawn_anew(split, ids, starts[0]) if args.resplit else ids)
        seen, unseen = groups.train.user_ids, groups.unseen.user_ids
        cells += run_regularized(
            args.K_list, alpha_list, split.head, *groups, len(seen), len(unseen), torch_device,
            num_iterations=args.num_iterations, learning_rate=args.learning_rate, seeds=starts, solver=args.solver,
            baselines=args.baselines, save=output, model=split.model,
        ).cells  # fmt: skip
        if population is not None:
            cells.append(best_cell(population, groups, starts[0]))
    rows = run_rows(cells)
    for row, cell in zip(rows, cells):
        if cell.fit is not None and cell.model == LORE and cell.K not in (0, "best"):
            row |= basis_health(cell.fit.V, cell.fit.W, split.head)
    if population is not None:
        print(
            f"planted people: the best possible accuracy is {args.planted_accuracy:.0%} by construction"
        )
    report(output, cells, args, rows)
    print_health(rows)
    if any(
        row.get("columns", 0) > 1 and row["to_head"] and row["to_head"][0] > COLLAPSED
        for row in rows
    ):
        print(
            "some bases are the reference head several times over: their pull to it is too strong to learn anything"
        )
    print(f"results are in {output}.json and .png, V and W beside them")


if __name__ == "__main__":
    start(main)
