"""The regression on data whose truth is known; figures against scipy."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import stats

from diffusion_lab.evaluation.encoders.aesthetics import AestheticsHead, write_head
from diffusion_lab.recipes.aesthetics import balance, regression
from diffusion_lab.recipes.aesthetics.examine import examine, gain_at_extremes


def world(n: int = 1500, noise: float = 0.6) -> tuple[torch.Tensor, torch.Tensor]:
    """Unit vectors and bell-shaped ratings that one direction tells, with noise."""
    draw = torch.Generator().manual_seed(3)
    x = torch.nn.functional.normalize(torch.randn(n, 16, generator=draw), dim=1)
    ratings = 5.4 + 3 * x[:, 0] + noise * torch.randn(n, generator=draw)
    return x, ratings.clamp(0, 10)


def test_parts_do_not_overlap_and_are_the_same_for_a_seed() -> None:
    a, b = regression.split(103, 1), regression.split(103, 1)
    parts = [a.train, a.validation, a.test]
    assert sorted(np.concatenate(parts)) == list(range(103))
    assert [len(part) for part in parts] == [83, 10, 10]
    assert all((x == y).all() for x, y in zip(parts, [b.train, b.validation, b.test], strict=True))
    assert set(a.test) != set(regression.split(103, 2).test)
    with pytest.raises(ValueError, match="too few"):
        regression.split(9, 0)


def test_learns_the_same_twice_and_leaves_the_generators_alone() -> None:
    x, ratings = world(400)
    parts, drawn = regression.split(len(x), 0), torch.ones(len(x))
    torch.manual_seed(7)
    before = torch.random.get_rng_state()
    nets = [regression.fit(x, ratings, drawn, parts, hidden=(8,), epochs=5, seed=1) for _ in range(2)]
    assert torch.equal(before, torch.random.get_rng_state())
    assert all(torch.equal(a, b) for a, b in zip(nets[0].parameters(), nets[1].parameters(), strict=True))
    other = regression.fit(x, ratings, drawn, parts, hidden=(8,), epochs=5, seed=2)
    assert not torch.equal(nets[0][0].weight, other[0].weight)


def test_balancing_restores_the_extremes() -> None:
    x, ratings = world(6000)
    parts = regression.split(len(x), 0)
    rated = ratings.double().numpy()
    said = {}
    for kind in ("none", "density"):
        drawn = torch.from_numpy(balance.weights(rated, kind, 1.0)).float()
        net = regression.fit(x, ratings, drawn, parts, hidden=(16,), epochs=12)
        said[kind] = regression.predict(net, x[parts.test]).double().numpy()
    truth = rated[parts.test]
    plain, balanced = examine(said["none"], truth), examine(said["density"], truth)
    assert plain.spearman > 0.5
    assert balanced.spread > plain.spread
    mean, low, high = gain_at_extremes(said["density"], said["none"], truth)
    assert low is not None
    assert high is not None
    assert 0 < low < mean < high


@pytest.mark.parametrize("n", [3, 30, 200])
def test_the_gains_interval_covers_the_truth(n: int) -> None:
    """Two heads of which neither is better: 5 % of n pictures at either end, one at least."""
    rng, inside = np.random.default_rng(n), []
    for _ in range(500):
        rated = np.arange(n, dtype=np.float64)
        _, low, high = gain_at_extremes(rated + rng.normal(size=n), rated + rng.normal(size=n), rated)
        assert low is not None
        assert high is not None
        inside.append(low <= 0 <= high)
    assert 0.92 <= np.mean(inside) <= 0.98
    same = np.arange(5.0)
    assert gain_at_extremes(same + 1, same + 1, same) == (0, None, None)


def test_stops_when_validation_rises_and_keeps_the_best() -> None:
    x, _ = world(60)
    ratings = torch.rand(60, generator=torch.Generator().manual_seed(0)) * 10  # nothing to learn
    seen: list[float] = []
    parts = regression.split(60, 0)
    regression.fit(
        x, ratings, torch.ones(60), parts, epochs=200, patience=3, learning_rate=1e-2,
        on_epoch=lambda epoch, train, valid: seen.append(valid),
    )  # fmt: skip
    assert len(seen) < 200
    assert len(seen) - 1 - int(np.argmin(seen)) == 3


def test_calibration_is_weighted_least_squares_and_lies_in_the_last_layer() -> None:
    x, ratings = world(300)
    weights = torch.rand(300, generator=torch.Generator().manual_seed(2)) + 0.1
    net = regression.new_net(16, (8,), 0.0, 5.0)
    before = net.eval()(x)[:, 0].detach()
    slope, shift = regression.calibrate(net, x, ratings, weights)
    if slope == 1.0 and shift == 0.0:  # a net that says the reverse is left alone
        net[-1].weight.data.neg_()
        before = net(x)[:, 0].detach()
        slope, shift = regression.calibrate(net, x, ratings, weights)
    wanted = np.polyfit(before.numpy(), ratings.numpy(), 1, w=np.sqrt(weights.numpy()))
    np.testing.assert_allclose([slope, shift], wanted, rtol=1e-3)
    torch.testing.assert_close(net(x)[:, 0], slope * before + shift, atol=1e-4, rtol=1e-4)


def test_a_constant_net_is_left_as_it_is() -> None:
    net = regression.new_net(4, (), 0.0, 5.0)
    net[-1].weight.data.zero_()
    assert regression.calibrate(net, torch.eye(4), torch.arange(4.0), torch.ones(4)) == (1.0, 0.0)


def test_figures_are_scipys_and_by_hand() -> None:
    rng = np.random.default_rng(0)
    rated = rng.normal(5, 1, 200)
    said = 5 + 0.5 * (rated - 5) + rng.normal(0, 0.2, 200)
    found = examine(said, rated)
    assert found.spearman == pytest.approx(stats.spearmanr(said, rated)[0])
    assert found.pearson == pytest.approx(np.corrcoef(said, rated)[0, 1])
    assert found.mean_absolute_error == pytest.approx(np.mean(np.abs(said - rated)))
    assert found.root_mean_squared_error == pytest.approx(np.sqrt(np.mean((said - rated) ** 2)))
    order = np.argsort(rated)
    assert found.worst_rated_bias == pytest.approx((said - rated)[order[:10]].mean())
    assert found.best_rated_error == pytest.approx(np.abs(said - rated)[order[-10:]].mean())
    assert found.spread == pytest.approx(said.std() / rated.std())
    assert found.slope == pytest.approx(np.polyfit(said, rated, 1)[0])
    with pytest.raises(ValueError, match="three pictures"):
        examine(said[:2], rated[:2])


def test_a_net_read_back_says_the_same(tmp_path: Path) -> None:
    net = regression.new_net(16, (8, 4), 0.1, 5.0).eval()
    write_head(net, tmp_path / "head.safetensors", activation="gelu", clip="a clip", notes={})
    x, _ = world(20)
    head = AestheticsHead.load(str(tmp_path / "head.safetensors"))
    torch.testing.assert_close(head.score(x), regression.predict(net, x))
    assert head.clip == "a clip"
