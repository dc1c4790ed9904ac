"""The published numbers, what each was measured on, and the command that makes ours.

Accuracies in percent as the paper prints them (arXiv 2504.14439, version 1; PersonalLLM is its Table 1): of seen and of
unseen people, means over 20 random splits. Its ± over these splits is not written down here. RewardBench 2 is what its
leaderboard has of the reference reward model.
"""

from itertools import product
from typing import NamedTuple

ENCODER = "Skywork-Reward-Llama-3.1-8B-v0.2"
PERSONALLLM = "PersonalLLM"
TLDR = "Reddit TL;DR"
PRISM = "PRISM"
CURVE = "Reddit TL;DR, few-shot curve"
BENCH = "RewardBench 2"
HALF = "half of the dialogues"
REFERENCE = "reference"
BRADLEY_TERRY = "Bradley-Terry"
LORE = "LoRe"
TABLES = {PERSONALLLM: ("a = 0.001", "a = 0.01", "a = 0.1"), TLDR: ("100 pairs", "150 pairs"), PRISM: (HALF,)}
PRINTED = {  # seen and unseen people, in the order of all these columns
    REFERENCE: "78.4 76.1  78.1 77.8  82.7 83.7  56.3 57.3  56.3 57.3  58.8 57.3",
    BRADLEY_TERRY: "86.3 86.4  87.8 87.2  93.2 93.1  60.0 60.0  63.2 64.3  64.0 61.0",
    "VPL": "86.4 86.5  93.9 84.1  92.0 92.8  63.6 62.1  63.4 62.7  64.6 58.2",
    "PAL": "85.0 86.5  86.1 87.1  91.7 91.8  64.1 64.9  64.4 63.8  70.8 59.0",
    LORE: "94.3 93.3  94.6 93.6  96.0 96.1  65.0 66.2  66.2 66.7  71.0 71.0",
}
UNSEEN_BY_SHOTS = {  # of LoRe, 150 pairs of the seen
    5: 64.7, 10: 65.1, 15: 65.6, 20: 65.8, 25: 65.9, 30: 66.0, 35: 66.2, 40: 66.2, 45: 66.6, 50: 66.7,
}  # fmt: skip
BENCH_SCORES = {
    "Factuality": 69.7, "Precise IF": 40.6, "Math": 60.1, "Safety": 94.2, "Focus": 94.1, "Ties": 71.7,
    "Overall": 71.7,
}  # fmt: skip


class Number(NamedTuple):
    """Which number: its place in a table."""

    table: str
    column: str
    method: str
    group: str  # seen, unseen, or rows of RewardBench 2


def published_numbers():
    """{Number: percent}, in the order of the tables."""
    numbers = {}
    printed = {method: iter(map(float, line.split())) for method, line in PRINTED.items()}
    for table, columns in TABLES.items():
        for column, method, group in product(columns, PRINTED, ("seen", "unseen")):
            numbers[Number(table, column, method, group)] = next(printed[method])
    for shots, percent in UNSEEN_BY_SHOTS.items():
        numbers[Number(CURVE, f"{shots} shots", LORE, "unseen")] = percent
    for subset, percent in BENCH_SCORES.items():
        numbers[Number(BENCH, subset, REFERENCE, "rows")] = percent
    return numbers


# ------------------------------------------------------------------------------------------------
# What they were measured on
# ------------------------------------------------------------------------------------------------


class Protocol(NamedTuple):
    """What a run has to be for its numbers to be compared with the published ones."""

    name: str
    settings: dict  # of its script, by name
    people: tuple = ()  # seen, unseen; 0 = any
    splits: int = 1  # at least
    alpha: float = 0.0
    tests: int = 0  # pairs that each person is tested on, at least; 0 = any


