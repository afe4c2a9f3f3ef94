"""The helpers for serving engines: counts, orders, positions and cache keys, each on its own."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import torch

from mi_pruner import MIPruner
from mi_pruner.integrations.serving import (
    cache_key,
    grid_tokens,
    kept_count,
    kept_rows,
    linear_positions,
    mrope_positions,
    selection_orders,
)


def features(*lengths: int, width: int = 16) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    return [torch.randn(length, width, generator=generator) for length in lengths]


class TestCounts:
    @pytest.mark.parametrize(
        ("tokens", "keep", "structural", "kept"),
        [(576, 0.25, 0, 144), (576, 64, 0, 64), (3, 0.1, 0, 1), (10, 99, 0, 10), (114, 0.5, 6, 60), (7, 2, 7, 7)],
    )
    def test_kept(self, tokens, keep, structural, kept):
        assert kept_count(tokens, keep, structural) == kept

    def test_grid(self):
        assert grid_tokens((1, 8, 6), 2) == 12
        assert grid_tokens((3, 28, 42), 2) == 3 * 14 * 21

    def test_bad_input(self):
        with pytest.raises(ValueError, match="keep: expected a ratio"):
            kept_count(10, 1.5)
        with pytest.raises(ValueError, match="structural: expected 0 <= structural <= tokens = 10, got 11"):
            kept_count(10, 0.5, 11)


class TestOrders:
    def test_one_order_serves_every_budget(self):
        images = features(40, 25, 60)
        orders = selection_orders(images, MIPruner(keep=20))
        for keep in (1, 7, 20):
            for image, order in zip(images, orders, strict=True):
                _, alone, _ = MIPruner(keep=keep)(image[None], image[None])
                assert kept_rows(order, keep).tolist() == alone[0].tolist()

    def test_questions(self):
        images, questions = features(40, 25), features(5, 8)
        orders = selection_orders(images, MIPruner(keep=0.2), texts=questions)
        for image, question, order in zip(images, questions, orders, strict=True):
            assert (
                kept_rows(order, len(order)).tolist() == MIPruner(keep=0.2)(image[None], question[None])[1][0].tolist()
            )

    def test_structural_rows_are_kept_beside_the_selection(self):
        (image,) = features(30)
        fixed = torch.arange(30) % 6 == 5
        (order,) = selection_orders([image], MIPruner(keep=0.5), structural=[fixed])
        assert len(order) == kept_count(30, 0.5, 5) - 5 == 13
        assert not fixed[order].any()
        for budget in (0.1, 0.25, 0.5, 1, 13):
            count = kept_count(30, budget, 5)
            assert len(kept_rows(order, count, fixed)) == count
        rows = kept_rows(order, kept_count(30, 4, 5), fixed)
        assert rows.tolist() == sorted([*order[:4].tolist(), 5, 11, 17, 23, 29])

    def test_more_or_fewer_rows_than_there_are(self):
        fixed = torch.arange(30) % 6 == 5
        (order,) = selection_orders(features(30), MIPruner(keep=3), structural=[fixed])
        for keep in (4, 9):
            with pytest.raises(ValueError, match=rf"keep: expected 5 to 8 rows \(5 structural, .* has 3\), got {keep}"):
                kept_rows(order, keep, fixed)

    def test_the_count_holds_whatever_the_features(self):
        (image,) = features(12)
        image[3:] = torch.nan
        (order,) = selection_orders([image], MIPruner(keep=6))
        assert sorted(order[:3].tolist()) == [0, 1, 2]
        assert order[3:].tolist() == [3, 4, 5]

    def test_no_images_and_no_min_gain(self):
        assert selection_orders([], MIPruner()) == []
        with pytest.raises(ValueError, match="min_gain=None"):
            selection_orders(features(5), MIPruner(keep=2, min_gain=0.0))


class TestPositions:
    def test_linear(self):
        positions, following = linear_positions(7, 100, torch.tensor([0, 3, 99]))
        assert positions.tolist() == [7, 10, 106]
        assert following == 107

    @pytest.mark.parametrize(("grid", "interval"), [((1, 8, 6), 1.0), ((3, 4, 10), 2.0), ((2, 6, 6), 0.5)])
    def test_mrope_is_that_of_transformers(self, grid, interval):
        pytest.importorskip("transformers")
        from . import tiny_models

        model = tiny_models.model("qwen2_5_vl").base_model
        tokens = grid_tokens(grid, 2)
        ids = torch.tensor([[5, 6, 7, *[tiny_models.VIDEO] * tokens, 8, 9]])
        model.config.vision_config.tokens_per_second, before = 4, model.config.vision_config.tokens_per_second
        try:
            expected, _ = model.get_rope_index(
                ids,
                mm_token_type_ids=2 * (ids == tiny_models.VIDEO).int(),
                video_grid_thw=torch.tensor([grid]),
                second_per_grid_ts=torch.tensor([interval / 4]),
            )
        finally:
            model.config.vision_config.tokens_per_second = before
        rows = torch.arange(0, tokens, 2)
        positions, following = mrope_positions(grid, 2, 3, rows, interval, text_after="sides")
        assert torch.equal(positions, expected[:, 0, 3:][:, rows])
        assert following == int(expected[0, 0, -2])

    @pytest.mark.parametrize(
        ("grid", "interval"), [((20, 4, 4), 2.0), ((3, 4, 10), 2.0), ((1, 8, 6), 1.0), ((2, 6, 6), 0.5)]
    )
    def test_text_goes_on_after_the_largest_position(self, grid, interval):
        """As in vLLM, also where a video lasts longer than it is wide."""
        rows = torch.arange(grid_tokens(grid, 2))
        positions, following = mrope_positions(grid, 2, 7, rows, interval)
        assert following == int(positions.max()) + 1
        assert mrope_positions(grid, 2, 7, rows[:1], interval)[1] == following
        assert mrope_positions(grid, 2, 7, rows, interval, text_after="sides")[1] == 7 + max(grid[1:]) // 2
        with pytest.raises(ValueError, match="text_after: expected 'all' or 'sides', got 'time'"):
            mrope_positions(grid, 2, 7, rows, interval, text_after="time")


class TestCacheKeys:
    def test_differ_by_all_that_decides_the_selection(self):
        keys = {
            cache_key("a", MIPruner(keep=0.25)),
            cache_key("b", MIPruner(keep=0.25)),
            cache_key("a", MIPruner(keep=0.5)),
            cache_key("a", MIPruner(keep=1)),
            cache_key("a", MIPruner(keep=1.0)),
            cache_key("a", MIPruner.paper(keep=0.25)),
            cache_key("a", MIPruner(keep=0.25), [1, 2]),
            cache_key("a", MIPruner(keep=0.25), [1, 3]),
            cache_key("a", MIPruner(keep=0.25), []),
            cache_key("a", MIPruner(keep=0.25), repeat_cosine=None),
        }
        assert len(keys) == 10

    def test_are_the_same_in_every_process(self):
        key = cache_key("a", MIPruner(keep=0.25), torch.tensor([1, 2]))
        assert key == cache_key("a", MIPruner(keep=0.25).eval(), [1, 2])
        assert key == "09a04106d47f13ea3c3c23c949bbad8aa4355c23b909664de6ec017600971779"

    def test_ids_as_a_tokenizer_gives_them(self):
        key = cache_key("a", MIPruner(keep=0.25), [1, 2])
        for ids in (torch.tensor([[1, 2]]), [[1, 2]], torch.tensor([1, 2]).int(), (1, 2), np.array([1, 2])):
            assert cache_key("a", MIPruner(keep=0.25), ids) == key
        for wrong, got in (
            (torch.ones(2, 2).long(), r"\(2, 2\)"),
            ([1.5], "torch.float32"),
            (torch.ones(2).bool(), "torch.bool"),
            ("what is it?", "'what is it.'"),
            ([[1], [2, 3]], r"\[\[1\], \[2, 3\]\]"),
            (7, r"\(\)"),
        ):
            with pytest.raises(ValueError, match=rf"question_ids: expected \(M,\) or \(1, M\).*, got {got}"):
                cache_key("a", MIPruner(keep=0.25), wrong)


def test_example_on_the_page_runs():
    page = (Path(__file__).parents[1] / "docs" / "serving.md").read_text(encoding="utf-8")
    (block,) = re.findall(r"```python\n(.*?)```", page, flags=re.DOTALL)
    names: dict = {}
    exec(compile(block, "docs/serving.md", "exec"), names)
    assert len(names["features"]) == 6
    assert names["positions"].shape == (3, 6)
    assert names["following"] == 13
