"""The likelihood of all comparisons.

    P(user i prefers the chosen reply) = sigmoid(x @ V @ w_i / LOGIT_SCALE)

Z = X @ V is all that costs; it is the product of lore/fit/product.py.
"""

import torch
import torch.nn.functional as F

# divides every reward difference, as published: it sets what a learning rate of 0.5 means
LOGIT_SCALE = 100.0


def margins(Z, W, user):
    """x @ V @ w_user of every pair: the pair's own user only, never all C.

    Z (n, K), W (C, K), user (n,) -> (n,)
    """
    return (Z * W.index_select(0, user)).sum(dim=1)


def negative_log_likelihood(Z, W, user, weight, choice=None):
    """sum_j weight_j * -log sigmoid(z_j . w_user(j) / LOGIT_SCALE).

    With weight 1 / (pairs of the user) this is Eq. 10, and with V frozen Eq. 11. choice (n,): those
    that are equal are one choice, of the softmax of `top_choice`.
    Z (n, K), W (C, K), user (n,), weight (n,) -> scalar
    """
    logits = margins(Z, W, user) / LOGIT_SCALE
    log_p = F.logsigmoid(logits) if choice is None else top_choice(logits, choice)
    return -(log_p * weight).sum()


def top_choice(logits, choice):
    """log softmax of the reply that was preferred to all others at once (Plackett-Luce's first
    place): -log(1 + sum_j exp(-logit_j)) over the pairs j of a choice, given for each of them.

    logits (n,), choice (n,) 0, 1, .. -> (n,)
    """
    zero = logits.new_zeros(int(choice.max()) + 1)
    least = zero.scatter_reduce(0, choice, logits.detach(), "amin")  # at most 0
    odds = torch.zeros_like(least).index_add(0, choice, (least[choice] - logits).exp())
    return (least - (least.exp() + odds).log())[choice]


def mean_weights(user, votes):
    """votes / their sum over the user's pairs: a sum over pairs becomes the sum of the users' means.

    Of pairs that are one vote each, 1 / m_i. user (n,), votes (n,) -> (n,)
    """
    return votes * torch.bincount(user, votes).reciprocal()[user]


def equal_weights(user, votes):
    """Every vote counts the same, whoever made it: votes / their sum. (n,)"""
    return votes / votes.sum()
