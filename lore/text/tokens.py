"""Conversations to token ids: rendered, shortened to what the model takes, and looked at before they are used."""

import math
from dataclasses import dataclass, field

import numpy as np

from lore.common import InputError, require, told_as
from lore.text.checkpoint import TEMPLATE_DATE
from lore.text.conversations import BESIDE_CONTENT

TEMPLATE_FAULTS = (  # what running one raises; RuntimeError: a macro that calls itself without end
    TypeError, ValueError, LookupError, AttributeError, ArithmeticError, RuntimeError,
)  # fmt: skip
OTHER_WORDS = "Something else was said here, in 17 other words."
CHARACTERS = 16  # a token that a model takes: of a longer text, the rest is not even tokenised


class ReplyTooLong(InputError):
    """A reply that alone has more tokens than the model takes."""


@dataclass
class Tokeniser:
    """Token ids as one model wants them.

    pooling: last = rendered by the chat template; mean = the messages' texts alone; longest: tokens
    that a conversation may have; rows: of the embedding matrix, one for each token.
    """

    name: str
    tokenizer: object
    pooling: str
    longest: int
    rows: int
    tried: set = field(default_factory=set)  # roles of conversations whose template was looked at

    def tokenise(self, conversations):
        """Token ids of whole conversations, as lists."""
        if self.pooling == "mean":
            texts = []
            for conversation in conversations:
                texts.append("\n\n".join(message["content"] for message in conversation))
            return self.tokenizer(texts, verbose=False)["input_ids"]
        texts = [self.render(conversation) for conversation in conversations]
        # the template writes its own special tokens; twice would be wrong
        return self.tokenizer(texts, add_special_tokens=False, verbose=False)["input_ids"]

    def render(self, conversation, **options):
        """The text that the chat template makes of it. InputError: it refuses, or fails."""
        from jinja2 import TemplateError

        options |= {"tokenize": False, "date_string": TEMPLATE_DATE}
        text = f"the chat template of {self.name} refuses a conversation, or fails on it"
        with told_as(text, TemplateError, *TEMPLATE_FAULTS):
            return self.tokenizer.apply_chat_template(conversation, **options)

    def tokens(self, conversations):
        """An array of token ids for each conversation, None where its reply alone is too long; and
        how many are `cut`, by the oldest part of their prompt, or by the beginning of their reply too.

        InputError: a text that this model cannot read.
        """
        ids = []
        counts = {"cut": 0, "cut_replies": 0}
        endings = [self.ending(conversation) for conversation in conversations]
        for conversation, tokens in zip(endings, self.tokenise(endings)):
            self.require_readable(conversation, tokens)
            if len(tokens) > self.longest:
                shortened = self.shorten(conversation)
                if shortened is not None:
                    tokens = shortened
                    counts["cut"] += 1
                elif self.pooling == "mean":  # no choice; the first token is special
                    tokens = tokens[:1] + tokens[len(tokens) - self.longest + 1 :]
                    counts["cut_replies"] += 1
                else:
                    tokens = None
            ids.append(None if tokens is None else np.array(tokens, dtype=np.int32))
        return ids, counts

    def require_readable(self, conversation, tokens):
        """InputError: no tokens, tokens of another model, a template that does not write the text."""
        start = repr(conversation[-1]["content"][:60])
        require(tokens, f"{self.name} makes no tokens of the text {start}")
        token = f"has token {max(tokens)}, in the text {start}, but the model has {self.rows}"
        require(max(tokens) < self.rows, f"the tokenizer of {self.name} {token}: they do not belong together")
        for what, altered in self.altered(conversation):
            is_read = altered == conversation or self.tokenise([altered])[0] != tokens
            require(is_read, f"{self.name} does not read the {what}")

    def altered(self, conversation):
        """Yield (what, conversation): without calls of tools and thoughts, which a template may leave out;
        where roles come in a new order, with other words in any of the first and last messages."""
        for name in BESIDE_CONTENT:
            talk = []
            for message in conversation:
                talk.append({key: value for key, value in message.items() if key != name})
            yield f"{name} of a message (its chat template): write it into the content, or leave it out", talk
        roles = tuple(message["role"] for message in conversation)
        if self.pooling == "mean" or roles in self.tried:
            return
        self.tried.add(roles)
        numbers = range(len(conversation))
        kinds = {len(conversation) - 1: "reply", len(conversation) - 2: "prompt"}
        for number in sorted({*numbers[:2], *numbers[-4:]}, reverse=True):
            talk = [dict(message) for message in conversation]
            if talk[number]["content"] or len(talk[number]) == 2:  # else a template may write a call alone
                talk[number]["content"] = OTHER_WORDS
                kind = kinds.get(number, "turn before them")
                yield f"text of a {kind}: does its chat template want a list of parts?", talk

    def ending(self, conversation):
        """The conversation without what is so far from its end that it is cut off anyway.

        What tokenising costs then depends on what the model takes, not on what somebody sends.
        """
        if not self.longest < math.inf:
            return conversation
        characters = int(CHARACTERS * self.longest)
        while text_length(conversation) > characters:
            talk = last_characters(conversation, characters)
            if not self.fits(talk):
                return talk
            characters *= 4  # few tokens: spaces, or one sign again and again
        return conversation

    def shorten(self, conversation):
        """Tokens of a conversation whose messages but the last lose no more of their beginnings than
        they must, the oldest first; a message that is lost stays as an empty turn. None where the
        last message alone is too long."""
        fitting = len(conversation[-1]["content"])  # characters
        if len(conversation) == 1 or not self.fits(last_characters(conversation, fitting)):
            return None
        too_many = text_length(conversation)
        while too_many - fitting > 1:
            middle = (fitting + too_many) // 2
            if self.fits(last_characters(conversation, middle)):
                fitting = middle
            else:
                too_many = middle
        return self.tokenise([last_characters(conversation, fitting)])[0]

    def fits(self, talk):
        return len(self.tokenise([talk])[0]) <= self.longest


def text_length(conversation):
    return sum(len(message["content"]) for message in conversation)


def last_characters(conversation, count):
    """A copy that has no more of its texts than so many characters at the end, in the same turns."""
    talk = [dict(message) for message in conversation]
    for message in reversed(talk):
        text = message["content"]
        message["content"] = text[max(len(text) - count, 0) :]
        count = max(count - len(text), 0)
    return talk
