"""Embedding: the batches of lore/text/encoder.py against the plain way, one text at a time with a forward pass of its own.

    python benchmarks/embed.py                                        a random 50 M Llama on the CPU, eight minutes
    python benchmarks/embed.py --device cuda --size 8B --posts 400    a random 8B Llama in bfloat16, and its share of
                                                                      the card's --peak, in TFLOP a second
    python benchmarks/embed.py --model FOLDER --pairs FILE.jsonl.gz   a real model in float32, bfloat16 and mixed:
                                                                      speed, and what it costs in rewards
    python benchmarks/embed.py --model FOLDER --pooling mean --pairs FILE.jsonl.gz       the same for a text encoder,
                                                                      and sentence-transformers where it is installed

The plain way is the published one: the chosen and the rejected text of every comparison (PersonalLLM: every response),
each by itself, nothing kept. Its time is also counted without the texts that it has had before. Texts are random words,
a token each, in the structure and of the lengths that the three data sets have; both ways tokenise, and run in turn in
this process on other texts in every round. Ratios are medians over the rounds, lowest and highest in brackets.

With --model, each prompt of FILE (prompt, chosen, rejected) is a round, its replies embedded in every way in turn. The
reward is that of the head; a text encoder has none, there it is the mean difference of chosen and rejected.
"""

import argparse
import io
import random
import statistics
import sys
import tempfile
import time
from contextlib import redirect_stdout
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch
from prism import QUESTION_TOKENS, REPLY_TOKENS, dialogues, verdict

from lore.text.conversations import distinct, exchange, read_rows
from lore.text.encoder import Encoder
from lore.text.packing import split_into_parts
from lore.text.throughput import count_tokens

WORDS = 8000
SIZES = {  # width, layers, width of the MLP, heads, key heads
    "50M": (768, 8, 2048, 12, 4),
    "8B": (
        4096,
        32,
        14336,
        32,
        8,
    ),  # as Llama 3.1, but for the vocabulary, which is only looked up here
    "tiny": (64, 2, 128, 4, 2),
}
TARGETS = {"TL;DR": 3, "PRISM": 4, "PersonalLLM": 2}
TLDR_POSTS = {  # (comparisons, different summaries) of a post: posts, in 1,776 public comparisons
    (1, 2): 855, (2, 2): 12, (2, 4): 2, (3, 2): 1, (3, 4): 2, (4, 2): 3, (4, 4): 2, (5, 2): 5, (5, 4): 6, (6, 2): 2,
    (6, 4): 86, (7, 2): 1, (7, 6): 11, (8, 2): 4, (9, 2): 2, (10, 2): 5, (11, 2): 4, (11, 6): 1, (12, 4): 1, (30, 4): 1,
}  # fmt: skip
TLDR_TOKENS = (
    (303, 91),
    (35, 7),
)  # mean and standard deviation of a post and of a summary, counted in the same
PERSONAL_TOKENS = (50, 40), (300, 120)  # of a prompt and of a response, assumed
PRISM_SPREAD = 0.7  # standard deviation over mean, of a gamma distribution with shape 2


