"""The people of PersonalLLM: simulated, each with their own mixture of ten reward models.

prepare.py leaves data/train and data/test. A side is NAME.safetensors (`embeddings` of prompts with
a response, `head`) and NAME.parquet, a row per response, as many to each prompt: `prompt`,
`response` (0, 1, ..), `reply` (row of the embeddings), a score by each reward model.

    load(folder)            PromptSides: what prepare.py has left
    plant(args)             the same with planted reward models: the settings below
    split(sides, a, ..)     Groups: people drawn for a, what each is fitted and tested on
"""

from itertools import repeat
from typing import NamedTuple

import numpy as np
import torch

from lore.common import require
from lore.fit.comparisons import Comparisons, content
from lore.fit.groups import Groups, print_groups
from lore.fit.planted import blurred, float32
from lore.splits import load_split

# ------------------------------------------------------------------------------- settings ---
planted_prompts = 2000  # of --synthetic: training prompts, eight responses each
planted_tests = 300  # of --synthetic: test prompts
planted_features = 64  # of --synthetic: width of the embeddings
planted_agreement = 0.25  # of --synthetic: correlation of what is explained of two models' scores
planted_unexplained = 0.15  # of --synthetic: share of a score's variance that no embedding tells
# -------------------------------------------------------------------------------------------

PREPARE = "python PersonalLLM/prepare.py"
PLACE = ["prompt", "response", "reply"]  # columns of a prepared file beside the scores
REWARD_MODELS = (  # whose scores a person mixes, in the order of the published code
    "gemma_2b", "gemma_7b", "mistral_raft", "llama3_sfairx", "oasst_deberta_v3", "beaver_7b",
    "oasst_pythia_7b", "oasst_pythia_1b", "mistral_ray", "mistral_weqweasdas",
)  # fmt: skip
RESPONSES = 8  # of --synthetic, as upstream


class Prompts(NamedTuple):
    table: torch.Tensor  # (rows, d) embeddings
    reply: np.ndarray  # (P, R) table row of each response
    scores: np.ndarray  # (P, R, M) of each response by each reward model


class PromptSides(NamedTuple):
    train: Prompts
    test: Prompts
    head: torch.Tensor | None  # V_ref, (d, 1)
    model: str = ""

    def standardised(self):
        """Each reward model's scores in units of its spread over the training responses."""
        mean = self.train.scores.mean((0, 1))
        std = self.train.scores.std((0, 1))
        which = f"reward model number {std.argmin()}"
        require(std.all(), f"standardise: {which} gives all training responses one score")
        train = self.train._replace(scores=(self.train.scores - mean) / std)
        test = self.test._replace(scores=(self.test.scores - mean) / std)
        return self._replace(train=train, test=test)


def load(folder):
    """Both sides. InputError: incomplete rows; sides that differ in model, width, responses, scores."""
    splits = []
    sides = []
    for name in ("train", "test"):
        splits.append(load_split(folder / name, PREPARE, PLACE, needed=REWARD_MODELS))
        sides.append(prompts_of(splits[-1], folder / f"{name}.parquet"))
    kinds = [(s.model, s.table.shape[1], side.reply.shape[1]) for s, side in zip(splits, sides)]
    for what, train, test in zip(("model", "width", "responses"), *kinds):
        require(train == test, f"{folder}: train and test differ in {what}: {train} and {test}")
    return PromptSides(*sides, splits[0].head, splits[0].model)


def prompts_of(split, path):
    """A prepared side, whose rows are every response to every prompt in any order, as arrays."""
    import pandas as pd

    frame = split.frame.sort_values(["prompt", "response"])
    P = frame["prompt"].nunique()  # those that were too long are not among them
    R = frame["response"].nunique()
    complete = len(frame) == P * R and not frame.duplicated(["prompt", "response"]).any()
    require(P and complete, f"{path}: {len(frame)} rows are not {R} responses to each of {P} prompts")
    scores = frame[[*REWARD_MODELS]].apply(pd.to_numeric, errors="coerce").to_numpy(dtype=np.float64)
    require(np.isfinite(scores).all(), f"{path}: a score that is no number; make it again with: {PREPARE}")
    return Prompts(split.table, frame["reply"].to_numpy().reshape(P, R), scores.reshape(P, R, -1))


