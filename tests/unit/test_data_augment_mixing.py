"""Mixup and cutmix: partners, shares and rectangles against their definitions, the same in any batch."""

import math
from typing import Any

import numpy as np
import pytest
import scipy.stats  # type: ignore[import-untyped]
import torch
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter

from orchestrator.data.augment.augment import augment, check_augment, mix_targets, plan_augment
from orchestrator.data.augment.draws import symmetric_beta, uniform
from orchestrator.data.augment.mixing import Mix, draw_mix
from orchestrator.errors import UsageError
from orchestrator.spec.data import Augmentation, CutMix, Mixup

NUM_ROWS, CLASSES = 60, 4
SHAPE = (3, 8, 11)
MIXUP = {"kind": "mixup", "alpha": 0.7}
CUTMIX = {"kind": "cutmix"}
CHAINS: list[list[dict[str, Any]]] = [
    [MIXUP],
    [CUTMIX],
    [MIXUP | {"p": 0.5}],
    [{"kind": "flip"}, MIXUP, {"kind": "crop", "padding": 2}],
    [{"kind": "rotate"}, MIXUP | {"p": 0.5}, {"kind": "flip"}, CUTMIX | {"p": 0.5}, {"kind": "color"}],
    [CUTMIX, MIXUP, CUTMIX],
]


def steps(chain: list[dict[str, Any]]) -> list[Augmentation]:
    return TypeAdapter(list[Augmentation]).validate_python(chain)


def everything(shape: tuple[int, ...] = SHAPE) -> tuple[torch.Tensor, torch.Tensor]:
    """The training part: inputs, and targets as shares of classes."""
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(NUM_ROWS, *shape, generator=generator)
    targets = torch.randint(0, CLASSES, (NUM_ROWS,), generator=generator)
    return inputs, torch.nn.functional.one_hot(targets, CLASSES).float()


def batch(
    chain: list[dict[str, Any]], rows: Any, *, epoch: int = 1, seed: int = 5, shape: tuple[int, ...] = SHAPE
) -> tuple[torch.Tensor, torch.Tensor]:
    inputs, targets = everything(shape)
    plan = plan_augment(
        steps(chain),
        seed=seed,
        epoch=epoch,
        rows=np.asarray(rows),
        blocks=np.array([NUM_ROWS]),
        input_shape=shape,
    )
    return augment(inputs[plan.rows], plan), mix_targets(targets[plan.rows], plan)


def mixed(step: Mixup | CutMix, rows: np.ndarray, *, num_rows: int, shape: tuple[int, ...] = SHAPE) -> Mix:
    return draw_mix(step, seed=5, epoch=1, index=0, rows=rows, blocks=np.array([num_rows]), input_shape=shape)


@pytest.mark.parametrize("chain", CHAINS, ids=lambda chain: "-".join(step["kind"] for step in chain))
def test_a_sample_is_the_same_in_any_batch(chain: list[dict[str, Any]]) -> None:
    rows = np.random.default_rng(0).permutation(NUM_ROWS)
    whole, targets = batch(chain, rows)
    assert whole.shape == (NUM_ROWS, *SHAPE)
    assert whole.dtype == targets.dtype == torch.float32
    for num_parts in (2, 7, NUM_ROWS):
        parts = [batch(chain, part) for part in np.array_split(rows, num_parts)]
        torch.testing.assert_close(torch.cat([part[0] for part in parts]), whole, rtol=1e-6, atol=1e-6)
        assert torch.equal(torch.cat([part[1] for part in parts]), targets)
    in_order = batch(chain, np.arange(NUM_ROWS))
    torch.testing.assert_close(in_order[0][rows], whole, rtol=1e-6, atol=1e-6)
    assert torch.equal(in_order[1][rows], targets)
    torch.testing.assert_close(targets.sum(1), torch.ones(NUM_ROWS))
    for other in (batch(chain, rows, epoch=2), batch(chain, rows, seed=6)):
        assert not torch.equal(other[0], whole)
        assert not torch.equal(other[1], targets)
    again = batch(chain, rows)
    assert torch.equal(again[0], whole)
    assert torch.equal(again[1], targets)


