"""Planted people answer the questions of a session, so that its two rules can be compared on a basis and a pool.

    python benchmarks/planted_session.py --basis BASIS --input POOL --output SESSIONS
    python apply/session.py --basis BASIS --input POOL --output SESSIONS --compare          the table

Each person mixes the basis rewards as somebody of its file does, and prefers a reply with the probability that
these give it. Questions come by --rule both: a coin says of each whether it is chosen or drawn. --model where
the basis's encoder has moved.
"""

from pathlib import Path

import torch
from measure import flags, load_module

from lore.common import progress, require, start
from lore.settings import defaults_of

session = load_module("apply/session.py")
saved_basis = load_module("apply/saved_basis.py")

BOTH = "both"  # of the rules of session.py


def answer(room, user, w, generator):
    """One question, answered by somebody with the mixture w (K,)."""
    rater = room.rater(user)
    prompt, left, right, _ = rater.question
    Z = room.pool.Z[prompt.rows]  # (candidates, K)
    margin = (Z[left] - Z[right]) @ w  # (K,) @ (K,)
    says_left = torch.rand((), generator=generator) < torch.sigmoid(margin)
    room.answer(user, room.mark(rater), session.LEFT if says_left else session.RIGHT)


def main():
    # of each 40 answers: about 20 of each rule, of which those behind the tenth random one are the rest
    parser = flags(__doc__, model="", people=20, answers=40)
    for name in ("basis", "input", "output"):
        parser.add_argument(f"--{name}", required=True)
    args = parser.parse_args()
    require(not Path(args.output).exists(), f"{args.output} is there already; name another file")
    basis = saved_basis.open_basis(args.basis)
    options = defaults_of(saved_basis, model=args.model)
    encoder = saved_basis.encoder_of_basis(args.basis, basis, options)
    prompts = session.read_pool(args.input)
    folder = Path(args.output).with_suffix(".vectors")
    table, row_of = session.embed_pool(folder, prompts, [], encoder)
    pool = session.Pool(prompts, table, row_of, basis, 0)
    room = session.Session(basis, pool, session.Answers(args.output), BOTH, 0)
    generator = torch.Generator().manual_seed(0)
    W = torch.cat([basis.W, basis.W_unseen]).double()
    for number in progress(range(args.people), "people"):
        w = W[torch.randint(len(W), (), generator=generator)]
        for _ in range(args.answers):
            answer(room, f"planted {number}", w, generator)
    print(f"{args.people} x {args.answers} answers are in {args.output}")


if __name__ == "__main__":
    start(main)