def plant(args):
    """Sides with ten correlated reward models, linear in N(0, I) embeddings but for a part.

    The head is the mean of the ten directions, blurred: it knows roughly what people like.
    """
    agreement = args.planted_agreement
    unexplained = args.planted_unexplained
    sizes = (args.planted_prompts, args.planted_tests, args.planted_features)
    allowed = "at least one prompt, test and feature; agreement up to 1, unexplained below 1"
    require(all(sizes) and agreement <= 1 and unexplained < 1, f"planted: {allowed}")
    rng = np.random.default_rng(args.seed)
    common = unit(rng.standard_normal((args.planted_features, 1)))
    of_each = unit(rng.standard_normal((args.planted_features, len(REWARD_MODELS))))
    directions = unit(np.sqrt(agreement) * common + np.sqrt(1 - agreement) * of_each)  # (d, M)
    head = blurred(directions.mean(axis=1, keepdims=True), rng)
    sides = []
    for count in (args.planted_prompts, args.planted_tests):
        table = rng.standard_normal((count * RESPONSES, args.planted_features)).astype(np.float32)
        explained = table @ directions  # (rows, d) @ (d, M)
        scores = np.sqrt(1 - unexplained) * explained
        scores += np.sqrt(unexplained) * rng.standard_normal(explained.shape)
        reply = np.arange(len(table)).reshape(count, RESPONSES)
        sides.append(Prompts(float32(table), reply, scores.reshape(count, RESPONSES, -1)))
    return PromptSides(*sides, float32(head))


def unit(columns):
    return columns / np.linalg.norm(columns, axis=0)


def sides_of(args):
    """PromptSides as the settings of a script ask for them. InputError: no Dirichlet parameter, or one twice."""
    require(all(args.dirichlet_list), "dirichlet_list: 0 is no Dirichlet parameter")
    names = {f"{a:g}" for a in args.dirichlet_list}  # of the files
    require(len(names) == len(args.dirichlet_list), "dirichlet_list holds a value twice")
    sides = plant(args) if args.synthetic else load(args.data)
    return sides.standardised() if args.standardise else sides


def split(sides, a, num_seen, num_unseen, train_prompts, few_shot_prompts, seed):
    """Groups of one population, w ~ Dirichlet(a), whatever other populations there are.

    Seen people are fitted on train_prompts each, few_shot_prompts of unseen ones are known, and all
    are tested on all test prompts. A person follows from seed, a and their number alone.
    """
    P = len(sides.train.scores)
    possible = 0 < train_prompts <= P and 0 < few_shot_prompts <= P
    asked = f"{train_prompts} and {few_shot_prompts} prompts a person"
    require(possible, f"{asked}: between 1 and {P} are there to draw from")
    require(num_seen and num_unseen, "num_seen and num_unseen: at least one person each")
    every = repeat(np.arange(len(sides.test.scores)))  # test prompts, in order, for each person
    groups = []
    passed = 0
    kinds = (("seen", num_seen, train_prompts), ("unseen", num_unseen, few_shot_prompts))
    for kind, count, number in kinds:
        W, rng = true_mixtures(sides, a, kind, count, seed)
        names = tuple(f"{kind}{i:04d}" for i in range(count))
        orders = (rng.permutation(P) for _ in names)
        train = best_against_worst(*sides.train, W, orders, number, names)
        test = best_against_worst(*sides.test, W, every, 0, names)
        groups += [train[0], test[0]]
        passed += train[1] + test[1]
    groups = Groups(*groups)
    print_groups(groups, "people")
    if passed:
        print(f"left out: {passed} times a prompt of a person, for equal scores, or one text")
    return groups


def true_mixtures(sides, a, kind, count, seed):
    """w ~ Dirichlet(a) of people over the reward models, (C, M), and the stream of their prompts."""
    streams = np.random.default_rng([seed, round(1e9 * a)]).spawn(4)
    mixtures, prompts = streams[:2] if kind == "seen" else streams[2:]
    return mixtures.dirichlet(np.full(sides.train.scores.shape[2], a), count), prompts


def best_against_worst(table, replies, scores, W, orders, count, names):
    """Each person's best against worst response to the first `count` prompts that tell two apart.

    replies: (P, R) rows of the table; scores: (P, R, M) of theirs by M reward models, which people
    weigh by W (C, M); orders: C orders of prompt numbers; count 0 = all that do.
    -> (Comparisons, how many prompts were passed over: scores all equal, or best and worst one text)
    """
    parts = []  # of each person: numbers, chosen rows, rejected rows, prompts
    passed = 0
    every = np.arange(len(scores))
    for user, (w, order) in enumerate(zip(W, orders)):
        score = scores @ w  # (P, R, M) @ (M,) -> (P, R)
        best = score.argmax(axis=1)  # (P,)
        worst = score.argmin(axis=1)
        chosen = replies[every, best]
        rejected = replies[every, worst]
        told = (score[every, best] > score[every, worst]) & (chosen != rejected)
        usable = np.flatnonzero(told[order])[: count or None]  # places in the order
        there = f"{len(usable)} prompts tell responses apart"
        require(len(usable) >= count, f"{names[user]}: {there}, {count} were asked for")
        looked_at = usable[-1] + 1 if count else len(order)
        passed += int((~told[order[:looked_at]]).sum())
        asked = order[usable]
        parts.append((np.full(len(usable), user), chosen[asked], rejected[asked], asked))
    user, chosen, rejected, prompt = (torch.from_numpy(np.concatenate(part)) for part in zip(*parts))
    item = content(table[torch.from_numpy(replies[:, 0])])  # (P,) prompt 3 of a side is one of it
    return Comparisons(table, user, names, chosen, rejected, prompt=item[prompt]), passed