class Texts:
    """Made-up conversations, deterministic."""

    def __init__(self, seed):
        self.rng = random.Random(seed)

    def words(self, mean, spread):
        count = max(4, round(self.rng.gammavariate((mean / spread) ** 2, spread**2 / mean)))
        return " ".join(f"w{self.rng.randrange(WORDS)}" for _ in range(count))

    def tldr(self, posts):
        """Both texts of every comparison of some posts."""
        kinds, weights = zip(*TLDR_POSTS.items())
        for comparisons, summaries in self.rng.choices(kinds, weights, k=posts):
            post, texts = (
                self.words(*TLDR_TOKENS[0]),
                [self.words(*TLDR_TOKENS[1]) for _ in range(summaries)],
            )
            pairs = [(a, b) for a in texts for b in texts if a < b]
            for number in range(comparisons):
                yield from (exchange(post, text) for text in pairs[number % len(pairs)])

    def prism(self, count):
        """Both conversations of every pair of some dialogues."""
        for sizes in self.rng.sample(dialogues(), count):
            history = []
            for size in sizes:
                asked = [
                    *history,
                    {
                        "role": "user",
                        "content": self.words(QUESTION_TOKENS, PRISM_SPREAD * QUESTION_TOKENS),
                    },
                ]
                texts = [self.words(REPLY_TOKENS, PRISM_SPREAD * REPLY_TOKENS) for _ in range(size)]
                replies = [[*asked, {"role": "assistant", "content": text}] for text in texts]
                for rejected in replies[1:]:
                    yield from (replies[0], rejected)
                history = replies[0]

    def personal(self, prompts):
        """The eight responses to each of some prompts."""
        for _ in range(prompts):
            prompt = self.words(*PERSONAL_TOKENS[0])
            yield from (exchange(prompt, self.words(*PERSONAL_TOKENS[1])) for _ in range(8))


