"""Results as one page: tables with intervals, curves, people's mixtures, and the replies behind them.

    python apply/report.py --input OwnData/results/train_basis.json --output PAGE.html
    python apply/report.py --input .. --output PAGE.html --texts COMPARISONS     with the replies themselves

Reads:  --input, a .json of a train_basis.py or vary_fewshot.py; beside it, if they are there, the
        bases, and beside train_basis.json also vary_fewshot.json
        --texts, the file that OwnData/prepare.py was given, and the folder that it wrote to (--prepared)
Writes: --output, one HTML file that needs nothing else: no script, nothing from the network
Cost:   seconds.
"""

import json
import sys
from datetime import datetime
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np
import torch
from outputs import require_page

from lore.common import InputError, require, start, written_whole
from lore.fit.basis import basis_health, basis_path, load_basis
from lore.fit.evaluation import LORE
from lore.report.pictures import rank_figure, shots_figure, svg_of
from lore.report.text_tables import Table, few_shot_tables, health_table, run_tables
from lore.settings import settings
from lore.splits import identity_of, load_split
from lore.text.input_rows import hash_of, read_judgements
from page import mixture_bars, page, remark, reply, shown_table, text

# ------------------------------------------------------------------------------- settings ---
input = ""  # results: a .json of train_basis.py or vary_fewshot.py
output = ""  # the page
texts = ""  # the comparisons that OwnData/prepare.py was given; empty = no replies in the page
columns = []  # OURS=THEIRS, as prepare.py was told them
prepared = ""  # the folder that it wrote to; empty = where the results say
replies = 3  # highest and lowest shown of each basis reward
pairs = 2  # shown of each person, of those that were predicted worst
people = 20  # at most, whose pairs are shown
# -------------------------------------------------------------------------------------------

CURVE = "Accuracy against what is known"
ROUNDING = 1e-5  # of a log-loss
OF_A_FIT = {"K", "alpha", "seed", "variant"}


def read_results(path):
    """(results, their Tables) of a .json. InputError: missing, or not of these scripts."""
    require(path, "which results? name a .json with --input")
    try:
        results = json.loads(Path(path).read_text(encoding="utf-8"))
        return results, tables_of(results)
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error}") from error
    except (ValueError, TypeError, KeyError, AttributeError, IndexError):
        pass  # told below
    raise InputError(f"{path} is no .json of train_basis.py or vary_fewshot.py")


def tables_of(results):
    """What was printed. KeyError and its like: these results are of something else."""
    made_by = results["settings"] | results["environment"]
    if "summary" not in results:
        return few_shot_tables(results["rows"])
    if not all(row.keys() >= OF_A_FIT for row in results["rows"]):
        raise KeyError("a row without what tells its fit")
    return run_tables(results["summary"], "splits" if made_by.get("resplit") else "seeds")


def in_html(tables):
    return "".join(map(shown_table, tables))


def drawn(figure):
    return f'<div class="wide">{svg_of(figure)}</div>'


def curve_beside(path, results):
    """(HTML of the few-shot curve beside the results of a run, why there is none): one of them empty."""
    path = path.with_name(path.name.replace("train_basis", "vary_fewshot"))
    file = Path(f"{path}.json")
    if not file.exists():
        return "", ""
    curve, tables = read_results(file)
    if "summary" in curve:  # these results themselves, under another name
        return "", ""
    written = datetime.fromtimestamp(file.stat().st_mtime).strftime("%Y-%m-%d %H:%M")
    origin = f"{file}, written {written}, of {data_of(curve)}"
    if data_of(curve) != data_of(results) or not people_of(curve) <= people_of(results):
        return "", f"{origin}: a curve of other people than these results"
    return drawn(shots_figure(path)) + in_html(tables) + remark(f"From {origin}."), ""


def data_of(results):
    """The folder of the comparisons, or how people were planted."""
    made_by = results["settings"]
    if not made_by.get("synthetic"):
        return str(Path(made_by.get("data", "")).resolve())
    planted = {name: value for name, value in made_by.items() if name.startswith("planted")}
    return f"people planted by seed {made_by.get('seed')}, {planted}"