@given(
    chain=st.sampled_from(CHAINS[:3]),
    p=st.floats(0.01, 1),
    alpha=st.floats(0.01, 100),
    rows=st.lists(st.integers(0, NUM_ROWS - 1), min_size=1, max_size=9),
)
def test_shapes_and_ranges(chain: list[dict[str, Any]], p: float, alpha: float, rows: list[int]) -> None:
    inputs, targets = batch([chain[0] | {"p": p, "alpha": alpha}], np.array(rows))
    assert inputs.shape == (len(rows), *SHAPE)
    assert targets.shape == (len(rows), CLASSES)
    assert 0 <= targets.min() <= targets.max() <= 1
    whole = everything()[0]
    assert whole.min() <= inputs.min() <= inputs.max() <= whole.max()


def test_mixup_is_its_definition_sample_by_sample() -> None:
    """With the share from SciPy's quantiles of the beta distribution."""
    inputs, targets = everything()
    rows = np.arange(NUM_ROWS)
    ours, our_targets = batch([MIXUP | {"p": 0.7}], rows)
    taken, other, quantile, _, _ = uniform(5, 1, 0, rows, 5)
    for row in rows:
        partner = (row + 1 + int(other[row] * (NUM_ROWS - 1))) % NUM_ROWS
        share = scipy.stats.beta.ppf(quantile[row], 0.7, 0.7) if taken[row] < 0.7 else 1.0
        for values, whole in ((ours, inputs), (our_targets, targets)):
            wanted = share * whole[row] + (1 - share) * whole[partner]
            torch.testing.assert_close(values[row], wanted.float(), rtol=1e-4, atol=1e-5)


def test_mixup_mixes_rows_of_tables() -> None:
    inputs, _ = everything((6,))
    ours, _ = batch([MIXUP], np.arange(NUM_ROWS), shape=(6,))
    mix = mixed(Mixup(kind="mixup", alpha=0.7), np.arange(NUM_ROWS), num_rows=NUM_ROWS, shape=(6,))
    share = torch.from_numpy(mix.share).float()[:, None]
    torch.testing.assert_close(ours, (1 - share) * inputs + share * inputs[mix.partners])


def test_what_is_mixed_in_has_gone_through_the_steps_before() -> None:
    flip = {"kind": "flip"}
    rows = np.arange(NUM_ROWS)
    flipped, _ = batch([flip], rows)
    plan = plan_augment(
        steps([flip, MIXUP]), seed=5, epoch=1, rows=rows, blocks=np.array([NUM_ROWS]), input_shape=SHAPE
    )
    (mix,) = plan.mixes.values()
    share = torch.from_numpy(mix.share).float()[:, None, None, None]
    ours, _ = batch([flip, MIXUP], rows)
    torch.testing.assert_close(ours, torch.lerp(flipped, flipped[mix.partners], share))


def test_partners_are_other_rows_all_equally_likely() -> None:
    rows = np.arange(12_000)
    mix = mixed(Mixup(kind="mixup"), rows, num_rows=12_000)
    assert (mix.partners != rows).all()
    steps_away = (mix.partners - rows) % 12_000
    np.testing.assert_allclose(np.histogram(steps_away, 10, (1, 12_000))[0], 1200, atol=150)
    one = mixed(Mixup(kind="mixup"), np.zeros(3, np.int64), num_rows=1)
    assert one.partners.tolist() == [0, 0, 0]


def test_a_share_of_the_samples_is_mixed() -> None:
    mix = mixed(Mixup(kind="mixup", p=0.3), np.arange(10_000), num_rows=10_000)
    assert len(mix.chosen) == pytest.approx(3000, abs=150)
    assert len(mix.partners) == len(mix.share) == len(mix.chosen)
    assert np.isin(np.unique(mix.chosen), np.arange(10_000)).all()


@given(alpha=st.floats(0.02, 300), words=st.lists(st.integers(1, 2**30 - 1), min_size=1, max_size=20))
def test_shares_are_quantiles_of_the_beta_distribution(alpha: float, words: list[int]) -> None:
    u = np.array(words) * 2.0**-31
    ours = symmetric_beta(u, alpha)
    assert ((ours >= 0) & (ours <= 1)).all()
    # Compared as probabilities: at small alpha quantiles near 0 are of any order of magnitude.
    np.testing.assert_allclose(scipy.stats.beta.cdf(ours, alpha, alpha), u, atol=2e-4)
    np.testing.assert_allclose(symmetric_beta(1 - u, alpha), 1 - ours, rtol=1e-12)


