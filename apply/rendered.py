"""Rendered conversations: what a chat template has written, taken apart into messages again.

A template is tried on short conversations of all shapes; what it writes around their texts are its
marks. A text is split at the marks, and the messages count only if the template writes that text of
them.
"""

import itertools
import re

from lore.common import InputError
from lore.text.checkpoint import TEMPLATE_DATE
from lore.text.conversations import exchange

ROLES = ("user", "assistant", "system", "tool")
BEGIN = ("user", "system")
USUAL = ("user", "assistant") * 3  # a conversation of three exchanges
PROBE = re.compile(r"Probe\d+x")  # what is said in them
LONGEST_TOKEN = 80  # characters of an end token that no tokenizer here knows
THINKING = re.compile(r"<think(?:ing)?>(.*?)</think(?:ing)?>", re.DOTALL)
OPENED = re.compile(r"\s*<think(?:ing)?>")
CLOSED = re.compile(r"</think(?:ing)?>")
# What trainers leave before and behind a text, whatever the tokenizer.
BEFORE = (
    r"(?i:<s>|</s>|<(?:bos|eos|pad|unk)>|\[PAD\]"
    r"|<[|\uff5c][^<>|\uff5c]*(?:begin|bos|start_?of_?text|end_?of_?text|eos|pad)[^<>|\uff5c]*[|\uff5c]>)"
)
BEHIND = re.compile(
    r"(?:</s>|<(?:eos|pad|unk)>|\[PAD\]|<end_of_turn>|<turn\|>"
    r"|<[|\uff5c][^<>|\uff5c]*(?:end|eot|eom|eos|pad|stop|return)[^<>|\uff5c]*[|\uff5c]>)\Z",
    re.IGNORECASE,
)
# What chat templates write and people do not.
SIGN = re.compile(
    r"<(?:[|\uff5c][^<>|\uff5c\s]+[|\uff5c]>"  # <|im_start|>; DeepSeek's bars are wide ones
    r"|/?(?:start|end|begin)_of_\w+>|\|turn>|turn\|>"  # Gemma
    r"|</?SYS>>|(?:bos|eos|pad|sop|eop|unk)>|extra_id_\d+>|SPECIAL_\d+>|/s>\s*(?:<s>|USER:|\Z))"
    r"|\[/?(?:INST|SYSTEM_PROMPT|AVAILABLE_TOOLS|TOOL_CALLS|TOOL_RESULTS|gMASK)\]"
)
# The end of a prompt that opens the reply's turn in plain words.
OPENS_REPLY = re.compile(
    r"(?:(?:\A|\n)[ \t#]*(?:[A-Z]\w* ){0,3}[Aa]ssistant ?:|\bASSISTANT ?:|\n#+ ?Response ?:?|<bot> ?:)\s*\Z"
)
BARE_ROLES = ("system\n", "user\n")  # a rendered prompt whose special tokens were left out
BARE_REPLY = re.compile(r"(?:assistant|model)\s*\Z")
LONGEST_OPENING = 200  # characters of it


