"""From a file of results to the published numbers that it answers, by what stands in the file alone.

answers_of(path)    [Answer] of a .json of a train_basis.py, vary_fewshot.py, eval_rb2.py or compare_rivals.py
"""

import json
import math
from pathlib import Path
from typing import NamedTuple

from published import (
    BENCH,
    BENCH_SCORES,
    BRADLEY_TERRY,
    CURVE,
    ENCODER,
    HALF,
    LORE,
    PERSONALLLM,
    PRISM,
    PROTOCOLS,
    REFERENCE,
    TABLES,
    TLDR,
    UNSEEN_BY_SHOTS,
    Number,
)

from lore.common import InputError, require
from lore.fit.evaluation import TESTED
from lore.report.statistics import NORMAL, quantile
from lore.splits import identity_of

WRONG_TYPE = (TypeError, KeyError, AttributeError, OverflowError)
CURVE_RANK = 5  # of the published few-shot curve
PEOPLE_OFF = 0.01  # share by which the number of people may differ: PRISM has 1,287, which no half divides
RIVALS = {"VPL": "VPL", "PAL-A": "PAL"}  # as compare_rivals.py calls them


class Answer(NamedTuple):
    """What a file has for a published number."""

    number: Number
    percent: float
    interval: tuple  # low, high; 95 %
    error: float  # standard error, in points
    how: str  # splits, and what is special to it
    protocol: str  # paper, published code, or that of RewardBench 2
    reasons: tuple  # why it cannot be compared; () = it can
    planted: bool
    path: Path = Path()
    versions: str = ""


def answers_of(path):
    """[Answer] of a file. InputError: it cannot be read, or answers nothing."""
    report = parsed(path)
    settings = field(report, "settings", dict)
    script = settings.get("script")
    require(isinstance(script, str), "does not say which script wrote it (another tool, or an older version)")
    require(script in READERS, f"written by {script}: nothing of it is in the paper")
    try:
        origin = {"path": path, "versions": versions_of(report)}
        answers = [answer._replace(**origin) for answer in READERS[script](report)]
    except WRONG_TYPE as error:  # a list where a number belongs, and the like
        raise InputError(f"holds something of another type than its script writes: {error}") from error
    require(answers, "holds no row that the paper has")
    return answers


def parsed(path):
    try:
        report = json.loads(Path(path).read_text(encoding="utf-8"), parse_constant=refuse)
    except OSError as error:
        raise InputError(f"cannot be read: {error.strerror}") from error
    except RecursionError as error:
        raise InputError("is nested too deep for results") from error
    except ValueError as error:  # broken JSON, a NaN, bytes that are no text
        raise InputError(f"is no JSON of results, or cut: {error}") from error
    require(isinstance(report, dict), f"is a JSON {type(report).__name__}, no results")
    return report


def versions_of(report):
    """Of the code and of torch; "+" where files differed from the commit."""
    torch = field(report, "environment", dict).get("torch")
    commit = report.get("git_commit") or "unknown"
    return f"commit {commit[:9]}{'+' * commit.endswith('+')}, torch {torch}"


def refuse(constant):
    raise ValueError(f"it holds {constant}, which is no number")


def field(mapping, name, kind):
    """mapping[name]. InputError: missing, or of another type."""
    value = mapping.get(name)
    require(name in mapping, f"has no {name!r}")
    fits = isinstance(value, kind) and not (isinstance(value, bool) and kind is not bool)
    require(fits, f"{name} is {value!r:.60}: of another type than here")
    return value


def dicts(mapping, name):
    """A list of dicts."""
    rows = field(mapping, name, list)
    require(all(isinstance(row, dict) for row in rows), f"{name} holds something that is no row")
    return rows


# ------------------------------------------------------------------------------------------------
# The scripts' files
# ------------------------------------------------------------------------------------------------


def of_personalllm(report):
    population = field(report, "population", int | float)
    return of_sweep(report, PERSONALLLM, f"a = {population:g}")


def of_tldr(report):
    return of_sweep(report, TLDR, f"{field(report, 'max_train', int)} pairs")


def of_prism(report):
    return of_sweep(report, PRISM, HALF)


