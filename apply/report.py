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
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch

from lore.common import InputError, require, require_apart, start, written_whole
from lore.fit.basis import basis_health, basis_path, load_basis
from lore.report.pictures import rank_figure, shots_figure, svg_of
from lore.report.text_tables import RANK_NAMES
from lore.settings import settings
from lore.splits import identity_of, load_split
from lore.text.conversations import content_hash
from lore.text.input_rows import read_judgements
from page import mixture_bars, note, page, reply, table, text

# ------------------------------------------------------------------------------- settings ---
input = ""  # results: a .json of train_basis.py or vary_fewshot.py
output = ""  # the page
texts = ""  # the comparisons that OwnData/prepare.py was given; empty = no replies in the page
prepared = ""  # the folder that it wrote to; empty = where the results say
replies = 3  # highest and lowest shown of each basis reward
pairs = 2  # shown of each person, of those that were predicted worst
people = 20  # at most, whose pairs are shown
# -------------------------------------------------------------------------------------------

GROUPS = ("train", "seen", "few_shot_train", "unseen")
OF_SHOTS = {"shots", "few_shot_train", "unseen", "unseen_interval", "unseen_std_trials"}
HEADS = ("train", "seen", "few-shot train", "unseen")


def read_results(path):
    """InputError: missing, or not of these scripts."""
    require(path, "which results? name a .json with --input")
    try:
        results = json.loads(Path(path).read_text(encoding="utf-8"))
        if is_of_a_sweep(results):
            return results
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error}") from error
    except (ValueError, TypeError, KeyError, AttributeError):
        pass  # told below
    raise InputError(f"{path} is no .json of train_basis.py or vary_fewshot.py")


def is_of_a_sweep(results):
    """Whether results have what the tables here are made of."""
    rows = results["rows"]
    summary = results.get("summary", rows)
    needed = {"K", "alpha"} | ({"seed", "variant"} if "summary" in results else OF_SHOTS)
    if not (rows and summary and all(needed <= row.keys() for row in rows)):
        return False
    if not all(
        {"K", "alpha", "variant", "interval"} <= row.keys() for row in results.get("summary", [])
    ):
        return False
    return isinstance(results["settings"], dict) and isinstance(results["environment"], dict)


def percent(value, interval=None):
    if value is None:
        return ""
    if interval is None:
        return f"{100 * value:.1f}"
    return f"{100 * value:.1f} [{100 * interval[0]:.1f}, {100 * interval[1]:.1f}]"


def rank_table(summary):
    """The table of train_basis.py."""
    several_alphas = len({row["alpha"] for row in summary} - {None}) > 1
    rows = []
    starred = []
    for number, row in enumerate(summary):
        name = (
            row["variant"]
            if row["variant"] and row["K"] != 1
            else RANK_NAMES.get(row["K"], row["K"])
        )
        name = f"{row['K']} {row['variant']}" if row["variant"] else name
        if several_alphas and row["alpha"] is not None:
            name = f"{name}, alpha {row['alpha']:g}"
        cells = [percent(row.get(group), row.get(f"{group}_interval")) for group in GROUPS]
        gain = row.get("unseen_gain")
        cells.append(
            "" if gain is None else "{:+.1f} [{:+.1f}, {:+.1f}]".format(*[100 * g for g in gain])
        )
        log_loss = row.get("unseen_log_loss")
        cells.append("" if log_loss is None else f"{log_loss:.3f}")
        rows.append([name, *cells])
        if row.get("best"):
            starred.append(number)
    head = ["K", *HEADS, "over Bradley-Terry, unseen", "log-loss, unseen"]
    words = f"Accuracy in percent, mean over users [95 % interval over {summary[0]['interval']}]."
    words += " Shaded: the rank that held-out training prompts speak for." if starred else ""
    return table(head, rows, starred) + note(words)


def shots_table(rows):
    cells = []
    for row in rows:
        known = percent(row["few_shot_train"])
        unseen = percent(row["unseen"], row["unseen_interval"])
        spread = f"{100 * row['unseen_std_trials']:.1f}"
        cells.append([RANK_NAMES.get(row["K"], row["K"]), row["shots"], known, unseen, spread])
    head = ["K", "shots", "few-shot train", "unseen", "std over trials"]
    return table(head, cells) + note("Accuracy in percent, mean over users [95 % interval].")


def bases_of(path, rows):
    """{(K, alpha, seed): Basis} of those that lie beside the results."""
    prefix = Path(path).with_suffix("")
    found = {}
    for row in rows:
        key = (row["K"], row["alpha"], row["seed"])
        if row["variant"] or row["K"] in (0, "best") or row["alpha"] is None or key in found:
            continue
        file = basis_path(prefix, *key)
        if Path(file).exists():
            found[key] = load_basis(file)
    return found


def health_table(bases, V_ref):
    rows = []
    for (K, alpha, seed), basis in bases.items():
        health = basis_health(basis.V, basis.W, V_ref)
        alike = "-" if health["alike"] is None else f"{health['alike']:.2f}"
        head = "-" if health["to_head"] is None else "{:.2f} .. {:.2f}".format(*health["to_head"])
        used = [f"{health[name]:.1f}" for name in ("used", "used_by_one")]
        rows.append([K, f"{alpha:g}", seed, health["columns"], alike, head, *used])
    head = ["K", "alpha", "seed", "columns", "alike", "cosine to head", "used", "used by one"]
    words = "alike: largest |cosine| of two columns; used: columns in use, by all and by one person"
    return table(head, rows) + note(words)