def random_model(folder, size):
    """A Llama reward model with random weights and a tokenizer that knows the made-up words."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForSequenceClassification, PreTrainedTokenizerFast

    special = ["<s>", "</s>", "<|user|>", "<|assistant|>", "<|end|>"]
    vocabulary = {word: i for i, word in enumerate([*special, *(f"w{i}" for i in range(WORDS))])}
    words = Tokenizer(models.WordLevel(vocabulary, unk_token="</s>"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    template = (
        "<s> {% for m in messages %}<|{{ m['role'] }}|> {{ m['content'] }} <|end|> {% endfor %}"
    )
    PreTrainedTokenizerFast(
        tokenizer_object=words, eos_token="</s>", chat_template=template
    ).save_pretrained(folder)
    width, layers, inner, heads, key_heads = SIZES[size]
    torch.manual_seed(0)
    torch.set_default_dtype(torch.bfloat16 if size == "8B" else torch.float32)
    config = LlamaConfig(
        vocab_size=len(vocabulary), hidden_size=width, num_hidden_layers=layers, intermediate_size=inner,
        num_attention_heads=heads, num_key_value_heads=key_heads, num_labels=1, max_position_embeddings=8192,
    )  # fmt: skip
    model = LlamaForSequenceClassification(config)
    model.save_pretrained(folder)
    torch.set_default_dtype(torch.float32)
    return sum(p.numel() for name, p in model.named_parameters() if "embed_tokens" not in name)


@torch.inference_mode()
def plain_way(model, tokenizer, texts, device):
    """(vectors, seconds of each text): rendered, tokenised and computed by itself."""
    vectors, seconds = [], []
    for text in texts:
        begin = time.perf_counter()
        ids = tokenizer(
            tokenizer.apply_chat_template(text, tokenize=False), add_special_tokens=False
        )["input_ids"]
        states = model.model(
            input_ids=torch.tensor([ids], device=device), use_cache=False
        ).last_hidden_state
        vectors.append(states[0, -1].cpu())
        seconds.append(time.perf_counter() - begin)
    return torch.stack(vectors), seconds


def our_way(encoder, texts):
    """(vectors of the texts, seconds): the steps of embed_split but for the files."""
    begin = time.perf_counter()
    table = encoder.embed(texts)
    return table, time.perf_counter() - begin


def tokens_computed(encoder, conversations):
    """(as trees, each conversation by itself, with padding), as embed has batched them."""
    found = []
    for rows in split_into_parts(conversations, together=True):
        part = [conversations[i] for i in rows]
        for batch in encoder.prepare(part).batches:
            found.append(count_tokens(batch, padded=False))
    return (sum(counts[name] for counts in found) for name in ("tokens", "plain", "padded"))


def median(ratios):
    return f"{statistics.median(ratios):.2f} x ({min(ratios):.2f} .. {max(ratios):.2f})"


def rounds_of(path, most, tokeniser):
    """[(texts, pairs of their numbers)] of at most `most` prompts, evenly chosen: chosen first.

    Pairs with a text that would be cut are left out: not every way cuts it at the same end.
    """
    by_prompt = {}
    for _, row in read_rows(path):
        by_prompt.setdefault(row["prompt"], []).append(row)
    prompts = list(by_prompt)
    step = max(1, len(prompts) // most)
    rounds = []
    for prompt in prompts[::step][:most]:
        talks = []
        for row in by_prompt[prompt]:
            pair = [exchange(prompt, row["chosen"]), exchange(prompt, row["rejected"])]
            if max(map(len, tokeniser.tokenise(pair))) <= tokeniser.longest:
                talks += pair
        if talks:
            texts, numbers = distinct(talks)
            rounds.append((texts, torch.tensor(numbers).reshape(-1, 2)))
    return rounds


def quietly_timed(function, texts):
    begin = time.perf_counter()
    with redirect_stdout(io.StringIO()):
        result = function(texts)
    return result, time.perf_counter() - begin


def compare_ways(ways, rounds, head):
    """Print each way's speed and rewards against those of the first. ways: {name: texts -> (n, d)}"""
    seconds = {name: [] for name in ways}
    tables = {name: [] for name in ways}
    differences = {name: [] for name in ways}
    for embed in ways.values():
        quietly_timed(embed, rounds[0][0][:2])  # loads the model, warms up
    for texts, pairs in rounds:
        for name, embed in ways.items():
            table, taken = quietly_timed(embed, texts)
            seconds[name].append(taken)
            tables[name].append(table.float())
            differences[name].append(tables[name][-1][pairs[:, 0]] - tables[name][-1][pairs[:, 1]])
    first = next(iter(ways))
    expected = torch.cat(tables[first])
    wins = torch.cat(differences[first])
    direction = wins.mean(0) if head is None else head[:, 0]
    rewards = wins @ direction  # (pairs, d) @ (d,)
    print(
        f"{len(expected)} texts, {len(rewards)} pairs; in {first} rewards differ by {rewards.std():.3f}"
    )
    for name in list(ways)[1:]:
        ratios = [a / b for a, b in zip(seconds[first], seconds[name])]
        table = torch.cat(tables[name])
        cosine = torch.cosine_similarity(table, expected).min()
        if table.norm(dim=1).std() < 1e-3 * table.norm(dim=1).mean() and head is None:
            print(
                f"{name:22} {median(ratios)} as fast, smallest cosine {cosine:.5f} (of unit length)"
            )
            continue
        found = torch.cat(differences[name]) @ direction
        noise = (found - rewards).std() / rewards.std()
        turned = ((found > 0) != (rewards > 0)).float().mean()
        print(
            f"{name:22} {median(ratios)} as fast, noise {noise:.3f} of that, {turned:.2%} of signs"
            f" turned, smallest cosine {cosine:.5f}"
        )


def sentence_transformers_way(folder, device, longest):
    """texts -> vectors by that package in float32; None, and why is printed, where it is not to be had."""
    try:
        from sentence_transformers import SentenceTransformer
    except ImportError as error:
        print(f"sentence-transformers is left out: {error}")
        return None
    model = SentenceTransformer(str(folder), device=str(device))
    model.max_seq_length = longest  # not the fewer tokens that some folders ask for

    def embed(conversations):
        texts = ["\n\n".join(message["content"] for message in talk) for talk in conversations]
        return model.encode(texts, convert_to_tensor=True, show_progress_bar=False).cpu()

    return embed


