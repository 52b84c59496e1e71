"""jigsaw: the set of permutations, and where tiles come from."""

import sys
from collections.abc import Callable
from itertools import combinations
from typing import Any

import pytest
import torch

from sslkit import SslkitError
from sslkit.tasks.load import load_task
from tests.canvases import canvases


def module() -> Any:
    return sys.modules[load_task("jigsaw").__module__]


def nearest_two(permutations: torch.Tensor) -> int:
    return min(int((first != second).sum()) for first, second in combinations(permutations, 2))


@pytest.mark.parametrize("count", [9, 50, 100])
def test_permutations_differ_more_than_random_ones(count: int) -> None:
    selected = module().permutation_set(count)
    assert selected.shape == (count, 9) and all(sorted(row) == list(range(9)) for row in selected.tolist())
    torch.manual_seed(0)
    random = max(nearest_two(torch.stack([torch.randperm(9) for _ in range(count)])) for _ in range(20))
    assert nearest_two(selected) > random
    if count == 9:
        assert nearest_two(selected) == 9  # a Latin square: no two agree anywhere
    assert torch.equal(selected, module().permutation_set.__wrapped__(count))


def test_tiles_come_from_the_cells_of_their_shuffle(build: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    cut: list[torch.Tensor] = []
    real = module().cut_tiles_in_cells
    monkeypatch.setattr(module(), "cut_tiles_in_cells", lambda *arguments: cut.append(real(*arguments)) or cut[-1])
    task = build("jigsaw", size=48, gray=0.0)
    monkeypatch.setattr(task, "crop", lambda batch: batch["canvas"])
    row, column = (torch.arange(48) // 16).view(48, 1).expand(48, 48), (torch.arange(48) // 16).expand(48, 48)
    cell = (3 * row + column).float() / 9  # the number of the cell that a pixel lies in
    batch = task.transform(canvases(cell.expand(30, 3, 48, 48)))
    assert (task.cell, task.tile) == (16, 14) and batch["image"].shape == (30, 9, 3, 16, 16)
    cells = (cut[0].mean(dim=(2, 3, 4)) * 9).round().long()
    assert torch.equal(cells, task.orders[batch["permutation"]])
    assert cut[0].std(dim=(2, 3, 4)).max() < 1e-6  # no tile crosses the border of its cell


def test_tiles_lie_at_random_places_and_are_normalized_one_by_one(build: Callable[..., Any]) -> None:
    torch.manual_seed(0)
    task = build("jigsaw", size=96, gray=0.5)
    image = torch.rand(40, 3, 96, 96) * torch.linspace(0.1, 1, 40).view(-1, 1, 1, 1)
    tiles = task.transform(canvases(image))["image"]
    assert torch.allclose(tiles.mean(dim=(2, 3, 4)), torch.full((40, 9), 0.5), atol=1e-4)
    assert 0.2 < tiles.std(dim=(2, 3, 4)).median() < 0.26
    gray = (tiles.std(dim=2).amax(dim=(1, 2, 3)) < 1e-4).float().mean()
    assert 0.25 < float(gray) < 0.75


def test_order_decides(build: Callable[..., Any]) -> None:
    task = build("jigsaw", permutations=20).eval()
    batch = task.transform(canvases(torch.rand(3, 3, 32, 32)))
    output = task.predict(batch)
    assert output.shape == (3, 20)
    assert not torch.allclose(output, task.predict({"image": batch["image"].flip(1)}), atol=1e-3)


def test_restored_tiles_are_in_their_places(build: Callable[..., Any]) -> None:
    task = build("jigsaw")
    shuffle = torch.tensor([5, 77])
    numbers = torch.arange(9.0)
    tiles = numbers[task.orders[shuffle]].view(2, 9, 1, 1, 1).expand(-1, -1, 3, 4, 4)
    board = task._restore(tiles, shuffle)
    assert board[0, 0, ::5, ::5][:3, :3].flatten().tolist() == numbers.tolist()


def test_images_smaller_than_the_grid_are_refused(build: Callable[..., Any]) -> None:
    with pytest.raises(SslkitError, match="--size: images of 12 px give tiles of 3 px"):
        build("jigsaw", size=12)