class ChatTemplate:
    """The chat template of a tokenizer, forwards and backwards.

    tokeniser: a lore.text.tokens.Tokeniser, of which only `render` and the tokenizer are used.
    """

    def __init__(self, tokeniser):
        self.tokeniser = tokeniser
        tokenizer = tokeniser.tokenizer
        self.special = special_tokens(tokenizer)
        self.starts = {}  # text before the first message: its role
        self.marks = {role: {} for role in ROLES}  # {role: {text behind it: role of the next}}
        ends = set()
        for roles in shapes():
            ends |= self.learn(roles)
        for end in ends:  # where it also stands between two replies, it ends a text all the same
            self.marks["assistant"].pop(end, None)
        starts = sorted(self.starts, key=len, reverse=True)
        self.openings = [self.opening(start) for start in starts]
        self.patterns = {role: either(marks) for role, marks in self.marks.items()}
        self.padding = {tokenizer.pad_token, tokenizer.eos_token} - {None, ""}
        self.ends = self.padding | self.reply_ends(ends)
        self.thinks = self.reads_thinking()

    # ------------------------------------------------------------------------------- its marks ---

    def learn(self, roles):
        """Note what is written around the texts of a conversation; returns what stands behind it."""
        talk = [{"role": role, "content": f"Probe{i}x"} for i, role in enumerate(roles)]
        ends = set()
        for prompted in (False, True):
            pieces = pieces_around(self.render(talk, prompted), talk)
            if pieces is None:
                continue
            start, *marks, end = pieces
            if roles[0] in BEGIN:
                self.starts.setdefault(start, roles[0])
            for role, following, mark in zip(roles, roles[1:], marks):
                self.note(role, mark, following)
            if prompted:
                self.note(roles[-1], end, "assistant")
            elif roles[-1] == "assistant":
                ends.add(end)
        return ends

    def note(self, role, mark, following):
        if mark.strip():
            self.marks[role].setdefault(mark, following)

    def reply_ends(self, ends):
        """What a sampled reply may end in: what is written behind it, or tokens of that."""
        texts = {end.strip() for end in ends}
        for token in self.special:
            if any(token in end for end in ends):
                texts.add(token)
        for mark, role in self.marks["assistant"].items():
            if role != "assistant":  # as GLM's, which end in what opens the user's turn
                texts.add(mark.strip())
        return texts - {""}

    def render(self, talk, prompted=False):
        """The template's text, with the beginning of a reply behind it if prompted; None: it refuses."""
        try:
            return self.tokeniser.render(talk, add_generation_prompt=prompted)
        except InputError:
            return None

    def opening(self, start):
        """(pattern of a start with its first special token however often, that token, the start itself)."""
        first = ""
        for token in self.special:
            if start.startswith(token) and len(token) > len(first):
                first = token
        rest = re.escape(start.removeprefix(first).lstrip())
        rest = rest.replace(re.escape(TEMPLATE_DATE), r"[^\n<>]{4,40}?")  # of the day it was rendered
        return re.compile(rf"(?:{re.escape(first)})*\s*{rest}"), first, start

    def reads_thinking(self):
        """Whether it does anything about thoughts before a reply, but write them as they are."""
        thoughts = "<think>\nThoughtx\n</think>\n\nReplyx"
        plain = self.render(exchange("Promptx", "Replyx"))
        thinking = self.render(exchange("Promptx", thoughts))
        if plain is None or thinking is None:
            return False
        return thinking != plain.replace("Replyx", thoughts)

    # --------------------------------------------------------------------------------- a text ---

    def messages_of(self, text):
        """The conversation of which the template has written a text; None: it has not.

        Whatever pads the text may stand around it, its first special token may lack or be repeated,
        and a reply may end as a sampler ends it.
        """
        text = without_padding(text, self.padding)
        for pattern, _, start in self.openings_of(text):
            begun = pattern.match(text)
            if begun is None:
                continue
            talk = self.split(self.starts[start], text[begun.end() :])
            asked = any(message["role"] == "user" for message in talk[:-1])
            if asked and self.writes(talk, start):
                return self.as_sent(talk)
        return None

    def openings_of(self, text):
        """Those whose first token a text has, and then those where it is clear although it lacks."""
        whole = [opening for opening in self.openings if text.startswith(opening[1])]
        lacking = [opening for opening in self.openings if opening not in whole]
        bare = [first for _, first, start in self.openings if start.strip() == first]
        return whole + [opening for opening in lacking if len(bare) < 2 or opening[1] not in bare]

    def split(self, role, text):
        """Messages of a text that begins within one of this role, each with the mark before it."""
        talk = []
        mark = ""
        position = 0
        while True:
            match = self.patterns[role].search(text, position)
            content = text[position : match.start() if match else len(text)]
            talk.append({"role": role, "content": content.strip(), "mark": mark})
            if match is None:
                talk[-1]["content"] = without_ends(content.lstrip(), self.ends)
                return talk
            mark = match[0]
            role = self.marks[role][mark]
            position = match.end()

    def writes(self, talk, start):
        """Whether the template writes these marks around these messages, but for what ends them."""
        text = start + "".join(message["mark"] + message["content"] for message in talk)
        text = without_ends(text, self.ends)
        talk = plain_messages(talk)
        whole = self.render(talk)
        if whole is not None and without_ends(whole, self.ends) == text:
            return True
        prompt = self.render(talk[:-1], prompted=True)
        if prompt is None or talk[-1]["role"] != "assistant":
            return False
        return without_ends(prompt + talk[-1]["content"], self.ends) == text

    def as_sent(self, talk):
        """Messages without a turn that was opened behind the reply; thoughts that the prompt began."""
        *earlier, last = talk
        if not last["content"] and earlier[-1]["role"] == "assistant":
            last = earlier.pop()
        if last["mark"].rstrip().endswith("<think>"):
            last["content"] = f"<think>\n{last['content']}"
        return plain_messages([*earlier, last])


