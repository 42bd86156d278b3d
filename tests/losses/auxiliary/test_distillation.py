"""Distances to a teacher's embeddings, against loops over rows and pairs in float64."""

from itertools import combinations

import pytest
import torch

from losses.auxiliary.distillation import cosine_distance, relational_distance


def unit(row):
    return row / row.square().sum().sqrt()


def expected_cosine(students, teachers):
    return sum(1 - unit(s) @ unit(t) for s, t in zip(students, teachers)) / len(students)


def expected_relational(students, teachers):
    """Park et al.: δ(ψ(t_i, t_j), ψ(s_i, s_j)), ψ the distance over the mean distance, δ Huber's."""
    pairs = list(combinations(range(len(students)), 2))

    def relations(rows):
        distances = [(unit(rows[i]) - unit(rows[j])).square().sum().sqrt() for i, j in pairs]
        return [distance / (sum(distances) / len(distances)) for distance in distances]

    total = 0
    for s, t in zip(relations(students), relations(teachers)):
        gap = (s - t).abs()
        total = total + (gap.square() / 2 if gap <= 1 else gap - 0.5)
    return total / len(pairs)


CASES = [(cosine_distance, expected_cosine, 5), (relational_distance, expected_relational, 9)]


@pytest.mark.parametrize("loss, formula, size", CASES)
@pytest.mark.parametrize("spread", [0.3, 3.0])
def test_value_and_gradient(loss, formula, size, spread):
    generator = torch.Generator().manual_seed(1)
    students = spread * torch.randn(7, 5, generator=generator) + 1
    teachers = torch.randn(7, size, generator=generator).double()
    teachers[1:] = teachers[1] + 0.1 * teachers[1:]  # close together
    teachers[0] = -teachers[1]  # and far from them, so that Huber's line is reached
    teachers[2] = teachers[3]
    ours, theirs = students.clone().requires_grad_(), students.double().requires_grad_()
    value, other = loss(ours, teachers.float()), formula(theirs, teachers)
    torch.testing.assert_close(value.double(), other, rtol=1e-4, atol=1e-5)
    (gradient,), (exact,) = torch.autograd.grad(value, ours), torch.autograd.grad(other, theirs)
    torch.testing.assert_close(gradient.double(), exact, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("loss, formula, size", CASES)
def test_autocast_changes_nothing(loss, formula, size):
    rows = torch.randn(6, size)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(loss(rows, rows.flip(0)), loss(rows.clone(), rows.flip(0)))
        rough = loss(rows, rows.flip(0))
    assert torch.equal(rough, loss(rows, rows.flip(0)))


def test_an_image_twice_has_finite_gradients():
    students = torch.randn(4, 6)
    students[1] = students[0]
    students.requires_grad_()
    relational_distance(students, torch.randn(4, 3)).backward()
    assert students.grad.isfinite().all()
    alone = torch.randn(1, 6, requires_grad=True)
    assert relational_distance(alone, torch.randn(1, 3)) == 0
