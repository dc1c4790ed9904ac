"""Problems minimised side by side, compared with SciPy."""

import numpy as np
import torch
import torch.nn.functional as F
from scipy.optimize import minimize as scipy_minimize

from lore.fit import lbfgs


def test_minimise_solves_each_problem_as_if_it_were_alone():
    torch.manual_seed(4)
    problems = [(torch.randn(40, 3).double(), 10.0**scale) for scale in (-3, 0, 2)]

    asked = []

    def loss(theta, numbers):
        asked.append(numbers)
        values = []
        for i in numbers:
            X, size = problems[i]
            t = theta.view(3, 3)[i]
            values.append(size * (-F.logsigmoid(X @ t).mean() + 0.05 * t.square().sum()))
        return torch.stack(values)

    found = lbfgs.minimise(loss, torch.zeros(9).double(), [3, 3, 3], 200, tolerance=1e-12).view(3, 3)
    for (X, _), t in zip(problems, found):

        def alone(v, X=X):
            v = torch.from_numpy(v)
            return (-F.logsigmoid(X @ v).mean() + 0.05 * v.square().sum()).item()

        assert np.allclose(scipy_minimize(alone, np.zeros(3)).x, t, atol=1e-4)
    assert len(asked[0]) == 3 and len(asked[-1]) < 3  # of what is done nothing is asked any more
