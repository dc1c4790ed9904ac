"""A person's problem (R2): certificate and Newton step against automatic differentiation."""

import pytest
import torch
import torch.nn.functional as F

from lore.fit.simplex import PersonProblems


def far_from_the_optimum(spread):
    torch.manual_seed(8)
    x = torch.randn(2, 7, 5).double()
    z = (x @ torch.randn(5, 3).double()) / 2
    real = torch.arange(7) < torch.tensor([[7], [4]])
    m = real.sum(1, keepdim=True).double()
    z, x = z * real.unsqueeze(2), x * real.unsqueeze(2)
    G = spread**2 * m.unsqueeze(2) * x @ x.mT
    problems = PersonProblems(z, real / m, torch.tensor([0.5, 0.3, 0.2]).double(), 2 / m, G)
    w = torch.tensor([[0.2, 0.5, 0.3], [0.6, 0.3, 0.1]]).double()
    return problems, x, w, torch.rand(2, 7).double() * real / m, m


def test_certificate_and_newton_step_are_those_of_w_and_e_far_from_the_optimum_too():
    """(R2) in e itself, of which PersonProblems sees coefficients only."""
    spread = 0.8
    problems, x, w, a, m = far_from_the_optimum(spread)
    start = problems.iterate(w, a)
    at = problems.slopes(start)
    for i in range(2):
        count = int(m[i])
        X, Z = x[i, :count], problems.z[i, :count]

        def loss(point, X=X, Z=Z, count=count):
            w, e = point[:3], point[3:]
            nll = -F.logsigmoid(Z @ w + X @ e).sum()
            pull = 2 / 2 * (w - problems.mean).square().sum()
            return (nll + pull + e.square().sum() / 2 / spread**2) / count

        e = spread**2 * count * a[i, :count] @ X
        point = torch.cat([w[i], e])
        assert problems.loss(start)[i].item() == pytest.approx(loss(point).item())
        g = torch.autograd.functional.jacobian(loss, point)
        H = torch.autograd.functional.hessian(loss, point)
        gap = g[:3] @ w[i] - g[:3].min() + count * spread**2 * g[3:].square().sum() / 2
        assert at.gap[i].item() == pytest.approx(gap.item())
        eliminated = H[:3, 3:] @ torch.linalg.inv(H[3:, 3:])
        assert torch.allclose(at.H[i], H[:3, :3] - eliminated @ H[3:, :3])
        assert torch.allclose(at.reduced[i], g[:3] - eliminated @ g[3:])
        dw = torch.tensor([0.1, -0.3, 0.2]).double()
        de = -torch.linalg.solve(H[3:, 3:], g[3:] + H[3:, :3] @ dw)
        da = at.follow[i] - at.Bz[i] @ dw
        assert torch.allclose(spread**2 * count * da[:count] @ X, de)
        slope = -(at.pull[i] * da).sum()  # along e, as the line search has it
        assert slope.item() == pytest.approx((g[3:] @ de).item())