def of_sweep(report, table, column):
    """Yield an Answer for each alpha, method and group."""
    in_paper = TABLES[table]
    require(column in in_paper, f"{table}, {column}: the paper has {', '.join(in_paper)}")
    runs = Runs.of(report)
    for method, row, ranks in rows_of_methods(report):
        alpha = finite(row.get("alpha"), "alpha")
        protocol, reasons = runs.compared(table, None if method == REFERENCE else alpha)
        how = [runs.repeats]
        if method != REFERENCE and alpha:
            how.append(f"alpha {alpha:g}")
        if ranks:
            how.append(f"K of {', '.join(map(str, ranks))}")
        if len(ranks) == 1:
            reasons = (*reasons, f"K = {ranks[0]} alone, not cross-validated")
        for group in TESTED:
            number = Number(table, column, method, group)
            yield runs.answer(number, row, ", ".join(how), protocol, reasons)


def rows_of_methods(report):
    """Yield (method, row of the summary, the ranks that LoRe could choose from)."""
    ranked = {}  # alpha -> {rank above 1: row}
    for row in dicts(report, "summary"):
        if row.get("variant") == "":
            K = row.get("K")
            if K in (0, 1):
                yield (REFERENCE, BRADLEY_TERRY)[K], row, ()
            elif isinstance(K, int):
                ranked.setdefault(row.get("alpha"), {})[K] = row
    for row in dicts(report, "cross_validated"):
        ranks = [*ranked.get(row.get("alpha"), ())]
        if len(ranks) > 1:
            yield LORE, row, ranks
    for rows in ranked.values():
        if len(rows) == 1:
            yield LORE, *rows.values(), [*rows]


def of_curve(report):
    """Yield an Answer for each number of shots that the paper has."""
    runs = Runs.of(report)
    for row in dicts(report, "rows"):
        shots = row.get("shots")
        if shots in UNSEEN_BY_SHOTS and row.get("K") == CURVE_RANK:
            protocol, reasons = runs.compared(CURVE, finite(row.get("alpha"), "alpha"))
            number = Number(CURVE, f"{shots} shots", LORE, "unseen")
            yield runs.answer(number, row, f"K = {CURVE_RANK}", protocol, reasons)


def of_bench(report):
    """Yield an Answer for each subset of the reference head."""
    runs = Runs.of(report)
    protocol, reasons = runs.compared(BENCH, None)
    for row in dicts(report, "rows"):
        if row.get("reward") == "reference head":
            for subset in BENCH_SCORES:
                if subset in row:
                    number = Number(BENCH, subset, REFERENCE, "rows")
                    yield runs.answer(number, row, "K = 0", protocol, reasons, subset)


def of_rivals(report):
    """Yield an Answer for each VPL or PAL row of compare_rivals.py on a data set of the paper."""
    for row in dicts(report, "rows"):
        method = RIVALS.get(row.get("method"))
        kind, _, data_set = field(row, "data_set", str).partition(": ")
        table, _, column = data_set.partition(", ")
        of_paper = kind in ("planted", "prepared") and column in TABLES.get(table, ())
        if method and of_paper and "reason" not in row:
            runs = Runs.of_rivals(row, PROTOCOLS[table][0], kind == "planted")
            protocol, reasons = runs.compared(table, None)
            for group in TESTED:
                number = Number(table, column, method, group)
                yield runs.answer(number, row, runs.repeats, protocol, reasons)


READERS = {
    "PersonalLLM/train_basis.py": of_personalllm,
    "RedditTLDR/train_basis.py": of_tldr,
    "RedditTLDR/vary_fewshot.py": of_curve,
    "PRISM/train_basis.py": of_prism,
    "PRISM/eval_rb2.py": of_bench,
    "benchmarks/compare_rivals.py": of_rivals,
}


# ------------------------------------------------------------------------------------------------
# What a run was
# ------------------------------------------------------------------------------------------------


