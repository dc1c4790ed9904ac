"""A saved basis at work: seconds to score, to adapt and to choose, beside the bare product or the embedding.

    python benchmarks/apply.py                    a minute; planted people, 2 GB of memory at most
    python benchmarks/apply.py --model FOLDER         best_of_n with this reward model (else a tiny random one)

Scoring: 100,000 embeddings, d = 4096, for 1,000 people of a rank-5 basis, against (rows, d) @ (d, people)
as one product. Adapting: 10,000 people with 20 pairs each: mixtures, spread, certificate, leave-one-out.
Clicking: an answer on session.py's page, from the click to what is shown next, on the disk meanwhile; 500
prompts x 4 replies, K = 10. Choosing: best_of_n.py on prompts x 8 candidates for 100 people, from its start,
against the embedding of the same texts.
"""

import json
import statistics
import tempfile
from itertools import chain
from pathlib import Path

import torch
from embed import WORDS, random_model
from measure import ROOT, compare, flags, judge, load_module, run_alone, seconds

from lore.common import start
from lore.fit.basis import Basis, save_basis
from lore.fit.comparisons import Comparisons
from lore.fit.likelihood import LOGIT_SCALE
from lore.text.encoder import Encoder
from lore.text.input_rows import candidates_of
from lore.text.spellings import as_read

leave_one_out = load_module("apply/leave_one_out.py")
session = load_module("apply/session.py")

WIDTH = 4096
PEOPLE = 1000
CHOSEN_FOR = 100
KINDS = {"mixtures alone": 0.0, "with something of one's own": 0.02}  # deviation_spread


def planted_basis(d, people, deviation_spread=0.0, rank=5):
    """A basis whose rewards differ by log-odds of about 1."""
    V = LOGIT_SCALE * torch.randn(d, rank) / d**0.5
    W = torch.distributions.Dirichlet(torch.full((rank,), 0.3)).sample((people,))
    ids = tuple(f"person{i}" for i in range(people))
    basis = Basis(V, W, ids, W[:0], (), mean=W.mean(0), deviation_spread=deviation_spread)
    if deviation_spread:
        E = torch.randn(people, d) / d**0.5
        basis = basis._replace(E=E, E_unseen=torch.zeros(0, d))
    return basis


def scoring(rows=100_000):
    basis = planted_basis(WIDTH, PEOPLE)
    table = torch.randn(rows, WIDTH)
    rewards = basis.rewards(basis.everybody)  # (d, people)
    ours = lambda: seconds(basis.log_odds, table, basis.everybody)
    bare = lambda: seconds(torch.matmul, table, rewards)
    print(f"{rows} rows for {PEOPLE} people, and as a bare product:")
    taken, _, times = compare("scoring", 3, ours, bare)
    judge("under 2 s and within 2 x of the product", taken < 2 and times < 2)


def adapting(kind, people=10_000, pairs=20):
    basis = planted_basis(WIDTH, 10, KINDS[kind])
    table = torch.randn(20_000, WIDTH)
    user = torch.arange(people).repeat_interleave(pairs)
    first = torch.randint(len(table), (len(user),))
    second = (first + 1 + torch.randint(len(table) - 1, (len(user),))) % len(table)
    ids = tuple(map(str, range(people)))
    given = Comparisons(table, user, ids, first, second, prompt=torch.arange(len(user)))
    spent = seconds(leave_one_out.adapt, basis, given)
    judge(f"adapting {people} people x {pairs} pairs, {kind}: {spent:.1f} s, target 5", spent < 5)


def clicking(kind, prompts=500, answers=20):
    basis = planted_basis(WIDTH, PEOPLE, KINDS[kind], rank=10)
    with tempfile.TemporaryDirectory() as folder:
        source = write_rows(Path(folder) / "pool.jsonl", made_up_rows(prompts, 4))
        read = session.read_pool(source)
        talks = map(as_read, chain.from_iterable(prompt.talks for prompt in read))
        row_of = {talk: row for row, talk in enumerate(talks)}
        pool = session.Pool(read, torch.randn(len(row_of), WIDTH), row_of, basis, 0)
        stored = session.Answers(Path(folder) / "sessions.jsonl")
        room = session.Session(basis, pool, stored, session.CHOSEN, 0)
        room.state("ann")

        def click(mark):
            room.answer("ann", mark, "left")
            room.state("ann")

        threads = torch.get_num_threads()
        torch.set_num_threads(session.THREADS)
        spent = [1000 * seconds(click, room.mark(room.rater("ann"))) for _ in range(answers)]
        torch.set_num_threads(threads)
    median = statistics.median(spent)
    judge(f"a click, {kind}: {median:.0f} ms ({min(spent):.0f} .. {max(spent):.0f}), target 50", median < 50)


def made_up_rows(prompts, replies=8):
    """Prompts with candidates."""
    rows = []
    for prompt in range(prompts):
        about = f"w{prompt // WORDS} w{prompt % WORDS}"
        rows.append({"prompt": about, "candidates": [f"w{i} " * (24 + i) for i in range(replies)]})
    return rows


def write_rows(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def choosing(folder, prompts, device):
    encoder = Encoder(str(folder), "last", torch.device(device))
    rows = made_up_rows(prompts)
    conversations = [*chain.from_iterable(candidates_of("here", row) for row in rows)]
    with tempfile.TemporaryDirectory() as name:
        basis = planted_basis(encoder.num_features, CHOSEN_FOR)
        save_basis(Path(name) / "basis.safetensors", basis._replace(model=json.dumps(encoder.identity)))
        source = write_rows(Path(name) / "rows.jsonl", rows)
        paths = ("--basis", Path(name) / "basis.safetensors", "--input", source)
        paths = (*paths, "--output", Path(name) / "chosen.jsonl", "--device", device)
        spent, _ = run_alone(ROOT / "apply/best_of_n.py", *paths, "--everybody")
    encoder.embed(conversations[:64])  # loads the model
    embedding = seconds(encoder.embed, conversations)
    what = f"best of 8 for {CHOSEN_FOR} people, {prompts} prompts"
    told = f"{spent:.1f} s, embedding alone {embedding:.1f} s, ratio {spent / embedding:.2f}"
    judge(f"{what}: {told}, target 2", spent < 2 * embedding)


def main():
    parser = flags(__doc__, prompts=10_000, device="cpu")
    parser.add_argument("--model", help="a reward model for best_of_n")
    args = parser.parse_args()
    torch.manual_seed(0)
    scoring()
    for measured in (adapting, clicking):
        for kind in KINDS:
            measured(kind)
    with tempfile.TemporaryDirectory() as folder:
        if not args.model:
            random_model(folder, "small")
        choosing(args.model or folder, args.prompts, args.device)


if __name__ == "__main__":
    start(main)