def measure_model(args):
    """What three precisions of one model cost and bring, and a text encoder elsewhere."""
    encoders = {}
    for precision in ("float32", "bfloat16", "mixed"):
        encoders[precision] = Encoder(
            args.model, args.pooling, torch.device(args.device), precision
        )
    ways = {name: encoder.embed for name, encoder in encoders.items()}
    tokeniser = encoders["float32"].tokeniser
    if args.pooling == "mean":
        other = sentence_transformers_way(args.model, args.device, tokeniser.longest)
        if other is not None:
            ways["sentence-transformers"] = other
    rounds = rounds_of(args.pairs, args.prompts, tokeniser)
    compare_ways(ways, rounds, encoders["float32"].head)


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--size", default="50M", choices=SIZES)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument(
        "--posts",
        type=int,
        default=40,
        help="of a TL;DR round; dialogues and prompts in proportion",
    )
    parser.add_argument(
        "--peak",
        type=float,
        default=989.0,
        help="TFLOP a second of the card in bfloat16; an H100's",
    )
    parser.add_argument("--model", default="", help="folder of a real model to measure instead")
    parser.add_argument("--pooling", default="last", choices=("last", "mean"), help="of --model")
    parser.add_argument("--pairs", help="JSON lines with prompt, chosen, rejected, for --model")
    parser.add_argument("--prompts", type=int, default=20, help="of --pairs, at most")
    args = parser.parse_args()
    if args.model and not args.pairs:
        parser.error("--model: on which texts? name them with --pairs")
    if args.model:
        measure_model(args)
        return
    device = torch.device(args.device)
    with tempfile.TemporaryDirectory() as folder:
        parameters = random_model(folder, args.size)
        dtype = "bfloat16" if args.size == "8B" else "float32"
        encoder = Encoder(folder, "last", device, dtype)
        plain = Encoder(folder, "last", device, dtype, share=False)
        model, tokenizer = plain.model, plain.tokenizer
        print(
            f"Llama, {parameters / 1e6:.0f} M parameters without the vocabulary, {dtype}, {device}",
            flush=True,
        )
        for name, kind, count in (
            ("TL;DR", Texts.tldr, args.posts),
            ("PRISM", Texts.prism, args.posts // 4),
            ("PersonalLLM", Texts.personal, args.posts // 5),
        ):
            against_all, against_distinct, error, saved, padding, rates = [], [], 0.0, [], [], []
            for number in range(-1, args.rounds):  # the first one warms up both ways
                texts = list(kind(Texts(number), count if number >= 0 else 2))
                conversations, rows = distinct(texts)
                expected, seconds = plain_way(model, tokenizer, texts, device)
                with redirect_stdout(io.StringIO()):
                    vectors, ours = our_way(encoder, texts)
                error = max(error, (vectors - expected).abs().max().item())
                if number >= 0:
                    first = [rows.index(row) for row in range(max(rows) + 1)]
                    against_all.append(sum(seconds) / ours)
                    against_distinct.append(sum(seconds[i] for i in first) / ours)
                    tokens, plain_tokens, padded = tokens_computed(encoder, conversations)
                    saved.append(1 - tokens / plain_tokens)
                    padding.append(1 - tokens / padded)
                    rates.append(tokens / ours)
            reached = statistics.median(against_all) >= TARGETS[name] and max(padding) < 0.03
            print(
                f"{name:11} {median(against_all)} against every text of every comparison, target {TARGETS[name]};"
                f" {median(against_distinct)} without texts that come again\n"
                f"            sharing saves {statistics.median(saved):.0%} of the tokens of different texts,"
                f" padding {max(padding):.1%}: {verdict(reached)}"
            )
            exact = f"largest difference {error:.1e}" + (
                f": {verdict(error < 1e-5)}" if dtype == "float32" else ""
            )
            rate = statistics.median(rates)
            share = (
                f", {2 * parameters * rate / 1e12 / args.peak:.0%} of the peak"
                if device.type == "cuda"
                else ""
            )
            print(f"            {rate:.0f} tokens a second{share}; {exact}", flush=True)


if __name__ == "__main__":
    main()