class Runs(NamedTuple):
    """The fits of a file."""

    settings: dict
    ids: dict  # group -> {user ids} of all fits
    splits: int
    people: tuple  # seen, unseen of a fit
    tests: float  # pairs that a person is tested on, mean
    planted: bool
    encoder: tuple  # why its embeddings are not the paper's; () = they are

    @classmethod
    def of(cls, report):
        settings = field(report, "settings", dict)
        ids = {}
        resplit = settings.get("resplit") is True
        seeds = set()
        people = (0, 0)
        tests = 0.0
        for row in dicts(report, "rows"):
            if resplit:
                seeds.add(field(row, "seed", int))
            groups = field(row, "of_each_user", dict) if "of_each_user" in row else {}
            counts = {}
            for name in TESTED:
                if name in groups:
                    users = field(field(groups, name, dict), "user", list)
                    counts[name] = len(users)
                    ids.setdefault(name, set()).update(users)
            if counts and row.get("variant") == "":
                people = tuple(counts.get(name, 0) for name in TESTED)
                pairs = field(groups["unseen"], "pairs", list)
                tests = sum(pairs) / max(1, len(pairs))
        splits = len(seeds) if resplit else 1
        planted = settings.get("synthetic") is True
        encoder = () if planted else of_encoder(report.get("model"))
        return cls(settings, ids, splits, people, tests, planted, encoder)

    @classmethod
    def of_rivals(cls, row, protocol, planted):
        """What compare_rivals.py fits by; it has no other settings than the paper's."""
        splits = field(row, "populations", int)
        people = (0, 0) if planted else tuple(field(row, "people", list))
        require(len(people) == len(TESTED), f"people is {people}, not as many as {TESTED}")
        encoder = () if planted else of_encoder(row.get("model"))
        return cls(protocol.settings, {}, splits, people, protocol.tests, planted, encoder)

    @property
    def repeats(self):
        return f"{self.splits} split" + "s" * (self.splits > 1)

    def compared(self, table, alpha):
        """(name of the protocol that comes nearest, why the numbers cannot be compared all the same)."""
        if self.planted:
            return "planted", ()
        nearest = min(PROTOCOLS[table], key=lambda protocol: len(self.differences(protocol, alpha)))
        return nearest.name, (*self.encoder, *self.differences(nearest, alpha))

    def differences(self, protocol, alpha):
        """How these fits differ from a protocol, each in a few words."""
        words = []
        for name, expected in protocol.settings.items():
            value = "not said"
            if name in self.settings:
                kind = type(expected)
                value = field(self.settings, name, int | float if kind in (int, float) else kind)
            if value != expected:
                words.append(f"{name} {value}, not {'empty' if expected == '' else expected}")
        for group, count, expected in zip(TESTED, self.people, protocol.people):
            if expected and abs(count - expected) > PEOPLE_OFF * expected:
                words.append(f"{count} {group} people, not {expected}")
        if self.splits < protocol.splits:
            words.append(f"{self.repeats}, not {protocol.splits}")
        if self.tests < protocol.tests:
            words.append(f"tested on {self.tests:.0f} pairs each, not {protocol.tests} or more")
        if alpha is not None and alpha != protocol.alpha:
            words.append(f"alpha {alpha:g}, not {protocol.alpha:g}")
        return words

    def answer(self, number, row, how, protocol, reasons, name=None):
        """The Answer of a row; name: of its accuracy, where that is not the group's."""
        name = name or number.group
        percent = 100 * finite(row.get(name), name)
        require(0 <= percent <= 100, f"{name} is {row[name]}: no accuracy")
        interval = field(row, f"{name}_interval", list)
        require(len(interval) == 2, f"{name}_interval has {len(interval)} ends")
        low, high = (100 * finite(end, f"{name}_interval") for end in interval)
        require(low <= percent <= high, f"{name}_interval does not hold {name}")
        error = (high - low) / 2 / self.quantile(row, number.group)
        return Answer(number, percent, (low, high), error, how, protocol, tuple(reasons), self.planted)

    def quantile(self, row, group):
        """Half the width of an interval, in standard errors."""
        in_a_fit = dict(zip(TESTED, self.people))
        users = len(self.ids.get(group, ())) or in_a_fit.get(group, 0)
        return quantile(users) if "Student" in str(row.get("interval")) else NORMAL


def finite(value, name):
    number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    require(number, f"{name} is {value!r:.60}, no number")
    return value


def of_encoder(text):
    """Why embeddings are not those of the paper's reward model; () where they are."""
    identity = identity_of(text) if isinstance(text, str) else None
    name = (identity or {}).get("model")
    if not isinstance(name, str):
        return ("encoder not said",)
    repository, folder, last = ("", "", *Path(name).parts)[-3:]  # as of a snapshot in the Hub's cache
    if last != ENCODER and not (folder == "snapshots" and repository.endswith(f"--{ENCODER}")):
        return (f"other encoder ({'/'.join(Path(name).parts[-2:])})",)
    reasons = []
    for name, expected in (("pooling", "last"), ("head", "score")):
        if identity.get(name) != expected:
            reasons.append(f"{name} {identity.get(name)}, not {expected}")
    return tuple(reasons)
