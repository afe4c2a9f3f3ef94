"""The rival selectors: each has its method's defining property, by a brute-force twin that shares no step with it."""

import pytest
import torch

from bench import cases
from bench.baselines import cdpruner, dart, divprune, mmr, mmtok, ranking, scope, trimtokenator

KEEP = 9


@pytest.fixture(params=[0, 1], ids=["seed0", "seed1"])
def given(request):
    """Clustered float64 features, two samples: no near ties, whatever the machine's matrix product."""
    case = cases.Case("test", 40, KEEP, 24, text=5, batch=2, dtype=torch.float64)
    return cases.inputs(case, seed=request.param)[0]


def cosine(a, b):
    return float(a @ b / (a.norm() * b.norm()))


def cosines(rows, columns):
    return torch.tensor([[cosine(a, b) for b in columns] for a in rows], dtype=torch.float64)


def greedy(count, keep, value):
    """Picks one by one what gives the largest value(picks); the first among equals."""
    picks: list[int] = []
    for _ in range(keep):
        left = [i for i in range(count) if i not in picks]
        picks.append(max(left, key=lambda i: value([*picks, i])))
    return picks


def assert_picks(select, given, twin):
    """`twin(visual (N, D), text (M, D), saliency (N,))` -> picks of one sample, in order."""
    found = select(*given, KEEP)
    assert found.tolist() == [twin(*sample) for sample in zip(*given, strict=True)]


def test_cdpruner_is_the_greedy_maximum_of_the_log_determinant(given):
    kernels = cdpruner.kernel(given.visual, given.text)
    found = cdpruner.select(*given, KEEP)
    for kernel, picks in zip(kernels, found.tolist(), strict=True):

        def log_determinant(chosen, kernel=kernel):
            return float(torch.linalg.slogdet(kernel[chosen][:, chosen]).logabsdet)

        assert picks == greedy(len(kernel), KEEP, log_determinant)


def test_cdpruner_kernel(given):
    """L[i, j] = r_i cos(i, j) r_j with r in (0, 1 + FLOOR / range], minus the mean cosine, over the whole batch."""
    raw = -torch.stack([cosines(v, t).mean(dim=1) for v, t in zip(given.visual, given.text, strict=True)])
    r = (raw - raw.min() + cdpruner.FLOOR) / (raw.max() - raw.min())
    expected = r[:, :, None] * torch.stack([cosines(v, v) for v in given.visual]) * r[:, None, :]
    torch.testing.assert_close(cdpruner.kernel(given.visual, given.text), expected)


def test_divprune_is_greedy_max_min(given):
    def twin(visual, text, saliency):
        distance = 1 - cosines(visual, visual)

        def nearest(i, others):
            return min(float(distance[i, j]) for j in others if j != i)

        first = max(range(len(visual)), key=lambda i: nearest(i, range(len(visual))))
        picks = [first]
        while len(picks) < KEEP:
            left = [i for i in range(len(visual)) if i not in picks]
            picks.append(max(left, key=lambda i: nearest(i, picks)))
        return picks

    assert_picks(divprune.select, given, twin)


def test_mmtok_maximises_coverage(given):
    def twin(visual, text, saliency):
        rows = [torch.softmax(c / 0.01, dim=0) / len(text) for c in cosines(text, visual)]
        rows += [torch.softmax(c / 0.2, dim=0) * 0.5 / len(visual) for c in cosines(visual, visual)]
        return greedy(len(visual), KEEP, lambda picks: sum(max(float(row[i]) for i in picks) for row in rows))

    assert_picks(mmtok.select, given, twin)


def test_mmtok_never_picks_padding(given):
    valid = torch.arange(40).expand(2, -1) >= 40 - KEEP
    found = mmtok.select(*given, KEEP, valid)
    assert found.sort().values.tolist() == [list(range(40 - KEEP, 40))] * 2