def shown_basis(results, bases):
    """The basis whose people are shown: of the starred rank, else of the highest."""
    starred = [row["K"] for row in results.get("summary", []) if row.get("best")]
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
        if content_hash(args.texts).hex() != self.split.made_from:
            raise InputError(f"{args.texts} is not the file that {folder} was prepared from")
        self.judgements = read_judgements(args.texts)
        self.conversation = {}
        for row, chosen, rejected in self.split.frame[["row", "chosen", "rejected"]].to_numpy():
            self.conversation[chosen] = self.judgements[row].chosen
            self.conversation[rejected] = self.judgements[row].rejected

    def extremes(self, basis, count):
        """For each basis reward the highest and lowest replies, over the mean of their prompt's."""
        columns = basis.of_columns()
        scores = columns.log_odds(self.split.table, columns.user_ids)  # (rows, K)
        prompt_of = {}
        for side in ("chosen", "rejected"):
            prompt_of |= dict(zip(self.split.frame[side], self.split.frame["prompt"]))
        rows = sorted(prompt_of)
        names = {name: i for i, name in enumerate(sorted({*prompt_of.values()}))}
        prompt = torch.tensor([names[prompt_of[row]] for row in rows])
        scores = scores[rows]
        sums = torch.zeros(len(names), scores.shape[1]).index_add_(0, prompt, scores)
        scores = scores - (sums / torch.bincount(prompt)[:, None])[prompt]
        parts = []
        for k, name in enumerate(columns.user_ids):
            order = scores[:, k].argsort(descending=True).tolist()
            parts.append(f"<h3>{name}</h3>")
            for place in order[:count]:
                parts.append(
                    reply(self.conversation[rows[place]], f"{scores[place, k]:+.2f}", "high")
                )
            for place in order[max(0, len(order) - count) :]:
                parts.append(
                    reply(self.conversation[rows[place]], f"{scores[place, k]:+.2f}", "low")
                )
        words = "Log-odds over the mean of all replies to the same prompt."
        return note(words) + "".join(parts)

    def worst_pairs(self, basis, people, count):
        """Of each person the pairs that their reward got most wrong, of all that are known of them."""
        parts = [
            note(
                "Log-odds of the choice that was made; of all pairs of a person, those known included."
            )
        ]
        frame = self.split.frame
        for user in [user for user in basis.everybody if (frame["user_id"] == user).any()][:people]:
            own = frame[frame["user_id"] == user]
            chosen = self.split.table[own["chosen"].to_numpy()].float()
            rejected = self.split.table[own["rejected"].to_numpy()].float()
            margin = basis.log_odds(chosen - rejected, [user])[:, 0]
            wrong = int((margin <= 0).sum())
            heading = text(f"{user}: {wrong} of {len(own)} wrong")
            parts.append(f"<h3>{heading}</h3>")
            for place in margin.argsort()[:count].tolist():
                if margin[place] <= 0:
                    one = self.judgements[int(own["row"].iloc[place])]
                    parts.append(reply(one.chosen, f"chosen, {margin[place]:+.2f}", "high"))
                    parts.append(reply(one.rejected, "rejected", "low"))
        return "".join(parts)


def sections_of(args, results):
    """Yield (heading, HTML)."""
    path = Path(args.input).with_suffix("")
    if "summary" in results:
        yield "Accuracy", rank_table(results["summary"])
        yield "Accuracy against rank", f'<div class="wide">{svg_of(rank_figure(path))}</div>'
        path = path.with_name(path.name.replace("train_basis", "vary_fewshot"))
    if Path(f"{path}.json").exists() and "summary" not in (few := read_results(f"{path}.json")):
        figure = f'<div class="wide">{svg_of(shots_figure(path))}</div>'
        yield "Accuracy against what is known", figure + shots_table(few["rows"])
    bases = bases_of(args.input, results["rows"]) if "summary" in results else {}
    found = Replies(args, results) if args.texts else None
    for (K, _, _), basis in bases.items():
        if found and identity_of(basis.model) != identity_of(found.split.model):
            words = f"the basis of K = {K} was learned on {basis.model}, not on {found.split.model}"
            raise InputError(f"{words}, of which the prepared texts are")
    if bases:
        V_ref = found.split.head if found else None
        yield "Health of the bases", health_table(bases, V_ref)
    key = shown_basis(results, bases)
    if key is not None:
        basis = bases[key]
        W = torch.cat([basis.W, basis.W_unseen]).numpy()
        bars = f'<div class="wide">{mixture_bars(basis.everybody, W)}</div>'
        yield f"People's mixtures, K = {key[0]}, ordered by likeness", bars
    if found and bases:
        key = key or max(bases)
        yield f"Replies, K = {key[0]}", found.extremes(bases[key], args.replies)
        worst = found.worst_pairs(bases[key], args.people, args.pairs)
        yield "What each person's reward got most wrong", worst
    made = results["settings"] | results["environment"] | {"git commit": results.get("git_commit")}
    yield "Settings and versions", table(["setting", "value"], made.items())


def main():
    args = settings(globals())
    results = read_results(args.input)
    require(args.output, "where to? name an .html file with --output")
    require_apart([args.output], [args.input, args.texts])
    sections = [*sections_of(args, results)]
    title = f"LoRe: {Path(args.input).with_suffix('').name}"
    with written_whole(args.output) as file:
        file.write_text(page(title, sections), encoding="utf-8")
    print(f"the page is {args.output}: {', '.join(heading for heading, _ in sections)}")


if __name__ == "__main__":
    start(main)
