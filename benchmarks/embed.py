"""Embedding: the batches of lore/text/encoder.py against the plain way, a forward pass for each text by itself.

    python benchmarks/embed.py                                        a random 50 M Llama on the CPU, eight minutes
    python benchmarks/embed.py --device cuda --size 8B --posts 400    a random 8B Llama in bfloat16, and its share of
                                                                      the card's --peak, in TFLOP a second
    python benchmarks/embed.py --model FOLDER --pairs FILE.jsonl.gz   a real model in float32, bfloat16 and mixed:
                                                                      speed, and what it costs in rewards
    python benchmarks/embed.py --model FOLDER --pooling mean --pairs FILE.jsonl.gz       the same for a text encoder

The plain way is the published one: the chosen and the rejected text of every comparison (PersonalLLM: every response),
each by itself, nothing kept. Its time is also counted without the texts that it has had before. Texts are random words,
a token each, in the structure and of the lengths that the three data sets have; both ways tokenise, and run in turn in
this process on other texts in every round. Ratios are medians over the rounds, lowest and highest in brackets.

With --model, each prompt of FILE (prompt, chosen, rejected) is a round, its replies embedded in every way in turn. The
reward is that of the head; a text encoder has none, there it is the mean difference of chosen and rejected.
"""

import itertools
import random
import tempfile

import torch
from measure import flags, judge, ratio, timed
from prism import QUESTION_TOKENS, REPLY_TOKENS, dialogues

from lore.common import require, start
from lore.text.conversations import distinct, exchange, read_rows
from lore.text.encoder import Encoder
from lore.text.throughput import Tally

WORDS = 8000
PRECISIONS = ("float32", "bfloat16", "mixed")
SIZES = {  # width, layers, width of the MLP, heads, key heads
    "50M": (768, 8, 2048, 12, 4),
    "8B": (4096, 32, 14336, 32, 8),  # as Llama 3.1, but for the vocabulary, only looked up here
    "small": (128, 4, 256, 4, 4),
    "tiny": (64, 2, 128, 4, 2),
}
TLDR_POSTS = {  # (comparisons, different summaries) of a post: posts, in 1,776 public comparisons
    (1, 2): 855, (2, 2): 12, (2, 4): 2, (3, 2): 1, (3, 4): 2, (4, 2): 3, (4, 4): 2, (5, 2): 5, (5, 4): 6, (6, 2): 2,
    (6, 4): 86, (7, 2): 1, (7, 6): 11, (8, 2): 4, (9, 2): 2, (10, 2): 5, (11, 2): 4, (11, 6): 1, (12, 4): 1, (30, 4): 1,
}  # fmt: skip
# mean and standard deviation in tokens
TLDR_POST = (303, 91)  # counted in the same comparisons
TLDR_SUMMARY = (35, 7)
PERSONAL_PROMPT = (50, 40)  # assumed
PERSONAL_RESPONSE = (300, 120)
PRISM_QUESTION = (QUESTION_TOKENS, 0.7 * QUESTION_TOKENS)  # a gamma distribution with shape 2
PRISM_REPLY = (REPLY_TOKENS, 0.7 * REPLY_TOKENS)


class Texts:
    """Made-up conversations, deterministic."""

    def __init__(self, seed):
        self.rng = random.Random(seed)

    def words(self, length):
        mean, spread = length
        count = max(4, round(self.rng.gammavariate((mean / spread) ** 2, spread**2 / mean)))
        return " ".join(f"w{self.rng.randrange(WORDS)}" for _ in range(count))

    def tldr(self, posts):
        """Both texts of every comparison of some posts."""
        kinds, weights = zip(*TLDR_POSTS.items())
        for comparisons, summaries in self.rng.choices(kinds, weights, k=posts):
            post = self.words(TLDR_POST)
            texts = sorted(self.words(TLDR_SUMMARY) for _ in range(summaries))
            pairs = [*itertools.combinations(texts, 2)]
            for number in range(comparisons):
                yield from (exchange(post, text) for text in pairs[number % len(pairs)])

    def prism(self, count):
        """Both conversations of every pair of some dialogues."""
        for sizes in self.rng.sample(dialogues(), count):
            history = []
            for size in sizes:
                asked = [*history, {"role": "user", "content": self.words(PRISM_QUESTION)}]
                texts = [self.words(PRISM_REPLY) for _ in range(size)]
                replies = [[*asked, {"role": "assistant", "content": text}] for text in texts]
                for rejected in replies[1:]:
                    yield from (replies[0], rejected)
                history = replies[0]

    def personal(self, prompts):
        """The eight responses to each of some prompts."""
        for _ in range(prompts):
            prompt = self.words(PERSONAL_PROMPT)
            yield from (exchange(prompt, self.words(PERSONAL_RESPONSE)) for _ in range(8))


