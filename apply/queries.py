"""What a reward server is asked: texts and messages of a policy, each read as one conversation or refused."""

import json
import math

import rendered

from lore.common import InputError, require
from lore.text.checkpoint import Checkpoint
from lore.text.conversations import SURROGATE, exchange
from lore.text.input_rows import finished, identifier, messages_of, quoted
from lore.text.spellings import holds_messages
from lore.text.tokens import Tokeniser

POPULATION = "population"  # the model whose name it is
USER = "user:"  # what the names of all others begin with


class NoReply(InputError):
    """A conversation that does not end in a reply, as where a policy says nothing."""


class Reader:
    """Requests to conversations; policy: a tokenizer whose chat template writes queries, or None."""

    def __init__(self, encoder, policy=None):
        self.encoder = encoder
        tokenizer = encoder.tokenizer
        self.special = rendered.special_tokens(tokenizer)
        self.ends = {tokenizer.eos_token, tokenizer.pad_token} - {None}
        self.padding = self.ends | {tokenizer.bos_token, tokenizer.cls_token} - {None}
        self.thinks = False  # whether the model's template does something about thoughts
        self.templates = []
        if policy is not None:
            template = rendered.ChatTemplate(Tokeniser("--policy", policy, "last", math.inf, 0))
            none = "--policy: its chat template writes nothing behind a prompt"
            require(template.marks["user"], none)
            self.templates.append(template)
            self.special |= template.special
        if encoder.pooling == "last":
            template = rendered.ChatTemplate(encoder.tokeniser)
            self.templates.append(template)
            self.thinks = template.thinks
        for template in self.templates:
            self.ends |= template.ends

    def queries(self, request):
        """([conversation, or the InputError of a query that has none], [user id or None]).

        InputError: a request that means nothing.
        """
        has_list = isinstance(request, dict) and isinstance(request.get("query"), list)
        require(has_list, "a JSON object with a list query is needed")
        queries = request["query"]
        prompts = self.beside(request, "prompts", len(queries))
        labels = self.beside(request, "labels", len(queries))
        talks = []
        users = []
        for number, (query, prompt, label) in enumerate(zip(queries, prompts, labels)):
            where = f"query {number}"
            user = None
            try:
                user = user_of(where, label)
                talks.append(self.conversation(where, query, prompt))
            except InputError as error:
                talks.append(error)
            users.append(user)
        return talks, users

    def inputs(self, request):
        """The same of a request as vLLM's /classify and SGLang's /v1/embeddings take it.

        {"model": "user:ID" or the population, "input": text or texts, or "messages" of one conversation}
        """
        require(isinstance(request, dict), "a JSON object with an input is needed")
        inputs = request.get("input")
        if inputs is None and isinstance(request.get("messages"), list):
            inputs = [request["messages"]]
        inputs = [inputs] if isinstance(inputs, str) else inputs
        is_list = isinstance(inputs, list) and inputs
        require(is_list, "input is neither a text nor a list of texts, and no messages are there")
        for name in ("use_activation", "activation"):
            require(not request.get(name), f"{name}: rewards are log-odds, no shares; send false")
        user = self.user_of_model(request.get("model"))
        return self.queries({"query": inputs, "labels": [user] * len(inputs)})

    def user_of_model(self, name):
        """The user whose rewards a model's name asks for; None: the population's. InputError: another name."""
        if name is None or name in ("", POPULATION, self.encoder.name):
            return None
        is_user = isinstance(name, str) and name.startswith(USER) and not SURROGATE.search(name)
        user = name.removeprefix(USER).strip() if is_user else ""
        require(user, f'model is {quoted(name)}: use "{USER}ID", or "{POPULATION}"')
        return user

    def completed(self, where, prompt, completion):
        """The messages of a prompt and its completion, both texts or both lists of messages."""
        if isinstance(prompt, str) and isinstance(completion, str):
            return self.conversation(where, prompt + completion, prompt)
        if isinstance(prompt, list) and isinstance(completion, list):
            return self.conversation(where, prompt + completion, None)
        kinds = f"a {type(prompt).__name__} and a {type(completion).__name__}"
        raise InputError(f"{where}: prompt and completion are {kinds}, not both texts or lists of messages")

    def beside(self, request, name, count):
        """A list as long as the queries; of nothing where the request has none."""
        values = request.get(name)
        if values is None:
            return [None] * count
        is_alike = isinstance(values, list) and len(values) == count
        require(is_alike, f"{name} is no list of {count}, as query is")
        return values

    def conversation(self, where, query, prompt):
        """The messages of a query, whichever of the three forms it has. InputError: none, no reply."""
        prompt = rendered.without_padding(prompt, self.padding) if isinstance(prompt, str) else ""
        if isinstance(query, str) and query.strip():
            talk = self.taken_apart(where, query, prompt) or self.plain(where, query, prompt)
        elif isinstance(query, list):
            talk = query
        else:
            raise InputError(f"{where} is neither a text nor a list of messages")
        return self.cleaned(where, messages_of(where, talk, "query"))

    def taken_apart(self, where, text, prompt):
        """The messages of a text that a chat template has written, or None.

        InputError: behind its prompt there is more than a reply.
        """
        for template in self.templates:
            talk = template.messages_of(text)
            if talk is not None:
                asked = template.messages_of(prompt)
                more = f"{where} goes on after its reply, or has another prompt than its own"
                require(not asked or asked[:-1] == talk[:-1], more)
                return talk
        return None

    def plain(self, where, text, prompt):
        """A prompt and its reply, of a text that begins with its prompt. InputError: another text."""
        text = rendered.without_ends(rendered.without_padding(text, self.padding), self.ends)
        begins = text.startswith(prompt) or text == prompt.rstrip()
        if not prompt.strip() or not begins:
            self.require_words(where, text)
            neither = "is not of this model's chat template, and does not begin with its prompt"
            raise InputError(f"{where} {neither}")
        opening = rendered.opening_of_reply(prompt)
        require(not opening, f"{where}: its prompt ends in {opening!r}, of another chat template?")
        return exchange(prompt, text[len(prompt) :])

    def cleaned(self, where, talk):
        """A conversation without what is no word of anybody: ends of texts, no thoughts."""
        for message in talk:
            message["content"] = message["content"].strip()
        last = talk[-1]
        reply = rendered.without_empty_thoughts(rendered.without_ends(last["content"], self.ends))
        thinks, answer = rendered.split_thoughts(reply)
        nothing = "of which this model's chat template knows nothing; send what follows them"
        is_known = self.thinks or not (thinks and answer.strip())
        require(is_known, f"{where}: its reply begins with thoughts, {nothing}")
        last["content"] = reply.strip() if answer.strip() else ""
        for message in talk:
            self.require_words(where, message["content"])
        if not last["content"]:
            raise NoReply(f"{where} does not end in a reply, or in an empty one")
        return finished(where, talk, "query")

    def require_words(self, where, text):
        """InputError: a text with signs of a chat template, or messages, where words alone should be."""
        lists = f"{where} has messages that have become a text; send them as a list"
        require(not holds_messages(text), lists)
        sign = rendered.sign_of_template(text, self.special)
        require(sign not in self.special, f"{where} has {sign} where its chat template writes none")
        require(sign is None, f"{where} has {sign}, of a chat template that is not this model's (--policy)")


def user_of(where, label):
    """The user id of a label: text or number, or user_id of an object or of its JSON text.

    None, the population: no label, or one of spaces.
    """
    if isinstance(label, str) and label.lstrip().startswith("{"):
        try:
            label = json.loads(label)
        except ValueError as error:
            raise InputError(f"{where}: its label is broken JSON") from error
    fields = label if isinstance(label, dict) else {"user_id": label}
    require("user_id" in fields, f"{where}: its label is an object without a user_id")
    user_id = fields["user_id"]
    if user_id is None or (isinstance(user_id, str) and not user_id.strip()):
        return None
    user = identifier(where, fields, "user_id")
    require(user is not None, f"{where}: its label is {quoted(user_id)}, no user id")
    return user


def policy_tokenizer(name):
    """The tokenizer of --policy, None without a name. InputError: it cannot be loaded, or has no chat template."""
    if not name:
        return None
    try:
        return Checkpoint(name).load_tokenizer(with_template=True)
    except InputError as error:
        raise InputError(f"--policy: {error}") from error