def test_scope_maximises_saliency_times_coverage_gain(given):
    def twin(visual, text, saliency):
        similarity = cosines(visual, visual).clamp(min=0)
        picks: list[int] = []
        while len(picks) < KEEP:
            now = similarity[picks].amax(dim=0) if picks else torch.zeros(len(visual), dtype=torch.float64)

            def gain(i, now=now):
                return float(saliency[i] * (torch.maximum(now, similarity[i]).sum() - now.sum()))

            picks.append(max((i for i in range(len(visual)) if i not in picks), key=gain))
        return picks

    assert_picks(scope.select, given, twin)


def test_trimtokenator_filters_then_spreads(given):
    def twin(visual, text, saliency):
        distance = [sum(float((v - t).square().sum()) for t in text) / len(text) for v in visual]
        passed = sorted(range(len(visual)), key=distance.__getitem__)[: int(0.8 * len(visual))]
        similarity = cosines(visual, visual)
        picks = [min(passed, key=lambda i: float(similarity[i, passed].mean()))]
        while len(picks) < KEEP:
            left = [i for i in passed if i not in picks]
            picks.append(min(left, key=lambda i: float(similarity[i, picks].mean())))
        return picks

    assert_picks(trimtokenator.select, given, twin)


def test_trimtokenator_lets_enough_pass(given):
    found = trimtokenator.select(*given, 39)
    assert [len(set(picks)) for picks in found.tolist()] == [39, 39]


def test_dart_keeps_pivots_and_what_is_least_like_them(given):
    def twin(visual, text, saliency):
        pivots = sorted(range(len(visual)), key=lambda i: -float(visual[i].abs().sum()))[:4]
        words = sorted(range(len(text)), key=lambda j: -float(text[j].abs().sum()))[:4]
        picks = list(pivots)
        for pivot in [*(visual[i] for i in pivots), *(text[j] for j in words)]:
            left = sorted((i for i in range(len(visual)) if i not in picks), key=lambda i: cosine(pivot, visual[i]))
            picks += left[: KEEP // 8]
        return picks

    assert_picks(dart.select, given, twin)


def test_dart_with_few_tokens():
    given = cases.inputs(cases.Case("test", 6, 6, 8, text=2))[0]
    assert sorted(dart.select(*given, 6)[0].tolist()) == list(range(6))


def test_maximal_marginal_relevance(given):
    def twin(visual, text, saliency):
        relevance, similarity = cosines(visual, text).amax(dim=1), cosines(visual, visual)
        picks: list[int] = []
        while len(picks) < KEEP:

            def score(i):
                return 0.5 * float(relevance[i]) - 0.5 * max((float(similarity[i, j]) for j in picks), default=0.0)

            picks.append(max((i for i in range(len(visual)) if i not in picks), key=score))
        return picks

    assert_picks(mmr.select, given, twin)


def test_ranking_by_cosine_and_by_attention(given):
    def by_cosine(visual, text, saliency):
        best = cosines(visual, text).amax(dim=1).tolist()
        return sorted(range(len(visual)), key=lambda i: -best[i])[:KEEP]

    def by_attention(visual, text, saliency):
        return sorted(range(len(visual)), key=lambda i: -float(saliency[i]))[:KEEP]

    assert_picks(ranking.by_cosine, given, by_cosine)
    assert_picks(ranking.by_attention, given, by_attention)


def test_random_tokens_are_distinct_and_differ():
    given = cases.inputs(cases.Case("test", 64, 32, 8))[0]
    draws = [frozenset(ranking.by_chance(*given, 32)[0].tolist()) for _ in range(8)]
    assert all(len(draw) == 32 for draw in draws)
    assert len(set(draws)) > 1


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize(
    "select", [m.select for m in (cdpruner, divprune, mmtok, scope, trimtokenator, dart, mmr)] + [ranking.by_cosine]
)
def test_half_types_are_summed_in_float32(select, dtype):
    """The picks are those of the same features in float32: nothing is lost after the features were rounded."""
    given = cases.inputs(cases.Case("test", 32, 4, 16, text=3, dtype=dtype))[0]
    wide = given._replace(visual=given.visual.float(), text=given.text.float())
    assert torch.equal(select(*given, 4), select(*wide, 4))
