"""A saved basis at work: seconds to score, to adapt and to choose, beside the bare product or the embedding.

    python benchmarks/apply.py                    a minute; planted people, 2 GB of memory at most
    python benchmarks/apply.py --model FOLDER         best_of_n with this reward model (else a tiny random one)

Scoring: 100,000 embeddings, d = 4096, for 1,000 people of a rank-5 basis, against (rows, d) @ (d, people)
as one product. Adapting: 10,000 people with 20 pairs each: mixtures, spread, certificate, leave-one-out.
Clicking: an answer on session.py's page, from the click to what is shown next, on the disk meanwhile; 500
prompts x 4 replies, K = 10. Choosing: best_of_n.py on prompts x 8 candidates for 100 people, against the
embedding of the same texts.
"""

import json
import statistics
import tempfile
from pathlib import Path

import torch
from embed import WORDS, random_model
from measure import flags, in_turn, judge, load_module, ratio, seconds

from lore.common import start
from lore.fit.basis import Basis
from lore.fit.comparisons import Comparisons
from lore.fit.likelihood import LOGIT_SCALE
from lore.text.encoder import Encoder
from lore.text.input_rows import candidates_of
from lore.text.spellings import as_read

best_of_n = load_module("apply/best_of_n.py")
leave_one_out = load_module("apply/leave_one_out.py")
session = load_module("apply/session.py")

K = 5
PEOPLE = 1000
CHOSEN_FOR = 100


def planted_basis(d, people, deviation_spread=0.0, rank=K):
    """A basis whose rewards differ by log-odds of about 1."""
    V = LOGIT_SCALE * torch.randn(d, rank) / d**0.5
    W = torch.distributions.Dirichlet(torch.full((rank,), 0.3)).sample((people,))
    ids = tuple(f"person{i}" for i in range(people))
    basis = Basis(V, W, ids, W[:0], (), mean=W.mean(0), deviation_spread=deviation_spread)
    if deviation_spread:
        E = torch.randn(people, d) / d**0.5
        basis = basis._replace(E=E, E_unseen=torch.zeros(0, d))
    return basis


def scoring(rows=100_000, d=4096):
    basis = planted_basis(d, PEOPLE)
    table = torch.randn(rows, d)
    rewards = basis.rewards(basis.everybody)  # (d, people)
    basis.log_odds(table[:1000], basis.everybody)
    ours = lambda: seconds(basis.log_odds, table, basis.everybody)
    bare = lambda: seconds(torch.matmul, table, rewards)
    spent = in_turn(3, ours, bare)
    taken, floor = map(statistics.median, spent)
    median, told = ratio(*spent)
    print(f"scoring {rows} rows for {PEOPLE} people: {taken:.2f} s, bare product {floor:.2f} s")
    judge(f"under 2 s and within 2 x of the product, {told}", taken < 2 and median < 2)


def adapting(people=10_000, pairs=20, d=4096):
    for deviation_spread in (0.0, 0.02):
        basis = planted_basis(d, 10, deviation_spread)
        table = torch.randn(20_000, d)
        user = torch.arange(people).repeat_interleave(pairs)
        first = torch.randint(len(table), (len(user),))
        second = (first + 1 + torch.randint(len(table) - 1, (len(user),))) % len(table)
        ids = tuple(map(str, range(people)))
        prompt = torch.arange(len(user))
        given = Comparisons(table, user, ids, first, second, prompt=prompt)
        spent = seconds(leave_one_out.adapt, basis, given)
        kind = "with something of one's own" if deviation_spread else "mixtures alone"
        what = f"adapting {people} people x {pairs} pairs, {kind}"
        judge(f"{what}: {spent:.1f} s, target 5", spent < 5)


def clicking(prompts=500, d=4096, rank=10, answers=20):
    for deviation_spread in (0.0, 0.02):
        basis = planted_basis(d, PEOPLE, deviation_spread, rank)
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "sessions.jsonl"
            source = Path(folder) / "pool.jsonl"
            rows = made_up_rows(prompts, 4)
            source.write_text("".join(json.dumps(row) + "\n" for row in rows))
            read = session.read_pool(source)
            row_of = {}
            for prompt in read:
                for talk in prompt.talks:
                    row_of[as_read(talk)] = len(row_of)
            pool = session.Pool(read, torch.randn(len(row_of), d), row_of, basis, 0)
            room = session.Session(basis, pool, session.Answers(path), session.CHOSEN, 0)
            room.state("ann")

            def click(mark, room=room):
                room.answer("ann", mark, "left")
                room.state("ann")

            threads = torch.get_num_threads()
            torch.set_num_threads(session.THREADS)
            spent = [1000 * seconds(click, room.mark(room.rater("ann"))) for _ in range(answers)]
            afterwards = 1000 * seconds(room.rater("ann").foretold)
            torch.set_num_threads(threads)
        kind = "with something of one's own" if deviation_spread else "mixtures alone"
        told = f"{statistics.median(spent):.0f} ms ({min(spent):.0f} .. {max(spent):.0f})"
        more = f"leave-one-out behind it {afterwards:.0f} ms"
        judge(f"a click, {kind}: {told}, {more}, target 50", statistics.median(spent) < 50)


def made_up_rows(prompts, replies=8):
    """Prompts with candidates."""
    rows = []
    for prompt in range(prompts):
        about = f"w{prompt // WORDS} w{prompt % WORDS}"
        rows.append({"prompt": about, "candidates": [f"w{i} " * (24 + i) for i in range(replies)]})
    return rows


def choosing(folder, prompts, device):
    encoder = Encoder(str(folder), "last", torch.device(device))
    basis = planted_basis(encoder.num_features, CHOSEN_FOR)
    users = basis.everybody
    rows = made_up_rows(prompts)
    conversations = []
    for row in rows:
        conversations += candidates_of("here", row)
    with tempfile.TemporaryDirectory() as name:
        source = Path(name) / "rows.jsonl"
        source.write_text("".join(json.dumps(row) + "\n" for row in rows))
        encoder.embed(conversations[:64])

        def choose():
            summary = best_of_n.Summary(users)
            doubts = best_of_n.Doubts(basis, users)
            rows = best_of_n.scored_rows(source, candidates_of, encoder, basis, users)
            with best_of_n.written_rows(Path(name) / "chosen.jsonl") as write:
                for row in rows:
                    chosen = best_of_n.choose(row, users, doubts, vote=False)
                    write(row.fields | chosen)
                    summary.add(chosen)

        spent = seconds(choose)
        embedding = seconds(encoder.embed, conversations)
    what = f"best of 8 for {CHOSEN_FOR} people, {prompts} prompts"
    told = f"{spent:.1f} s, embedding alone {embedding:.1f} s, ratio {spent / embedding:.2f}"
    judge(f"{what}: {told}, target 2", spent < 2 * embedding)


def main():
    parser = flags(__doc__)
    parser.add_argument("--model", help="a reward model for best_of_n")
    parser.add_argument("--prompts", type=int, default=10_000)
    parser.add_argument("--device", default="cpu")
    args = parser.parse_args()
    torch.manual_seed(0)
    scoring()
    adapting()
    clicking()
    with tempfile.TemporaryDirectory() as folder:
        if not args.model:
            random_model(folder, "small")
        choosing(args.model or folder, args.prompts, args.device)


if __name__ == "__main__":
    start(main)