def shapes():
    """Roles of short conversations, the usual ones first: who may follow whom, and where."""
    for count in (2, 1, 4, 3, 6):
        yield USUAL[:count]
        yield ("system", *USUAL[:count])
    for pair in itertools.product(ROLES, repeat=2):
        for before in ((), USUAL[:2], ("system", *USUAL[:2])):
            yield (*before, *pair)
            yield (*before, *pair, "assistant")


def pieces_around(text, talk):
    """What stands before, between and behind the messages of a text; None where they are not in order."""
    in_order = [message["content"] for message in talk]
    return PROBE.split(text) if text is not None and PROBE.findall(text) == in_order else None


def either(texts):
    """A pattern of any of these, the longest where several begin."""
    ordered = sorted(texts, key=len, reverse=True)
    return re.compile("|".join(map(re.escape, ordered)) or r"(?!)")


def plain_messages(talk):
    return [{"role": message["role"], "content": message["content"]} for message in talk]


# ------------------------------------------------------------------------------------------------
# Before, behind and within a text
# ------------------------------------------------------------------------------------------------


def special_tokens(tokenizer):
    """Texts that a tokenizer takes for tokens of its own, wherever they stand."""
    tokens = set(tokenizer.all_special_tokens)
    for token in tokenizer.added_tokens_decoder.values():
        if token.special:
            tokens.add(token.content)
    thoughts = {token for token in tokens if OPENED.fullmatch(token) or CLOSED.fullmatch(token)}
    return {token for token in tokens - thoughts if token and not token.isalnum()}


def without_padding(text, tokens):
    """A text without the padding and first tokens that it begins with."""
    padding = "|".join([BEFORE, *map(re.escape, tokens)])
    return text[re.match(rf"(?:\s*(?:{padding}))*", text).end() :]


def without_ends(text, tokens):
    """A text without the spaces and tokens that end it."""
    end = len(text)
    before = None
    while end != before:
        before = end
        while end and text[end - 1].isspace():
            end -= 1
        for token in tokens:
            if text.endswith(token, 0, end):
                end -= len(token)
        token = BEHIND.search(text[max(end - LONGEST_TOKEN, 0) : end])
        if token:
            end -= len(token[0])
    return text[:end]


def sign_of_template(text, tokens):
    """A special token, or another sign of a chat template, within a text; None where there is none."""
    for token in tokens:
        if token in text:
            return token
    sign = SIGN.search(text)
    return sign[0] if sign else None


def opening_of_reply(prompt):
    """The plain words by which a prompt opens the turn of its reply; None where it does not."""
    end = prompt[-LONGEST_OPENING:]
    opening = OPENS_REPLY.search(end)
    if prompt.lstrip().startswith(BARE_ROLES):
        opening = opening or BARE_REPLY.search(end)
    return opening[0].strip() if opening else None


def without_empty_thoughts(text):
    """A reply without the pair of tags that stand for no thoughts."""
    thoughts = THINKING.match(text.lstrip())
    if thoughts and not thoughts[1].strip():
        return text.lstrip()[thoughts.end() :]
    return text


def split_thoughts(text):
    """(whether a reply begins with thoughts, what it says after them)."""
    closed = CLOSED.search(text)
    if OPENED.match(text):
        return True, text[closed.end() :] if closed else ""
    if closed and not OPENED.search(text[: closed.start()]):
        return True, text[closed.end() :]
    return False, text
