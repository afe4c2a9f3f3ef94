"""Videos: what repeats, how frames share a budget, and both in prune_inputs and selection_orders."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from mi_pruner import MIPruner
from mi_pruner.integrations.serving import kept_rows, selection_orders
from mi_pruner.integrations.video import frames_in_turn, repeats, repeats_of_each

pytestmark = pytest.mark.usefixtures("one_thread")

NOISES = (0.0, 0.05, 0.2)  # cosines of 1, 0.998 and 0.97 between frames


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def still(frames: int, tokens: int, width: int = 512, level: float = 0.0) -> Tensor:
    return noise(tokens, width).repeat(frames, 1) + level * noise(frames * tokens, width, seed=1)


class TestRepeats:
    @pytest.mark.parametrize("level", NOISES)
    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
    def test_a_still_scene_is_new_once(self, level, dtype):
        found = repeats(still(6, 20, level=level).to(dtype), 6).view(6, 20)
        assert not found[0].any()
        assert found[1:].all()

    def test_what_changes_is_new_and_again_what_comes_back(self):
        frames = still(5, 10).view(5, 10, -1)
        frames[2, 3:5] = noise(2, 512, seed=2)
        found = repeats(frames.flatten(0, 1), 5).view(5, 10)
        assert (~found[1:]).nonzero().tolist() == [[1, 3], [1, 4], [2, 3], [2, 4]]

    def test_a_slow_drift_becomes_new(self):
        """Each frame is like the one before, and unlike the first after a while."""
        start, end = noise(2, 1, 8, 512).unbind()
        angle = torch.linspace(0, torch.pi / 2, 31)[:, None, None]
        drift = (angle.cos() * start + angle.sin() * end).flatten(0, 1)
        neighbours = torch.nn.functional.cosine_similarity(drift[8:], drift[:-8])
        assert neighbours.min() > 0.99
        new = (~repeats(drift, 31)).view(31, 8).sum(0)
        assert (new >= 3).all()  # a cosine of 0.9 is an angle of 26 degrees, of 90
        assert (new <= 5).all()

    @pytest.mark.parametrize("common", [0.0, 1.0, 3.0, 30.0])
    def test_what_all_have_in_common_is_no_likeness(self, common):
        scenes = noise(2, 40, 512) + common * noise(512, seed=3)
        video = torch.cat([scenes[0], scenes[0], scenes[1], scenes[1]])
        assert repeats(video, 4).view(4, 40).float().mean(1).tolist() == [0, 1, 0, 1]

    def test_norms_do_not_matter(self):
        video = still(4, 10).double()
        scaled = video * torch.logspace(-18, 18, 40, dtype=torch.float64)[:, None]
        assert torch.equal(repeats(scaled, 4), repeats(video, 4))

    def test_equal_rows_are_repeats_at_any_cosine(self):
        video = still(3, 10)
        alike = noise(1, 512).repeat(30, 1)  # the mean cosine of all pairs is 1
        for cosine in (0.5, 1.0):
            assert repeats(video, 3, cosine).sum() == 20
            assert repeats(alike, 3, cosine).sum() == 20

    @pytest.mark.parametrize("absent", [0.0, torch.inf, torch.nan])
    def test_what_is_absent_is_neither_repeat_nor_repeated(self, absent):
        video = still(4, 10).view(4, 10, -1)
        video[0, 0] = video[1, 1] = video[2, 1] = absent
        video[:, 2] = absent
        found = repeats(video.flatten(0, 1), 4).view(4, 10)
        assert found[:, 0].tolist() == [False, False, True, True]
        assert found[:, 1].tolist() == [False, False, False, True]
        assert not found[:, 2].any()
        assert found[1:, 3:].all()

    def test_views_and_a_single_frame(self):
        video = still(4, 10)
        wide = torch.stack([video, video], dim=-1)[..., 0]
        assert torch.equal(repeats(wide, 4), repeats(video, 4))
        assert not repeats(video, 1).any()

    @pytest.mark.parametrize(
        ("features", "frames", "cosine", "error", "message"),
        [
            (torch.zeros(12, 4), 5, 0.9, ValueError, "frames: expected a divisor of the 12 tokens, got 5"),
            (torch.zeros(12, 4), 0, 0.9, ValueError, "frames: expected a divisor of the 12 tokens, got 0"),
            (torch.zeros(1, 12, 4), 3, 0.9, ValueError, r"features: expected \(T · P, D\) floating .* \(1, 12, 4\)"),
            (torch.zeros(12, 4).int(), 3, 0.9, ValueError, r"features: expected .* got \(12, 4\) torch.int32"),
            (torch.zeros(12, 4), 3, 0, ValueError, r"repeat_cosine: expected a number in \(0, 1\], or None .*, got 0"),
            (torch.zeros(12, 4), 3, 1.1, ValueError, r"repeat_cosine: expected .* got 1.1"),
            (torch.zeros(12, 4), 3, torch.nan, ValueError, r"repeat_cosine: expected .* got nan"),
            (torch.zeros(12, 4), 3, True, TypeError, r"repeat_cosine: expected .* got bool"),
        ],
    )
    def test_bad_input(self, features, frames, cosine, error, message):
        with pytest.raises(error, match=message):
            repeats(features, frames, cosine)

    def test_of_a_batch(self):
        parts = [noise(7, 512, seed=4), still(3, 5), torch.cat([still(2, 4), noise(1, 512, seed=5)])]
        movable = torch.ones(31 - 0, dtype=torch.bool)
        movable[-1] = False
        found = repeats_of_each(torch.cat(parts), [7, 15, 9], [1, 3, 2], movable, 0.9)
        alone = [torch.zeros(7).bool(), repeats(parts[1], 3), repeats(parts[2][:8], 2), torch.zeros(1).bool()]
        assert torch.equal(found, torch.cat(alone))
        assert repeats_of_each(torch.cat(parts), [7, 15, 9], [1, 1, 1], movable, 0.9) is None
        assert repeats_of_each(torch.cat(parts), [7, 15, 9], [1, 3, 2], movable, None) is None
        for wrong, error in (([1, 3], ValueError), ([1, 3, 0], ValueError), (3, TypeError), ([1, 3.0, 2], TypeError)):
            with pytest.raises(error, match=r"frames: expected (one number >= 1 for each of the 3|a list of ints)"):
                repeats_of_each(torch.cat(parts), [7, 15, 9], wrong, movable, 0.9)
        movable[23] = False
        with pytest.raises(ValueError, match="structural: expected those of a video after all of its frames, got some"):
            repeats_of_each(torch.cat(parts), [7, 15, 9], [1, 3, 2], movable, 0.9)


class TestFramesInTurn:
    def test_each_one_then_by_novelty(self):
        assert frames_in_turn([4, 0, 2], [4, 4, 4], 6) == [0, 1, 2, 0, 0, 2]
        assert frames_in_turn([4, 0, 2], [4, 4, 4], 99) == [0, 1, 2, 0, 0, 2, 0, 2, 2, 1, 1, 1]
        assert frames_in_turn([3, 3], [3, 3], 4) == [0, 1, 0, 1]
        assert frames_in_turn([5], [5], 2) == [0, 0]
        assert frames_in_turn([2, 0, 0], [2, 4, 4], 8) == [0, 1, 2, 0, 1, 2, 1, 2]  # nothing new: in turn
        assert frames_in_turn([0, 2, 0], [0, 3, 1], 3) == [1, 2, 1]  # what holds nothing gets nothing

    @pytest.mark.parametrize("seed", range(5))
    def test_exact_nested_and_no_repeat_before_what_is_new(self, seed):
        generator = torch.Generator().manual_seed(seed)
        new = torch.randint(0, 12, (9,), generator=generator).tolist()
        whole = frames_in_turn(new, [11] * 9, 99)
        for keep in range(9, 100):
            turns = frames_in_turn(new, [11] * 9, keep)
            assert turns == whole[:keep]
            assert len(turns) == keep
            given = [turns.count(frame) for frame in range(9)]
            assert min(given) >= 1
            assert max(given) <= 11
            if keep <= sum(new):
                assert all(count <= max(fresh, 1) for count, fresh in zip(given, new, strict=True))

    def test_too_few(self):
        with pytest.raises(
            ValueError, match="keep: expected at least one token for each of the video's 3 frames, got 2"
        ):
            frames_in_turn([1, 1, 1], [4, 4, 4], 2)


class TestServing:
    @pytest.mark.parametrize("level", NOISES)
    def test_a_still_video_spends_a_frame_on_all_places(self, level):
        video, words = still(16, 98, level=level), noise(12, 512, seed=6)
        for texts in (None, [words]):
            (order,) = selection_orders([video], MIPruner(keep=98), texts=texts, frames=[16])
            assert len((order % 98).unique()) >= 0.9 * 98

    @pytest.mark.parametrize("level", NOISES)
    def test_so_it_does_where_copies_of_what_is_named_were_kept(self, level):
        """A frame of 8 clusters and of 20 tokens that lean towards a word each: every kept place was kept 14 times."""
        tokens, relevant = 196, 20
        words, clusters = noise(12, 1024, seed=1), noise(8, 1024, seed=2)
        frame = clusters[torch.arange(tokens) % 8] + 0.5 * noise(tokens, 1024, seed=3)
        named = torch.arange(0, tokens, 9)[:relevant]
        frame[named] = 0.3 * words[torch.arange(relevant) % 12] + 0.95 * noise(relevant, 1024, seed=4)
        video = frame.repeat(16, 1) + level * noise(16 * tokens, 1024, seed=5)
        places = {}
        for frames in (None, [16]):
            (order,) = selection_orders([video], MIPruner(keep=tokens), texts=[words], frames=frames)
            places[frames is None] = len((order % tokens).unique())
        assert places[True] < 0.2 * tokens
        assert places[False] == tokens

    def test_images_beside_videos_and_videos_of_new_frames_are_as_before(self):
        image, moving, video = noise(30, 512), noise(40, 512, seed=7), still(4, 10)
        items = [image, moving, video]
        orders = selection_orders(items, MIPruner(keep=9), frames=[1, 4, 4])
        before = selection_orders(items, MIPruner(keep=9))
        assert orders[0].tolist() == before[0].tolist()
        assert orders[1].tolist() == before[1].tolist()
        assert sorted(orders[2].tolist()) == orders[2].sort().values.unique().tolist()
        assert set((orders[2] % 10).tolist()) == set((kept_rows(orders[2], 9) % 10).tolist())
        off = selection_orders(items, MIPruner(keep=9), frames=[1, 4, 4], repeat_cosine=None)
        assert [order.tolist() for order in off] == [order.tolist() for order in before]

    def test_repeats_come_before_rows_that_are_not_finite_and_the_count_is_exact(self):
        video = still(3, 6)
        video[[1, 7]] = torch.nan
        (order,) = selection_orders([video], MIPruner(keep=1.0), frames=[3])
        assert sorted(order.tolist()) == list(range(18))
        assert sorted(order[-2:].tolist()) == [1, 7]
        assert set(order[:6].tolist()) == {0, 2, 3, 4, 5, 13}  # 13: the first finite one at its place

    def test_kinds_of_arguments(self):
        stack = noise(2, 30, 16)
        alone = selection_orders(list(stack), MIPruner(keep=4))
        together = selection_orders(stack, MIPruner(keep=4))
        assert [order.tolist() for order in together] == [order.tolist() for order in alone]
        for wrong, error, got in (
            (stack[0], TypeError, r"got \(30, 16\)"),
            ("images", ValueError, "got str"),
            (None, TypeError, "got NoneType"),
            ([stack], ValueError, r"got \(2, 30, 16\) torch.float32 among them"),
            ([stack[0].int()], ValueError, r"got \(30, 16\) torch.int32"),
            ([[1.0]], ValueError, "got list"),
        ):
            with pytest.raises(error, match=rf"features: expected .*\(N, D\) floating point for each image.*{got}"):
                selection_orders(wrong, MIPruner(keep=4))
        with pytest.raises(ValueError, match="texts: expected at least one token for each image, got none"):
            selection_orders(stack, MIPruner(keep=4), texts=[noise(3, 16), noise(0, 16)])
        with pytest.raises(ValueError, match="texts: expected one for each of the 2 images, got 1"):
            selection_orders(stack, MIPruner(keep=4), texts=[noise(3, 16)])
        with pytest.raises(
            ValueError, match=r"structural: expected one \(N,\) bool for each image, got \(30,\) torch.int"
        ):
            selection_orders(stack, MIPruner(keep=4), structural=[torch.zeros(30).int()] * 2)
