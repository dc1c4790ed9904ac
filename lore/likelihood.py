"""The likelihood of all comparisons.

    P(user i prefers the chosen reply) = sigmoid(x @ V @ w_i / LOGIT_SCALE)

Z = X @ V is all that costs; it is the product of lore/product.py.
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


def negative_log_likelihood(Z, W, user, weight):
    """sum_j weight_j * -log sigmoid(z_j . w_user(j) / LOGIT_SCALE).

    With weight 1 / (pairs of the user) this is Eq. 10, and with V frozen Eq. 11.
    Z (n, K), W (C, K), user (n,), weight (n,) -> scalar
    """
    return -(F.logsigmoid(margins(Z, W, user) / LOGIT_SCALE) * weight).sum()


def user_mean_weights(user):
    """1 / m_i for each pair of user i: a sum over pairs becomes the sum of the users' means. (n,)"""
    return torch.bincount(user).double().reciprocal()[user]


def equal_weights(user):
    """Every pair counts the same, whoever made it: 1 / n. (n,)"""
    return torch.full((len(user),), 1 / len(user), dtype=torch.float64)