@pytest.mark.parametrize("alpha", [0.1, 0.4, 1.0, 4.0])
def test_mean_and_variance_of_shares(alpha: float) -> None:
    share = mixed(Mixup(kind="mixup", alpha=alpha), np.arange(50_000), num_rows=50_000).share
    assert share.mean() == pytest.approx(0.5, abs=0.01)
    assert share.var() == pytest.approx(1 / (4 * (2 * alpha + 1)), rel=0.02)
    if alpha > 0.2:  # below, many are so near 1 that no float lies between
        assert scipy.stats.kstest(share, scipy.stats.beta(alpha, alpha).cdf).pvalue > 1e-3


def test_cutmix_pastes_one_rectangle_of_the_partner() -> None:
    inputs, targets = everything()
    rows = np.arange(NUM_ROWS)
    ours, our_targets = batch([CUTMIX], rows)
    mix = mixed(CutMix(kind="cutmix"), rows, num_rows=NUM_ROWS)
    assert mix.box is not None
    pasted = 0
    for row in rows:
        own, other = inputs[row], inputs[mix.partners[row]]
        top, bottom, left, right = mix.box[:, row]
        wanted = own.clone()
        wanted[:, top:bottom, left:right] = other[:, top:bottom, left:right]
        assert torch.equal(ours[row], wanted)
        share = float((ours[row] != own).all(0).float().mean())
        assert mix.share[row] == pytest.approx(share)
        torch.testing.assert_close(
            our_targets[row], (1 - share) * targets[row] + share * targets[mix.partners[row]]
        )
        pasted += 0 < share < 1
    assert pasted > NUM_ROWS / 2


@pytest.mark.parametrize("alpha", [0.3, 1.0])
def test_the_areas_of_rectangles(alpha: float) -> None:
    """Against the paper's own procedure, run with another generator."""
    height, width, n = 24, 40, 4000
    mix = mixed(CutMix(kind="cutmix", alpha=alpha), np.arange(n), num_rows=n, shape=(3, height, width))
    rng = np.random.default_rng(0)
    areas = []
    for _ in range(n):
        cut = math.sqrt(1 - rng.beta(alpha, alpha))
        x, y = rng.integers(width), rng.integers(height)
        half_width, half_height = int(cut * width / 2), int(cut * height / 2)
        wide = min(int(x) + half_width, width) - max(int(x) - half_width, 0)
        high = min(int(y) + half_height, height) - max(int(y) - half_height, 0)
        areas.append(wide * high / (width * height))
    assert mix.share.mean() == pytest.approx(np.mean(areas), abs=0.02)
    assert scipy.stats.ks_2samp(mix.share, areas).pvalue > 1e-3
    assert mix.box is not None
    top, bottom, left, right = mix.box
    assert ((top >= 0) & (bottom <= height) & (left >= 0) & (right <= width)).all()
    assert ((top <= bottom) & (left <= right)).all()


def test_what_cannot_be_mixed_is_refused() -> None:
    check_augment(steps([MIXUP]), (30,))
    with pytest.raises(UsageError, match=r"augment.0 \(cutmix\) .*\(30,\).*only mixup is for tables"):
        check_augment(steps([CUTMIX]), (30,))
    with pytest.raises(UsageError, match=r"augment.1 \(flip\)"):
        check_augment(steps([MIXUP, {"kind": "flip"}]), (30,))
    with pytest.raises(UsageError, match=r"augment.0 \(mixup\) .*token ids"):
        check_augment(steps([MIXUP]), (30,), vocab_size=100)
    with pytest.raises(UsageError, match=r"augment.0 \(cutmix\) .*leave it out$"):
        check_augment(steps([CUTMIX]), (30,), vocab_size=100)


def test_partners_stay_in_their_block() -> None:
    rows = np.arange(1000)
    plan = plan_augment(
        steps([MIXUP]), seed=5, epoch=1, rows=rows, blocks=np.array([10, 400, 401, 1000]), input_shape=SHAPE
    )
    (mix,) = plan.mixes.values()
    ends = np.array([10, 400, 401, 1000])
    assert np.array_equal(
        np.searchsorted(ends, mix.partners, side="right"),
        np.searchsorted(ends, rows[mix.chosen], side="right"),
    )
    assert (mix.partners != rows[mix.chosen]).sum() == len(mix.chosen) - 1  # all but the block of one row
