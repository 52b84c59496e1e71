"""Mixup and CutMix of images and of what is inside an encoder."""

import pytest
import torch
import torch.nn.functional as F

from sslkit.image.mixing import Mixing, draw_mixing, mix


@pytest.mark.parametrize(("mixup", "cutmix"), [(0.4, 0.0), (0.0, 1.0)])
def test_targets_are_mixed_as_images_are(mixup: float, cutmix: float) -> None:
    torch.manual_seed(0)
    levels = torch.arange(16.0)
    image = levels.view(16, 1, 1, 1).expand(16, 1, 8, 8)
    mixing = draw_mixing(torch.ones(16).bool(), mixup, cutmix)
    mixed = mix(image, image[mixing.partner], mixing.kept, mixing.box)
    targets = mixing.mix_targets(F.one_hot(torch.arange(16), 16).float())
    assert torch.allclose(mixed.mean(dim=(1, 2, 3)), targets @ levels, atol=1e-4)
    assert sorted(mixing.partner.tolist()) == list(range(16)) and (mixing.partner != torch.arange(16)).all()
    assert len(mixing.kept.unique()) > 8
    assert (mixing.box is None) == (mixup > 0)


def test_shares_follow_beta() -> None:
    torch.manual_seed(0)
    kept = draw_mixing(torch.ones(20000).bool(), 0.2, 0.0).kept.double()
    expected = torch.distributions.Beta(0.2, 0.2)
    assert kept.mean() == pytest.approx(0.5, abs=0.01) and kept.var() == pytest.approx(float(expected.variance), abs=0.005)


def test_unlabeled_samples_are_neither_mixed_nor_mixed_in() -> None:
    torch.manual_seed(0)
    known = torch.arange(12) % 3 == 0
    for _ in range(20):
        mixing = draw_mixing(known, 0.5, 0.0)
        mixed = mixing.kept < 1
        assert not mixed[~known].any() and known[mixing.partner[mixed]].all()


def test_a_box_in_tokens_covers_what_it_covers_in_maps() -> None:
    torch.manual_seed(0)
    first, second = torch.rand(2, 3, 5, 4, 4)
    box, kept = torch.tensor([[0.1, 0.2, 0.6, 0.9]]).expand(3, 4), torch.tensor([0.65] * 3)
    maps = mix(first, second, kept, box)
    tokens = mix(first.flatten(2).transpose(1, 2), second.flatten(2).transpose(1, 2), kept, box)
    assert torch.allclose(tokens.transpose(1, 2).unflatten(2, (4, 4)), maps)
    first = torch.cat([first.flatten(2).transpose(1, 2)] * 2, dim=1)[:, 15:]  # a token before the patches
    prefixed = mix(first, torch.zeros_like(first), kept, box, prefix=1)
    assert torch.allclose(prefixed[:, 0], 0.65 * first[:, 0])


def test_a_share_of_one_changes_nothing() -> None:
    image = torch.rand(4, 3, 8, 8)
    mixing = Mixing(torch.arange(4).roll(1), torch.ones(4), None)
    assert torch.equal(mix(image, image[mixing.partner], mixing.kept, None), image)
