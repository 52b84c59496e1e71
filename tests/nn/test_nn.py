"""Losses against naive loops; heads, decoders, teacher, queue, clusters, colors."""

import math

import pytest
import torch
from torch import nn

from sslkit import Clock
from sslkit.image.color_bins import ab_bins, nearest_bin
from sslkit.image.decoders import PatchDecoder, sine_positions
from sslkit.image.transforms import rgb_to_lab
from sslkit.nn import Queue, Teacher, info_nce, kmeans, mlp, nt_xent, teacher_momentum


@pytest.mark.parametrize("temperature", [0.1, 0.5])
def test_nt_xent_against_a_double_loop(temperature: float) -> None:
    projection = torch.randn(5, 2, 7, generator=torch.Generator().manual_seed(0))
    vectors = [view / view.norm() for view in projection.double().flatten(0, 1)]  # 0a 0b 1a 1b ...
    total = 0.0
    for i, anchor in enumerate(vectors):
        partner = i + 1 if i % 2 == 0 else i - 1
        others = sum(math.exp(float(anchor @ other) / temperature) for j, other in enumerate(vectors) if j != i)
        total -= math.log(math.exp(float(anchor @ vectors[partner]) / temperature) / others)
    assert float(nt_xent(projection, temperature)) == pytest.approx(total / 10, rel=1e-5)


def test_nt_xent_in_chunks_is_the_same() -> None:
    values = []
    for max_similarities in (2**22, 3 * 20, 1):  # all vectors, three and one at a time
        projection = torch.randn(10, 2, 7, generator=torch.Generator().manual_seed(0), dtype=torch.double).requires_grad_()
        loss = nt_xent(projection, 0.2, max_similarities)
        (3 * loss).backward()
        values.append((loss.detach(), projection.grad))
    for loss, gradient in values[1:]:
        assert torch.allclose(loss, values[0][0], rtol=1e-12) and torch.allclose(gradient, values[0][1], rtol=1e-9)
    with torch.no_grad():
        assert torch.allclose(nt_xent(projection, 0.2, 1), values[0][0])


def test_nt_xent_of_half_precision_is_float32() -> None:
    projection = torch.randn(4, 2, 8)
    loss = nt_xent(projection.bfloat16(), 0.1)
    assert loss.dtype == torch.float32


@pytest.mark.parametrize(("norm", "kind"), [("batch", nn.BatchNorm1d), ("layer", nn.LayerNorm), ("none", nn.Identity)])
def test_mlp(norm: str, kind: type[nn.Module]) -> None:
    head = mlp([8, 6, 4], norm, last_norm=True)  # type: ignore[arg-type]
    assert head(torch.randn(3, 8)).shape == (3, 4)
    assert sum(isinstance(layer, kind) for layer in head) == (0 if norm == "none" else 2)
    assert not isinstance(mlp([8, 4])[-1], nn.ReLU)


@pytest.mark.parametrize("norm", ["batch", "layer"])
def test_last_norm_without_scale_and_shift(norm: str) -> None:
    first, *_, last = [
        layer
        for layer in mlp([8, 6, 4], norm, last_norm=True, last_affine=False)  # type: ignore[arg-type]
        if isinstance(layer, nn.BatchNorm1d | nn.LayerNorm)
    ]
    assert len(list(first.parameters())) == 2 and not list(last.parameters())


def test_teacher_averages_weights_and_stays_in_eval_mode() -> None:
    student = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
    teacher = Teacher(student).train()
    assert not any(module.training for module in teacher.modules())
    assert not any(parameter.requires_grad for parameter in teacher.parameters())
    old = [parameter.clone() for parameter in teacher.parameters()]
    student(torch.randn(8, 3))  # moves the running statistics
    with torch.no_grad():
        for parameter in student.parameters():
            parameter.add_(1)
    teacher.update(student, momentum=0.9)
    for parameter, before, target in zip(teacher.parameters(), old, student.parameters(), strict=True):
        assert torch.allclose(parameter, 0.9 * before + 0.1 * target)
    mean, variance, batches = teacher.buffers()  # BatchNorm's statistics are averaged like the weights they belong to
    assert torch.allclose(mean, 0.1 * student[1].running_mean, atol=1e-6) and int(batches) == 1
    assert torch.allclose(variance, 0.9 + 0.1 * student[1].running_var, atol=1e-6)
    assert not teacher(torch.randn(2, 3)).requires_grad


