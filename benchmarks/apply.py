"""A saved basis at work: seconds to score, to adapt and to choose, beside the bare product or the embedding.

    python benchmarks/apply.py                    a minute; planted people, 2 GB of memory at most
    python benchmarks/apply.py --model FOLDER         best_of_n with this reward model (else a tiny random one)

Scoring: 100,000 embeddings, d = 4096, for 1,000 people of a rank-5 basis, against (rows, d) @ (d, people)
as one product. Adapting: 10,000 people with 20 pairs each: mixtures, spread, certificate, leave-one-out.
Choosing: best_of_n.py on prompts x 8 candidates for 100 people, against the embedding of the same texts.
"""

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))
sys.path.insert(0, str(HERE.parent / "apply"))

import best_of_n
import torch

from leave_one_out import adapt
from lore.common import start
from lore.fit.basis import Basis
from lore.fit.comparisons import Comparisons
from lore.fit.likelihood import LOGIT_SCALE
from lore.text.encoder import Encoder
from lore.text.input_rows import candidates_of
from saved_basis import scored_rows, written_rows

K = 5
PEOPLE = 1000
CHOSEN_FOR = 100


def clock(work):
    begin = time.perf_counter()
    work()
    return time.perf_counter() - begin


def planted_basis(d, people, own=0.0):
    """A rank-5 basis whose rewards differ by log-odds of about 1."""
    V = LOGIT_SCALE * torch.randn(d, K) / d**0.5
    W = torch.distributions.Dirichlet(torch.full((K,), 0.3)).sample((people,))
    ids = tuple(f"person{i}" for i in range(people))
    E = torch.randn(people, d) / d**0.5 if own else None
    E_unseen = torch.zeros(0, d) if own else None
    return Basis(V, W, ids, W[:0], (), "", E, E_unseen, W.mean(0), 1.0, own)


def verdict(text, reached):
    print(f"{text}: {'reached' if reached else 'MISSED'}", flush=True)


def scoring(rows=100_000, d=4096):
    basis = planted_basis(d, PEOPLE)
    table = torch.randn(rows, d)
    rewards = basis.rewards(basis.everybody)  # (d, people)
    basis.log_odds(table[:1000], basis.everybody)
    ours, bare = [], []
    for _ in range(3):
        ours.append(clock(lambda: basis.log_odds(table, basis.everybody)))
        bare.append(clock(lambda: table @ rewards))
    ratio = min(ours) / min(bare)
    print(
        f"scoring {rows} rows for {PEOPLE} people: {min(ours):.2f} s, bare product {min(bare):.2f} s"
    )
    verdict(f"under 2 s and within 2 x of the product ({ratio:.2f})", min(ours) < 2 and ratio < 2)


def adapting(people=10_000, pairs=20, d=4096):
    for own in (0.0, 0.02):
        basis = planted_basis(d, 10, own)
        table = torch.randn(20_000, d)
        user = torch.arange(people).repeat_interleave(pairs)
        first = torch.randint(len(table), (len(user),))
        second = (first + 1 + torch.randint(len(table) - 1, (len(user),))) % len(table)
        ids = tuple(map(str, range(people)))
        comparisons = Comparisons(table, user, ids, first, second)
        seconds = clock(lambda given=(basis, comparisons): adapt(*given))
        kind = "with something of one's own" if own else "mixtures alone"
        verdict(
            f"adapting {people} people x {pairs} pairs, {kind}: {seconds:.1f} s, target 5",
            seconds < 5,
        )


def choosing(folder, prompts, device):
    encoder = Encoder(str(folder), "last", torch.device(device))
    basis = planted_basis(encoder.num_features, CHOSEN_FOR)
    rows = []
    for prompt in range(prompts):
        candidates = [f"answer {prompt * i + i} to it is {'well ' * i}known" for i in range(8)]
        rows.append({"prompt": f"What is known of {prompt}?", "candidates": candidates})
    with tempfile.TemporaryDirectory() as place:
        source = Path(place) / "rows.jsonl"
        source.write_text("".join(json.dumps(row) + "\n" for row in rows))
        talks = []
        for row in rows:
            talks += candidates_of("here", row)
        encoder.embed(talks[:64])

        def choose():
            summary = best_of_n.Summary(basis.everybody)
            with written_rows(Path(place) / "chosen.jsonl") as write:
                for row in scored_rows(source, candidates_of, encoder, basis, basis.everybody):
                    write(row.fields | best_of_n.choose(row, basis.everybody, summary, vote=False))

        seconds = clock(choose)
        embedding = clock(lambda: encoder.embed(talks))
    ratio = seconds / embedding
    verdict(
        f"best of 8 for {CHOSEN_FOR} people, {prompts} prompts: {seconds:.1f} s, embedding alone"
        f" {embedding:.1f} s, ratio {ratio:.2f}, target 2",
        ratio < 2,
    )


def tiny_model(folder):
    """A random reward model, so small that all else beside it shows."""
    sys.path.insert(0, str(HERE.parent / "tests"))
    import conftest
    from transformers import LlamaConfig, LlamaForSequenceClassification

    tokenizer = conftest.tokenizer.__wrapped__()
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=128, intermediate_size=256, num_hidden_layers=4,
        num_attention_heads=4, max_position_embeddings=512, num_labels=1,
    )  # fmt: skip
    LlamaForSequenceClassification(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", help="a reward model for best_of_n")
    parser.add_argument("--prompts", type=int, default=10_000)
    parser.add_argument("--device", default="cpu")
    args = parser.parse_args()
    torch.manual_seed(0)
    scoring()
    adapting()
    with tempfile.TemporaryDirectory() as folder:
        choosing(args.model or tiny_model(folder), args.prompts, args.device)


if __name__ == "__main__":
    start(main)
