"""The reference against numbers worked out by hand and against the scalar oracle, in float64."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

import mi_pruner

from . import inputs, oracle

EXACT = 1e-10


@pytest.fixture(autouse=True)
def _reference():
    with mi_pruner.backend("reference"):
        yield


def one(rows):
    return torch.tensor([rows], dtype=torch.float64)


AXES = one([[1, 0], [0, 1]])
SIGMOID_1 = 0.7310585786300049  # 1 / (1 + e⁻¹)


# ---- by hand ---------------------------------------------------------------------------------------------------------
def test_one_text_token_has_the_paper_scores_worked_out_by_hand():
    # Cosines (1, 0), h = 1: P = (σ(1), σ(−1)) beside π = ½, so a_i = P_i log 2 P_i.
    a = mi_pruner.mi_scores(AXES, one([[1, 0]]), bandwidth=1.0, marginal="prior")
    assert a[0].tolist() == pytest.approx([0.27771854858524025, -0.1667744769135129], abs=EXACT)


def test_one_text_token_is_weighed_against_the_null_word():
    # Cosines (1, 0), h = 1: r = 2 (σ(1), σ(−1)); w'_0 = w'_1 = ½, so q' = (1 + r) / 2 and a = ½ · ½ r (log r − log q').
    a = mi_pruner.mi_scores(AXES, one([[3, 0]]), bandwidth=1.0)
    expected = [r / 4 * math.log(2 * r / (1 + r)) for r in (2 * SIGMOID_1, 2 - 2 * SIGMOID_1)]
    assert a[0].tolist() == pytest.approx(expected, abs=EXACT)


def test_two_tokens_and_two_texts_on_the_axes():
    # P[i|i] = σ(1), P[i|j] = σ(−1), Σ_j w P = ½: a binary symmetric channel, I = log 2 − H(σ(1)), half of it each.
    # The mixture is the prior, so that the null word changes nothing but the weight of the words, 2/3.
    half = (math.log(2) + SIGMOID_1 * math.log(SIGMOID_1) + (1 - SIGMOID_1) * math.log(1 - SIGMOID_1)) / 2
    for marginal, share in (("joint", half * 2 / 3), ("prior", half)):
        a = mi_pruner.mi_scores(AXES, AXES, bandwidth=1.0, marginal=marginal)
        assert a[0].tolist() == pytest.approx([share, share], abs=EXACT)


def test_bandwidth_rule_is_the_standard_deviation_of_the_cosines():
    # Cosines 1, 0, 0, 1: standard deviation ½ = h².
    ruled, given = (mi_pruner.mi_scores(AXES, AXES, bandwidth=h) for h in (None, math.sqrt(0.5)))
    torch.testing.assert_close(ruled, given, rtol=0, atol=EXACT)


def test_bandwidth_rule_does_not_weigh_pairs_by_their_prior():
    weights = torch.tensor([[0.9, 0.1]], dtype=torch.float64)
    ruled, given = (mi_pruner.mi_scores(AXES, AXES, text_prior=weights, bandwidth=h) for h in (None, math.sqrt(0.5)))
    torch.testing.assert_close(ruled, given, rtol=0, atol=EXACT)


def test_bandwidth_rule_has_a_floor():
    same = one([[1, 2], [1, 2], [1, 2]])
    # All cosines are 1: the kernel is flat whatever h² = 1e-4 makes of it.
    assert mi_pruner.mi_scores(same, same).abs().max() < EXACT


# h = 1, tokens e1, e1, e2. Column of a picked e1: log K = (0, 0, −1), P = (1, 1, e⁻¹) / (2 + e⁻¹), R = P log 3 P;
# of a picked e2: log K = (−1, −1, 0), P = (e⁻¹, e⁻¹, 1) / (1 + 2 e⁻¹).
TWIN, OTHER, TWIN_OF_E2 = 0.09992801174573258, -0.11860094237857018, -0.09597400954996217


@pytest.mark.parametrize(
    ("redundancy", "weight", "rho_last"),
    [
        ("mean", 1.0, (TWIN + TWIN_OF_E2) / 2),
        ("mean", 0.5, (TWIN + TWIN_OF_E2) / 2),
        ("chain", 1.0, (TWIN + TWIN_OF_E2) / 3),
        ("max", 1.0, TWIN),
    ],
)
def test_selection_of_three_tokens_worked_out_by_hand(redundancy, weight, rho_last):
    visual = one([[1, 0], [2, 0], [0, 3]])
    rho_other = OTHER / 3 if redundancy == "chain" else OTHER
    indices, gains = mi_pruner.greedy_select(
        torch.tensor([[0.3, 0.2, 0.18]], dtype=torch.float64),
        visual,
        3,
        visual_bandwidth=1.0,
        redundancy=redundancy,
        redundancy_weight=weight,
    )
    assert indices.tolist() == [[0, 2, 1]]
    assert gains[0].tolist() == pytest.approx([0.3, 0.18 - weight * rho_other, 0.2 - weight * rho_last], abs=EXACT)


def test_max_redundancy_is_not_clamped_at_zero():
    visual = one([[1, 0], [0, 1]])
    _, gains = mi_pruner.greedy_select(
        torch.zeros(1, 2, dtype=torch.float64), visual, 2, visual_bandwidth=1.0, redundancy="max"
    )
    assert gains[0, 1].item() == pytest.approx(0.1667744769135129, abs=EXACT)  # −R = −σ(−1) log 2σ(−1)


def test_prune_returns_original_order_with_the_gain_of_each_pick():
    visual = one([[0, 1], [1, 0], [1, 1]])
    tokens, indices, gains = mi_pruner.prune(visual, one([[1, 0]]), 2, marginal="prior", redundancy="none")
    assert indices.tolist() == [[1, 2]]
    assert torch.equal(tokens, visual[:, 1:])
    a = mi_pruner.mi_scores(visual, one([[1, 0]]), marginal="prior")
    assert torch.equal(gains, a[:, 1:])


# ---- against the oracle ----------------------------------------------------------------------------------------------
PRIORS = (None, "float", "bool", "odd")
SIZES = ((1, 1, 1), (2, 3, 2), (7, 1, 5), (1, 4, 3), (23, 6, 17))


def sized(n, m, d, visual_prior=None, text_prior=None, kind="clustered"):
    s = inputs.make_sample(kind, n, m, d, torch.float64, seed=n, visual_prior=visual_prior, text_prior=text_prior)
    arrays = {k: None if p is None else p.double().numpy() for k, p in s.priors().items()}
    return s, {"visual": s.visual.numpy(), "text": s.text.numpy(), **arrays}


def scores_of(s, **options):
    b = inputs.batch([s])
    return mi_pruner.mi_scores(b.visual, b.text, **b.priors(), **options)[0].numpy()


@pytest.mark.parametrize("bandwidth", [None, 1e-3, 0.1, 1.0, 1e3])
@pytest.mark.parametrize("marginal", inputs.MARGINALS)
@pytest.mark.parametrize("size", SIZES)
def test_scores_are_those_of_the_oracle(size, marginal, bandwidth):
    for visual_prior, text_prior in [(None, None), ("float", "bool"), ("bool", "float"), ("odd", "odd")]:
        s, arrays = sized(*size, visual_prior, text_prior)
        expected = oracle.scores(**arrays, bandwidth=bandwidth, marginal=marginal)
        # At h = 1e-3 a unit in the last place of a cosine is already 1e-10 of ℓ.
        a = scores_of(s, bandwidth=bandwidth, marginal=marginal)
        np.testing.assert_allclose(a, expected, rtol=EXACT, atol=EXACT)


@pytest.mark.parametrize("marginal", inputs.MARGINALS)
@pytest.mark.parametrize(
    "prior",
    [
        [0.0, 0.0, 0.0, 0.0, 0.0],
        [-1.0, math.nan, -0.0, -math.inf, 0.0],
        [1.0, math.inf, 1.0, math.inf, 1.0],
        [5e-324, 1e-323, 5e-324, 0.0, 5e-324],
        [1e-310, 1.0, 1e300, 1.7e308, 1.7e308],
        [0.0, 0.0, 2.0, 0.0, 0.0],
    ],
    ids=["zeros", "none-positive", "infinite", "denormal", "full-range", "one-valid"],
)
def test_extreme_priors_are_those_of_the_oracle(prior, marginal):
    s, arrays = sized(5, 3, 4)
    s.visual_prior, arrays["visual_prior"] = torch.tensor(prior, dtype=torch.float64), np.array(prior)
    np.testing.assert_allclose(scores_of(s, marginal=marginal), oracle.scores(**arrays, marginal=marginal), atol=EXACT)
    flipped = inputs.Sample(s.text, s.visual, None, s.visual_prior)  # the same weights on the text side
    arrays = {"visual": arrays["text"], "text": arrays["visual"], "text_prior": arrays["visual_prior"]}
    np.testing.assert_allclose(
        scores_of(flipped, marginal=marginal), oracle.scores(**arrays, marginal=marginal), atol=EXACT
    )


@pytest.mark.parametrize("side", ["visual", "text"])
def test_rows_that_are_not_finite_are_absent(side):
    s, arrays = sized(9, 8, 6)
    rows = inputs.odd_rows(getattr(s, side)[None], seed=3)[0]
    setattr(s, side, rows)
    arrays[side] = rows.numpy()
    a = scores_of(s)
    np.testing.assert_allclose(a, oracle.scores(**arrays), atol=EXACT)
    if side == "visual":
        assert (a[~oracle.is_valid(rows.numpy())] == 0).all()


def test_no_valid_text_scores_zero():
    s, _ = sized(6, 3, 4)
    s.text[:] = math.nan
    assert scores_of(s).tolist() == [0.0] * 6


@pytest.mark.parametrize("prior", PRIORS)
@pytest.mark.parametrize("bandwidth", [0.63, 0.05, 1e-3, 1e3])
@pytest.mark.parametrize("redundancy", inputs.REDUNDANCIES)
def test_every_pick_and_gain_is_that_of_the_oracle(redundancy, bandwidth, prior):
    for kind in inputs.KINDS:
        s, arrays = sized(21, 4, 9, prior, kind=kind)
        a = oracle.scores(**arrays)
        b = inputs.batch([s])
        indices, gains = mi_pruner.greedy_select(
            torch.tensor(a)[None],
            b.visual,
            21,
            visual_prior=b.visual_prior,
            visual_bandwidth=bandwidth,
            redundancy=redundancy,
            redundancy_weight=0.7,
        )
        table = oracle.redundancy_table(arrays["visual"], arrays["visual_prior"], bandwidth)
        valid = oracle.is_valid(arrays["visual"], arrays["visual_prior"])
        prior_now = oracle.normalise(arrays["visual_prior"], valid)
        replay = oracle.replay(indices[0].numpy(), gains[0].numpy(), a, table, prior_now, valid, redundancy, 0.7)
        assert replay.regret <= EXACT
        assert replay.error <= EXACT
        assert replay.picks == valid.sum()


# ---- the oracle itself -----------------------------------------------------------------------------------------------
@pytest.mark.parametrize("prior", PRIORS)
def test_oracle_table_is_the_density_with_the_visual_tokens_in_both_roles(prior):
    _, arrays = sized(12, 2, 5, prior)
    visual, prior = arrays["visual"], arrays["visual_prior"]
    p = oracle.density(visual, visual, prior, prior, bandwidth=0.63)
    np.testing.assert_allclose(oracle.redundancy_table(visual, prior), p.conditional * p.log_r, atol=1e-12)


def test_oracle_conditional_is_a_distribution_and_both_forms_of_the_score_agree():
    _, arrays = sized(11, 4, 5, "float", "float")
    p = oracle.density(**arrays)
    np.testing.assert_allclose(p.conditional[:, p.text_valid].sum(0), 1, atol=1e-12)
    with np.errstate(divide="ignore", invalid="ignore"):
        terms = p.conditional * np.log(p.conditional / p.mixture[:, None])
    second_form = np.where(p.conditional > 0, terms, 0) @ p.word_weights[:-1]
    np.testing.assert_allclose(oracle.scores(**arrays), second_form, atol=1e-12)