def test_teacher_with_batch_statistics_tracks_its_own() -> None:
    student = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Dropout(0.5))
    teacher = Teacher(student, use_batch_statistics=True).train()
    assert [type(module) for module in teacher.modules() if module.training] == [nn.BatchNorm1d]
    x = torch.randn(8, 3)
    output = teacher(x)
    assert torch.allclose(output.mean(dim=0), torch.zeros(4), atol=1e-5) and not output.requires_grad
    student(x + 5)
    before = teacher.parts[0][1].running_mean.clone()
    assert before.any()
    teacher.update(student, momentum=0.0)
    assert torch.equal(teacher.parts[0][1].running_mean, before)
    assert torch.equal(teacher.parts[0][0].weight, student[0].weight)
    assert not any(module.training for module in teacher.eval().modules())


def test_queue_is_a_ring() -> None:
    queue = Queue(5, 2)
    assert torch.allclose(queue.rows.norm(dim=1), torch.ones(5))
    queue.push(torch.full((3, 2), 1.0))
    queue.push(torch.full((3, 2), 2.0))
    assert queue.rows[:, 0].tolist() == [2, 1, 1, 2, 2] and int(queue.position) == 1
    queue.push(torch.arange(14.0).view(7, 2))  # more than there is room for: the last five stay
    assert sorted(queue.rows[:, 0].tolist()) == [4, 6, 8, 10, 12]
    assert set(queue.state_dict()) == {"rows", "position"}


def test_info_nce_per_query() -> None:
    query, key, negatives = (nn.functional.normalize(torch.randn(n, 6), dim=1) for n in (3, 3, 7))
    for row, loss in enumerate(info_nce(query, key, negatives, 0.5).tolist()):
        scores = [float(query[row] @ other) / 0.5 for other in (key[row], *negatives)]
        assert loss == pytest.approx(-scores[0] + math.log(sum(map(math.exp, scores))), rel=1e-5)


@pytest.mark.parametrize(("steps", "momentum"), [(50, 0.9), (400, 0.975), (10**5, 0.996)])
def test_automatic_momentum(steps: int, momentum: float) -> None:
    assert teacher_momentum("auto", Clock(steps=steps), 0.996) == pytest.approx(momentum)


def test_color_bins_hold_every_color() -> None:
    bins = ab_bins()
    assert bins.shape == (261, 2)
    ab = rgb_to_lab(torch.rand(4, 3, 16, 16))[:, 1:]
    chosen = bins[nearest_bin(ab, bins)].permute(0, 3, 1, 2)
    assert float((chosen - ab).abs().max()) <= 5.001


def test_kmeans_finds_well_separated_clusters_and_repeats() -> None:
    points = torch.cat([torch.randn(50, 2) * 0.1 + center for center in (0.0, 5.0, 10.0)])
    centers = []
    for _ in range(2):
        torch.manual_seed(0)
        centers.append(kmeans(points, 3).centers)
    assert torch.equal(*centers)
    assert torch.allclose(centers[0].mean(dim=1).sort().values, torch.tensor([0.0, 5.0, 10.0]), atol=0.2)


def test_decoder_puts_tokens_at_their_positions() -> None:
    decoder = PatchDecoder(6, 8, 1, (2, 3), 4).eval()
    tokens, keep = torch.randn(2, 1 + 2, 6), torch.tensor([[1, 4], [0, 5]])
    output = decoder(tokens, 1, keep)
    assert output.shape == (2, 6, 4)
    order = torch.tensor([0, 2, 1])
    assert torch.allclose(decoder(tokens[:, order], 1, keep.flip(1)), output, atol=1e-6)
    all_tokens = torch.randn(2, 1 + 6, 6)
    assert torch.allclose(decoder(all_tokens, 1), decoder(all_tokens, 1, torch.arange(6).expand(2, 6)), atol=1e-6)


def test_positions_distinguish_rows_and_columns() -> None:
    positions = sine_positions((3, 4), 16)
    assert positions.shape == (12, 16) and len(positions.unique(dim=0)) == 12
    assert torch.equal(positions[0, :8], positions[3, :8]) and torch.equal(positions[1, 8:], positions[5, 8:])