def people_of(results):
    """Ids of all people in a run's rows."""
    people = set()
    for row in results["rows"]:
        for group in row.get("of_each_user", {}).values():
            people |= {*group["user"]}
    return people


def bases_of(path, rows):
    """{(K, alpha, seed): Basis} of the run that wrote these rows, and the files of another one."""
    prefix = Path(path).with_suffix("")
    bases = {}
    strangers = []
    for row in rows:
        key = (row["K"], row["alpha"], row["seed"])
        if row["variant"] != LORE or row["K"] in (0, "best") or row["alpha"] is None:
            continue
        file = Path(basis_path(prefix, *key))
        if file.exists():
            basis = load_basis(file)
            if is_of(basis, row):
                bases[key] = basis
            else:
                strangers.append(f"{file}: a basis of another run")
    return bases, strangers


def is_of(basis, row):
    """Whether a basis is that of a row: of the same people, and as right about the unseen ones."""
    groups = row.get("of_each_user", {})
    if any(name not in groups for name in ("train", "unseen")):
        return False
    people = [tuple(groups[name]["user"]) for name in ("train", "unseen")]
    if people != [basis.user_ids, basis.unseen_ids]:
        return False
    loss = np.mean(groups["unseen"]["log_loss"])
    return basis.held_out is None or abs(basis.held_out["personal"] - loss) < ROUNDING


def health_of(bases, V_ref):
    rows = []
    for (K, alpha, seed), basis in bases.items():
        health = basis_health(basis.V, basis.W, V_ref)
        rows.append({"K": K, "alpha": alpha, "seed": seed, **health})
    return health_table(rows)


def shown_basis(summary, bases):
    """The basis whose people are shown: of the starred rank, else of the highest."""
    starred = [row["K"] for row in summary if row.get("best")]
    several = [key for key, basis in bases.items() if basis.V.shape[1] > 1]
    for key in several:
        if key[0] in starred:
            return key
    return max(several, key=lambda key: key[0], default=None)


class Replies:
    """The prepared comparisons with their texts."""

    def __init__(self, args, results):
        folder = Path(args.prepared or results["settings"].get("data", ""))
        self.split = load_split(folder / "comparisons", "python OwnData/prepare.py", needed=["row"])
        self.judgements = read_judgements(args.texts, args.columns)
        if hash_of(self.judgements) != self.split.made_from:
            raise InputError(f"{args.texts} is not the file that {folder} was prepared from")
        self.conversation = {}
        for row, chosen, rejected in self.split.frame[["row", "chosen", "rejected"]].to_numpy():
            self.conversation[chosen] = self.judgements[row].chosen
            self.conversation[rejected] = self.judgements[row].rejected

    def require_model(self, basis, K):
        """InputError: the basis was learned on another model than made these embeddings."""
        if identity_of(basis.model) != identity_of(self.split.model):
            words = f"the basis of K = {K} was learned on {basis.model}, not on {self.split.model}"
            raise InputError(f"{words}, of which the prepared texts are")

    def extremes(self, basis, count):
        """For each basis reward the highest and lowest replies, over the mean of their prompt's."""
        columns = basis.of_columns()
        prompts = {}
        for side in ("chosen", "rejected"):
            prompts |= dict(zip(self.split.frame[side], self.split.frame["prompt"]))
        rows = sorted(prompts)
        names, prompt = np.unique([prompts[row] for row in rows], return_inverse=True)
        scores = columns.log_odds(self.split.table, columns.user_ids)[rows]  # (rows, K)
        prompt = torch.from_numpy(prompt)
        sums = scores.new_zeros(len(names), scores.shape[1]).index_add_(0, prompt, scores)
        scores = scores - (sums / torch.bincount(prompt)[:, None])[prompt]
        parts = [remark("Log-odds over the mean of all replies to the same prompt.")]
        for k, name in enumerate(columns.user_ids):
            parts.append(f"<h3>{name}</h3>")
            order = scores[:, k].argsort(descending=True).tolist()
            ends = {"high": order[:count], "low": order[max(0, len(order) - count) :]}
            for kind, numbers in ends.items():
                for number in numbers:
                    talk = self.conversation[rows[number]]
                    parts.append(reply(talk, f"{scores[number, k]:+.2f}", kind))
        return "".join(parts)

    def worst_pairs(self, basis, people, count):
        """Of each person the pairs that their reward got most wrong, of all that are known of them."""
        words = "Log-odds of the choice that was made; of all pairs of a person, those known included."
        parts = [remark(words)]
        frame = self.split.frame
        compared = {*frame["user_id"]}
        for user in [user for user in basis.everybody if user in compared][:people]:
            pairs = frame[frame["user_id"] == user]
            chosen = self.split.table[pairs["chosen"].to_numpy()].float()
            rejected = self.split.table[pairs["rejected"].to_numpy()].float()
            margin = basis.log_odds(chosen - rejected, [user])[:, 0]
            wrong = int((margin <= 0).sum())
            parts.append(f"<h3>{text(f'{user}: {wrong} of {len(pairs)} wrong')}</h3>")
            for number in margin.argsort()[: min(count, wrong)].tolist():
                judgement = self.judgements[int(pairs["row"].iloc[number])]
                parts.append(reply(judgement.chosen, f"chosen, {margin[number]:+.2f}", "high"))
                parts.append(reply(judgement.rejected, "rejected", "low"))
        more = len(compared & {*basis.everybody}) - people
        if more > 0:
            parts.append(remark(f"{more} more people are not shown (--people)."))
        return "".join(parts)


