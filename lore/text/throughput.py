"""How much of an embedding is done, how fast, and what was cut or left out."""

import math
import time
from collections import Counter

from lore.common import progress
from lore.processes import summed
from lore.text.conversations import text_bytes
from lore.text.packing import count_computed, paths_of

NOTES = {  # what is counted beside the tokens, as it is told in the end
    "cut": "conversations are too long: the oldest part of their prompt is left out",
    "cut_replies": "replies alone are too long: their beginning is left out as well",
    "repeated": "texts have the tokens of another text: the model sees no difference",
}


def count_tokens(batch, padded):
    """Texts of a batch, and tokens: of each text by itself (plain), of the trees (tokens), padded."""
    paths = paths_of(batch)
    return {
        "texts": len(paths),
        "plain": sum(len(path) for _, path in paths),
        "tokens": sum(len(tree.tokens) for tree in batch),
        "padded": count_computed(batch, padded),
    }


class Tally:
    """Sums over all batches, and a bar by the bytes of text, so that the time left can be told."""

    def __init__(self, size):
        """size: bytes of text that are to come."""
        self.counts = Counter(dict.fromkeys(("texts", "plain", "tokens", "padded", *NOTES), 0))
        self.size = size
        self.start = -math.inf  # of a process that has no part
        self.bar = None

    def __enter__(self):
        return self

    def __exit__(self, *_):
        if self.bar is not None:
            self.bar.close()

    def count(self, counts):
        if self.bar is None:  # the first texts are ready: the model is loaded by now
            self.start = time.monotonic()
            options = {"unit": "B", "unit_scale": True, "mininterval": 1}
            self.bar = progress(None, "embedding", total=self.size, **options)
        self.counts.update(counts)

    def advance(self, counts, conversations):
        """Count a batch that is computed, and move the bar by its text."""
        self.count(counts)
        text = f"{self.describe_speed(self.counts)}, {describe_savings(self.counts)}"
        self.bar.set_postfix_str(text, refresh=False)
        self.bar.update(sum(map(text_bytes, conversations)))

    def describe_speed(self, counts):
        seconds = max(time.monotonic() - self.start, 1e-9)
        return f"{counts['texts'] / seconds:.1f} texts/s, {counts['tokens'] / seconds:.0f} tokens/s"

    def report(self):
        """Print the sums over all processes, with the time of this one."""
        counts = summed(self.counts)
        texts = counts["texts"]
        for name, note in NOTES.items():
            if counts[name]:
                print(f"{counts[name]} of {texts} {note}")
        if texts:
            done = f"{texts} texts, {counts['tokens']} tokens computed ({describe_savings(counts)})"
            print(f"{done}: {self.describe_speed(counts)}")


def describe_savings(counts):
    saved = 1 - counts["tokens"] / max(counts["plain"], 1)
    padding = 1 - counts["tokens"] / max(counts["padded"], 1)
    return f"{saved:.0%} saved by sharing, {padding:.1%} padding"