PAPER = "paper"
CODE = "published code"
ADAM = {"synthetic": False, "solver": "adam", "num_iterations": 1000, "learning_rate": 0.5}
WORKERS = {"train_posts": 0.0, "min_comparisons": 50, "drop_smallest": 0}
ALL_WORKERS = WORKERS | {"min_comparisons": 1, "drop_smallest": 2}  # but the two smallest of each side
ON_CURVE = {"num_iterations": 500, "max_train": 150, "max_few_shot": 100, "trials": 20}
POPULATION = {"num_seen": 1000, "num_unseen": 1000, "train_prompts": 45, "few_shot_prompts": 9}
RAW = ADAM | {"standardise": False}
LONG = ADAM | {"num_iterations": 20000}
SPLITS = 20
TEST_PROMPTS = 990  # of 1,000: prompts whose responses are scored alike are passed over
PROTOCOLS = {
    PERSONALLLM: (
        Protocol(PAPER, RAW | POPULATION, (1000, 1000), SPLITS, tests=TEST_PROMPTS),
        Protocol(
            CODE, RAW | POPULATION | {"num_unseen": 500, "train_prompts": 47}, (1000, 500),
            tests=TEST_PROMPTS,
        ),
    ),
    TLDR: (
        Protocol(PAPER, ADAM | WORKERS | {"max_few_shot": 50}, (20, 20), SPLITS),
        Protocol(CODE, ADAM | ALL_WORKERS | {"max_few_shot": 50}, (20, 20)),
    ),
    PRISM: (
        Protocol(PAPER, LONG | {"seen_fraction": 0.5}, (643, 643), SPLITS),
        Protocol(CODE, LONG | {"seen_fraction": 0.0}, (1029, 258), alpha=1e4),
    ),
    CURVE: (
        Protocol(PAPER, ADAM | WORKERS | ON_CURVE, (0, 20)),
        Protocol(CODE, ADAM | ALL_WORKERS | ON_CURVE, (0, 20)),
    ),
    BENCH: (Protocol("official", {"subset": "", "limit": 0, "pooling": "last"}),),
}  # fmt: skip

# ------------------------------------------------------------------------------------------------
# The commands, and what they cost
# ------------------------------------------------------------------------------------------------

RANKS = "--K_list 0 1 2 5 10 20 50"  # the paper's list of ranks is {2, 5, ..., 50}
ANEW = f"--repeats 20 --resplit {RANKS}"
TIMED = "GPU hours unknown, at 30,000 tokens a second on an H200 (made-up texts)"
RATE = "at 3.5 texts a second, as reported of the published code"
WEIGHTS = "beside 16 GB of weights"
RIVALS_COMMAND = "python benchmarks/compare_rivals.py --prepared --seeds 20"
EMBED = "embeddings"
AS_PAPER = "as in the paper"
AS_CODE = "as the published code"
DROPPED = "--min_comparisons 1 --drop_smallest 2 --results RedditTLDR/results/code"
COMMANDS = {  # table -> [(what it is, command, cost)]
    PERSONALLLM: [
        (EMBED, "python PersonalLLM/prepare.py",
         f"{TIMED}; 83,216 texts, 6.6 h {RATE}; disk 0.7 GB {WEIGHTS}"),
        (AS_PAPER, f"python PersonalLLM/train_basis.py {ANEW} --results PersonalLLM/results/paper",
         "no GPU; hours unknown: 4.1 minutes a population and split were measured for K = 0 .. 5, no star"),
        (AS_CODE, "python PersonalLLM/train_basis.py --dirichlet_list 0.1 --num_unseen 500 --train_prompts 47"
         " --results PersonalLLM/results/code", "no GPU; about 8 minutes: 4.1 were measured without the star"),
    ],
    TLDR: [
        (EMBED, "python RedditTLDR/prepare.py",
         f"{TIMED}; at most 357,888 texts, 28 h {RATE}; disk at most 2.9 GB {WEIGHTS}"),
        (AS_PAPER, f"python RedditTLDR/train_basis.py {ANEW} --max_train 100 150"
         " --results RedditTLDR/results/paper", "no GPU; hours unknown"),
        (AS_CODE, f"python RedditTLDR/train_basis.py {DROPPED}", "no GPU; hours unknown"),
    ],
    PRISM: [
        (EMBED, "python PRISM/prepare.py && python PRISM/generate-prism-embeddings.py",
         f"{TIMED}, for PRISM 0.1; published code: 45 minutes to 4 h reported on an A100; disk 0.6 GB {WEIGHTS}"),
        (AS_PAPER, f"python PRISM/train_basis.py {ANEW} --seen_fraction 0.5 --alpha_list 0"
         " --results PRISM/results/paper",
         "no GPU; at most 53 h on two cores: 20,000 steps of 0.24 s (of more people and ranks), twice for the"
         " star, 20 splits"),
        (AS_CODE, "python PRISM/train_basis.py --results PRISM/results/code",
         "no GPU; 2.7 h on two cores: 20,000 steps of 0.24 s, twice for the star"),
    ],
    CURVE: [
        (AS_PAPER, "python RedditTLDR/vary_fewshot.py", "after the embeddings; no GPU; hours unknown"),
        (AS_CODE, f"python RedditTLDR/vary_fewshot.py {DROPPED}", "no GPU; hours unknown"),
    ],
    BENCH: [("official", "python PRISM/eval_rb2.py", f"{TIMED}; 1,865 rows; disk unknown")],
}  # fmt: skip