def sections_of(args, results, tables):
    """Yield (heading, HTML)."""
    path = Path(args.input).with_suffix("")
    if "summary" in results:
        yield "Accuracy", in_html(tables)
        yield "Accuracy against rank", drawn(rank_figure(path))
        curve, stranger = curve_beside(path, results)
        bases, strangers = bases_of(args.input, results["rows"])
        if curve:
            yield CURVE, curve
        yield from sections_of_bases(args, results, bases)
        strangers = [*filter(None, [stranger]), *strangers]
        if strangers:
            yield "Not shown", "".join(map(remark, strangers))
    else:
        yield CURVE, drawn(shots_figure(path)) + in_html(tables)
    made_by = results["settings"] | results["environment"]
    made_by |= {"git commit": results.get("git_commit")}
    rows = [[name, str(value)] for name, value in made_by.items()]
    yield "Settings and versions", shown_table(Table(["setting", "value"], rows))


def sections_of_bases(args, results, bases):
    """Yield (heading, HTML) of the bases that the run has left beside its results."""
    replies = Replies(args, results) if args.texts else None
    if not bases:
        return
    for (K, _, _), basis in bases.items():
        if replies:
            replies.require_model(basis, K)
    yield "Health of the bases", shown_table(health_of(bases, replies and replies.split.head))
    key = shown_basis(results["summary"], bases)
    if key is not None:
        W = torch.cat([bases[key].W, bases[key].W_unseen]).numpy()
        bars = f'<div class="wide">{mixture_bars(bases[key].everybody, W)}</div>'
        yield f"People's mixtures, K = {key[0]}, ordered by likeness", bars
    if replies:
        key = key or max(bases)
        yield f"Replies, K = {key[0]}", replies.extremes(bases[key], args.replies)
        worst = replies.worst_pairs(bases[key], args.people, args.pairs)
        yield "What each person's reward got most wrong", worst


def main():
    args = settings(globals())
    results, tables = read_results(args.input)
    require_page(args.output, [args.input, args.texts])
    sections = [*sections_of(args, results, tables)]
    title = f"LoRe: {Path(args.input).with_suffix('').name}"
    with written_whole(args.output) as file:
        file.write_text(page(title, sections), encoding="utf-8")
    print(f"the page is {args.output}: {', '.join(heading for heading, _ in sections)}")


if __name__ == "__main__":
    start(main)