DATA_SETS = {  # texts of a count; that count, over --posts; target, times as fast as the published way
    "TL;DR": (Texts.tldr, 1, 3),
    "PRISM": (Texts.prism, 1 / 4, 4),
    "PersonalLLM": (Texts.personal, 1 / 5, 2),
}


def random_model(folder, size, device="cpu"):
    """A Llama reward model with random weights and a tokenizer that knows the made-up words; its parameters.

    device: where the weights are drawn; a CPU takes minutes for 8B.
    """
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForSequenceClassification, PreTrainedTokenizerFast

    special = ["<s>", "</s>", "<|user|>", "<|assistant|>", "<|end|>"]
    vocabulary = {word: i for i, word in enumerate([*special, *(f"w{i}" for i in range(WORDS))])}
    words = Tokenizer(models.WordLevel(vocabulary, unk_token="</s>"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    said = "<|{{ m['role'] }}|> {{ m['content'] }} <|end|> "
    template = f"<s> {{% for m in messages %}}{said}{{% endfor %}}"
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, eos_token="</s>", chat_template=template)
    tokenizer.save_pretrained(folder)
    width, layers, inner, heads, key_heads = SIZES[size]
    torch.manual_seed(0)
    torch.set_default_dtype(torch.bfloat16 if size == "8B" else torch.float32)
    config = LlamaConfig(
        vocab_size=len(vocabulary), hidden_size=width, num_hidden_layers=layers, intermediate_size=inner,
        num_attention_heads=heads, num_key_value_heads=key_heads, num_labels=1, max_position_embeddings=8192,
    )  # fmt: skip
    with torch.device(device):
        model = LlamaForSequenceClassification(config)
    model.save_pretrained(folder)
    torch.set_default_dtype(torch.float32)
    return sum(p.numel() for name, p in model.named_parameters() if "embed_tokens" not in name)


# ------------------------------------------------------------------------------------------------
# Speed of a random model
# ------------------------------------------------------------------------------------------------


@torch.inference_mode()
def plain_vector(encoder, text):
    """The last token's state of one conversation: rendered, tokenised and computed by itself."""
    rendered = encoder.tokenizer.apply_chat_template(text, tokenize=False)
    ids = encoder.tokenizer(rendered, add_special_tokens=False)["input_ids"]
    tokens = torch.tensor([ids], device=encoder.device)
    states = encoder.model.model(input_ids=tokens, use_cache=False).last_hidden_state
    return states[0, -1].cpu()


def measure_round(plain, encoder, texts):
    """Seconds of every text of every comparison one at a time, of those that had not come before, and ours;
    the largest difference of a coordinate between the two ways; counts of a Tally: {name: number}."""
    vectors, spent = zip(*(timed(plain_vector, plain, text) for text in texts))
    with Tally(0) as tally:
        (table, rows), ours = timed(encoder.embed_distinct, texts, tally)
    once = sum(dict(zip(rows.tolist()[::-1], spent[::-1])).values())  # the first time of each
    error = (table[rows] - torch.stack(vectors)).abs().max().item()
    return {"every": sum(spent), "once": once, "ours": ours, "error": error, **tally.counts}


def measure_data_set(name, plain, encoder, args):
    """Three lines of one data set; the rate in tokens a second."""
    import pandas as pd

    texts, share, target = DATA_SETS[name]
    measure_round(plain, encoder, [*texts(Texts(-1), 2)])  # warms up both ways
    rounds = []
    for seed in range(args.rounds):
        of_round = [*texts(Texts(seed), round(share * args.posts))]
        rounds.append(measure_round(plain, encoder, of_round))
    rounds = pd.DataFrame(rounds)
    gain, told = ratio(rounds["every"], rounds["ours"])
    judge(f"{name}: {told} against every text of every comparison, target {target}", gain >= target)
    saved = (1 - rounds["tokens"] / rounds["plain"]).median()
    padding = (1 - rounds["tokens"] / rounds["padded"]).max()
    rate = (rounds["tokens"] / rounds["ours"]).median()
    print(f"  {ratio(rounds['once'], rounds['ours'])[1]} without texts that come again;", end=" ")
    print(f"sharing saves {saved:.0%} of the tokens of different texts, padding is {padding:.1%}")
    print(f"  largest difference {rounds['error'].max():.1e}; {rate:.0f} tokens a second")
    return rate


def measure_random(args):
    device = torch.device(args.device)
    dtype = "bfloat16" if args.size == "8B" else "float32"
    with tempfile.TemporaryDirectory() as folder:
        parameters = random_model(folder, args.size, device)
        encoder = Encoder(folder, "last", device, dtype)
        plain = Encoder(folder, "last", device, dtype, share=False)
        size = f"{parameters / 1e6:.0f} M parameters without the vocabulary"
        print(f"Llama, {size}, {dtype}, {device}", flush=True)
        for name in DATA_SETS:
            rate = measure_data_set(name, plain, encoder, args)
            if device.type == "cuda":
                print(f"  {2 * parameters * rate / 1e12 / args.peak:.0%} of the peak")


# ------------------------------------------------------------------------------------------------
# Precisions of a real model
# ------------------------------------------------------------------------------------------------


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
        conversations = []
        for row in by_prompt[prompt]:
            pair = [exchange(prompt, row["chosen"]), exchange(prompt, row["rejected"])]
            if max(map(len, tokeniser.tokenise(pair))) <= tokeniser.longest:
                conversations += pair
        if conversations:
            texts, numbers = distinct(conversations)
            rounds.append((texts, torch.tensor(numbers).reshape(-1, 2)))
    return rounds


def measure_model(args):
    """What three precisions of one model cost and bring: speed, and rewards against those of the first."""
    device = torch.device(args.device)
    encoders = {name: Encoder(args.model, args.pooling, device, name) for name in PRECISIONS}
    rounds = rounds_of(args.pairs, args.prompts, encoders[PRECISIONS[0]].tokeniser)
    spent = {name: [] for name in encoders}
    tables = {name: [] for name in encoders}
    wins = {name: [] for name in encoders}  # e(chosen) - e(rejected)
    for texts, pairs in [(rounds[0][0][:2], None), *rounds]:
        for name, encoder in encoders.items():
            with Tally(0) as tally:
                (table, _), seconds = timed(encoder.embed_distinct, texts, tally)
            if pairs is None:  # has loaded the model, and warmed up
                continue
            chosen, rejected = table.float()[pairs.T]  # (2, pairs, d)
            spent[name].append(seconds)
            tables[name].append(table.float())
            wins[name].append(chosen - rejected)
    first, *others = encoders
    expected = torch.cat(tables[first])
    X = torch.cat(wins[first])
    head = encoders[first].head
    direction = X.mean(0) if head is None else head[:, 0]
    rewards = X @ direction  # (pairs, d) @ (d,)
    print(f"{len(expected)} texts, {len(rewards)} pairs")
    for name in others:
        cosine = torch.cosine_similarity(torch.cat(tables[name]), expected).min()
        turned = ((torch.cat(wins[name]) @ direction > 0) != (rewards > 0)).float().mean()
        told = f"{name:9} {ratio(spent[first], spent[name])[1]} as fast as {first}"
        print(f"{told}, {turned:.2%} of signs turned, smallest cosine {cosine:.5f}")


def main():
    parser = flags(__doc__, device="cpu", rounds=3)
    add = parser.add_argument
    add("--size", default="50M", choices=SIZES)
    add("--posts", type=int, default=40, help="of a TL;DR round; dialogues, prompts in proportion")
    add("--peak", type=float, default=989.0, help="TFLOP/s of the card in bfloat16; an H100's")
    add("--model", default="", help="folder of a real model to measure instead")
    add("--pooling", default="last", choices=("last", "mean"), help="of --model")
    add("--pairs", help="JSON lines with prompt, chosen, rejected, for --model")
    add("--prompts", type=int, default=20, help="of --pairs, at most")
    args = parser.parse_args()
    require(args.pairs or not args.model, "--model: on which texts? name them with --pairs")
    if args.model:
        measure_model(args)
    else:
        measure_random(args)


if __name__ == "__main__":
    start(main)
