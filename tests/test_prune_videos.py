"""prune_inputs on videos of every family that takes them, also as images in the prompt."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

pytest.importorskip("transformers")

from mi_pruner import MIPruner
from mi_pruner.functional import count_from_ratio
from mi_pruner.integrations.transformers import encode_inputs
from mi_pruner.integrations.video import frames_in_turn

from . import tiny_checkpoints, tiny_models
from .tiny_models import NEW_TOKENS, QWEN, TILE, TOLERANCE, batch, model, prune_inputs
from .tiny_videos import placeholders

pytestmark = pytest.mark.usefixtures("one_thread")

ENCODED = (*QWEN, "llava_onevision")  # the encoder takes videos
AS_IMAGES = ("internvl", "smolvlm")
A_TILE = {
    "internvl": f"<start>{'<image>' * 9}<stop>",
    "smolvlm": f"<fake_token_around_image><global-img>{'<image>' * 9}<fake_token_around_image>",
}
OPENS = {"internvl": "", "smolvlm": "A film.\n"}  # stands before a video


def film(family: str, frames: int, still: bool, count: int = 1) -> tuple[dict[str, Tensor], int]:
    """Inputs of `count` samples with a video each, whose frames are all the first, or all random; tokens of a frame."""
    is_qwen = family in QWEN
    size = (48, 3 * 2 * 4 * 4) if is_qwen else (3, TILE, TILE)
    pixels = torch.randn(count, frames, *size, generator=torch.Generator().manual_seed(2))
    if still:
        pixels[:] = pixels[:, :1]
    each = 12 if is_qwen else 9
    between = [tiny_models.END, 44, tiny_models.START] if family == "qwen3_vl" else []
    shown = [token for _ in range(frames) for token in [*between, *[tiny_models.VIDEO] * each]][len(between) :]
    shown += [tiny_models.VIDEO] * (family == "llava_onevision")
    ids = torch.tensor([[1, 11, tiny_models.START, *shown, tiny_models.END, 20 + n, 31, 40 + n] for n in range(count)])
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "pixel_values_videos": pixels}
    if is_qwen:
        inputs["pixel_values_videos"] = pixels.flatten(0, 2)
        inputs["video_grid_thw"] = torch.tensor([[frames, 6, 8]] * count)
        inputs["mm_token_type_ids"] = 2 * (ids == tiny_models.VIDEO).int()
    return inputs, each


class Told:
    """A family whose videos are images in the prompt, with the tokenizer that reads the frames' marks."""

    def __init__(self, family: str) -> None:
        self.family, self.tokenizer, self.model = (
            family,
            tiny_checkpoints.tokenizer(),
            tiny_checkpoints.model_for(family),
        )

    def shown(self, *videos: int) -> str:
        """The prompt's part that shows videos of so many frames; 0 is an image of one tile."""
        return "".join(
            OPENS[self.family] + placeholders(self.family, frames) if frames else A_TILE[self.family] + "\n"
            for frames in videos
        )

    def inputs(self, prompts: list[str], still: bool = False) -> dict[str, Any]:
        """Of prompts, each tile of which is random, or all of which are the same."""
        ids = self.tokenizer(
            [f"user {p}what is the woman wearing?" for p in prompts], padding=True, return_tensors="pt"
        )
        tiles = [prompt.count("<image>") // 9 for prompt in prompts]
        pixels = torch.randn(sum(tiles), 3, TILE, TILE, generator=torch.Generator().manual_seed(4))
        if still:
            pixels[:] = pixels[:1]
        if self.family == "smolvlm":
            rows = torch.zeros(len(prompts), max(tiles), 3, TILE, TILE)
            for row, own in zip(rows, pixels.split(tiles), strict=True):
                row[: len(own)] = own
            pixels = rows
        return {"input_ids": ids["input_ids"], "attention_mask": ids["attention_mask"], "pixel_values": pixels}

    def prune(self, inputs: dict[str, Any], pruner: MIPruner, **options: Any) -> Any:
        return prune_inputs(self.model, inputs, pruner, **{"processor": self.tokenizer, **options})


class TestRepeats:
    @pytest.mark.parametrize("family", ENCODED)
    def test_a_still_video_spends_a_frame_on_all_places(self, family):
        inputs, each = film(family, 5, still=True, count=2)
        pruned = prune_inputs(model(family), inputs, MIPruner(keep=each))
        for image in pruned.images:
            assert (image.modality, image.frames) == ("video", 5)
            assert image.repeats.sum() == 4 * each
            assert sorted((image.order % each).tolist()) == list(range(each))
            assert image.scores.isfinite().all()
        off = prune_inputs(model(family), inputs, MIPruner(keep=each), repeat_cosine=None)
        assert any(len((image.order % each).unique()) < each for image in off.images)
        assert not any(image.repeats.any() for image in off.images)

    @pytest.mark.parametrize("family", ENCODED)
    def test_frames_without_likeness_are_selected_as_without_repeats(self, family):
        inputs, _ = film(family, 4, still=False)
        (image,) = prune_inputs(model(family), inputs, MIPruner(keep=0.5)).images
        (before,) = prune_inputs(model(family), inputs, MIPruner(keep=0.5), repeat_cosine=None).images
        assert not image.repeats.any()
        assert image.order.tolist() == before.order.tolist()

    @pytest.mark.parametrize("family", ENCODED)
    def test_the_count_is_exact_and_repeats_come_last_with_no_gain(self, family):
        inputs, each = film(family, 3, still=True)
        line_end = family == "llava_onevision"
        for keep in (1, each + 1, 3 * each, 1.0, 0.4):
            (image,) = prune_inputs(model(family), inputs, MIPruner(keep=keep)).images
            count = keep if isinstance(keep, int) else count_from_ratio(keep, 3 * each)
            assert len(image.order) == len(image.order.unique()) == count == len(image.rows) - line_end
            assert image.gains[:each].isfinite().all()
            assert (image.gains[each:] == -torch.inf).all()
            best = image.scores.where(image.repeats, -torch.inf).argsort(descending=True, stable=True)
            assert image.order[each:].tolist() == best[: max(count - each, 0)].tolist()

    def test_min_gain_keeps_no_repeat(self):
        inputs, each = film("qwen3_vl", 3, still=True)
        (image,) = prune_inputs(model("qwen3_vl"), inputs, MIPruner(keep=1.0, min_gain=-1e9)).images
        assert sorted(image.order.tolist()) == list(range(each))

    def test_an_image_beside_a_still_video_gets_what_the_video_does_not_need(self):
        """A shared budget: repeats are taken when no other token is left."""
        still, each = film("qwen2_5_vl", 3, still=True)
        image = batch("qwen2_5_vl", [1]).inputs
        ids = torch.cat([still["input_ids"][:, :-3], image["input_ids"][:, image["input_ids"][0].ne(0)]], dim=1)
        inputs = {
            **still,
            "pixel_values": image["pixel_values"],
            "image_grid_thw": image["image_grid_thw"],
            "input_ids": ids,
            "attention_mask": torch.ones_like(ids),
            "mm_token_type_ids": (ids == tiny_models.IMAGE).int() + 2 * (ids == tiny_models.VIDEO).int(),
        }
        for keep in (5, each + 12, each + 15):
            pruned = prune_inputs(model("qwen2_5_vl"), inputs, MIPruner(keep=keep), per="sample")
            picture, video = pruned.images
            assert len(picture.order) + len(video.order) == keep
            assert len(video.order) <= each + max(0, keep - each - picture.tokens)

    def test_repeats_fill_a_budget_before_rows_that_are_not_finite(self):
        """Of a budget that a still video shares with one that is overflown but for a row."""
        inputs, each = film("qwen3_vl", 3, still=True, count=2)
        one = {name: value for name, value in inputs.items() if name not in ("input_ids", "attention_mask")}
        ids = torch.cat([inputs["input_ids"][:1, :-3], inputs["input_ids"][1:, 1:]], dim=1)
        one |= {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
        one["mm_token_type_ids"] = 2 * (ids == tiny_models.VIDEO).int()
        encoded = encode_inputs(model("qwen3_vl"), one)
        first, second = encoded["mm_encoder_outputs"]["video"].pooler_output
        second[1:] = torch.nan
        for keep in (2, each + 1, each + 5, 3 * each + 1, 99):
            pruned = prune_inputs(model("qwen3_vl"), encoded, MIPruner(keep=keep), per="sample")
            assert sum(len(image.order) for image in pruned.images) == min(keep, len(first) + 1)

    @pytest.mark.parametrize("cosine", [0, 1.5, "0.9"])
    def test_bad_cosine(self, cosine):
        with pytest.raises((ValueError, TypeError), match="repeat_cosine: expected a number in"):
            prune_inputs(model("llava"), batch("llava", [1]).inputs, MIPruner(), repeat_cosine=cosine)


class TestBudgetsOfFrames:
    @pytest.mark.parametrize("family", ENCODED)
    @pytest.mark.parametrize("still", [True, False])
    def test_each_frame_one_the_rest_by_novelty_and_an_exact_total(self, family, still):
        inputs, each = film(family, 4, still, count=2)
        for keep in (4, 7, each + 3, 3 * each, 1.0):
            pruned = prune_inputs(model(family), inputs, MIPruner(keep=keep), per="frame")
            total = min(4 * each, keep if isinstance(keep, int) else 4 * each)
            turns = frames_in_turn([each] + [0 if still else each] * 3, [each] * 4, total)
            for image in pruned.images:
                assert (image.order // each).tolist() == turns
                assert len(image.order.unique()) == total
                assert len(image.rows) == total + (family == "llava_onevision")

    @pytest.mark.parametrize("family", ENCODED)
    def test_a_frame_is_selected_as_an_image_of_its_own(self, family):
        inputs, each = film(family, 3, still=False)
        encoded = encode_inputs(model(family), inputs)
        (image,) = prune_inputs(model(family), encoded, MIPruner(keep=12), per="frame").images
        features = encoded["mm_encoder_outputs"]["video"].pooler_output[0]
        words = 3 if family in QWEN else 4  # the marker of the video's end is special in their configurations
        text = model(family).get_input_embeddings()(inputs["input_ids"][:, -words:])
        for frame in range(3):
            own = features[frame * each : (frame + 1) * each]
            _, indices, _ = MIPruner(keep=4)(own[None], text)
            mine = image.order[image.order // each == frame] % each
            assert sorted(mine.tolist()) == indices[0].tolist()

    def test_nested_and_own_tokens(self):
        inputs, _ = film("qwen2_vl", 4, still=False)
        for text in ("instruction", "image"):
            (small,), (large,) = (
                prune_inputs(model("qwen2_vl"), inputs, MIPruner(keep=keep), per="frame", text=text).images
                for keep in (9, 30)
            )
            assert small.order.tolist() == large.order[:9].tolist()
            assert torch.equal(small.gains, large.gains[:9])

    def test_a_frame_without_finite_features_has_no_part(self):
        inputs, each = film("qwen2_vl", 3, still=False)
        encoded = encode_inputs(model("qwen2_vl"), inputs)
        (features,) = encoded["mm_encoder_outputs"]["video"].pooler_output
        features[:each] = torch.nan
        (image,) = prune_inputs(model("qwen2_vl"), encoded, MIPruner(keep=8), per="frame").images
        assert (image.order // each).tolist() == [1, 2] * 4
        features[:] = torch.inf
        with pytest.raises(
            ValueError, match=r"inputs: expected finite features .* of sample 0: did the vision encoder"
        ):
            prune_inputs(model("qwen2_vl"), encoded, MIPruner(keep=8), per="frame")

    def test_a_still_frame_keeps_its_best_places(self):
        inputs, each = film("qwen2_5_vl", 4, still=True)
        for min_gain in (None, -1e9):
            pruner = MIPruner(keep=4, min_gain=min_gain)
            (image,) = prune_inputs(model("qwen2_5_vl"), inputs, pruner, per="frame").images
            best = [int(part.argmax()) for part in image.scores.split(each)]
            assert (image.order % each).tolist() == best

    def test_fewer_tokens_than_frames(self):
        inputs, _ = film("qwen3_vl", 4, still=False)
        with pytest.raises(
            ValueError, match="keep: expected at least one token for each of the video's 4 frames, got 3"
        ):
            prune_inputs(model("qwen3_vl"), inputs, MIPruner(keep=3), per="frame")

    def test_images_have_their_own(self):
        made = batch("llava_next", [2, 1])
        for_frames, for_images = (
            prune_inputs(model("llava_next"), made.inputs, MIPruner(keep=9), per=per).images
            for per in ("frame", "image")
        )
        for image, other in zip(for_frames, for_images, strict=True):
            assert image.order.tolist() == other.order.tolist()


class TestFramesAsImages:
    @pytest.mark.parametrize("family", AS_IMAGES)
    @pytest.mark.parametrize("per", ["image", "frame"])
    def test_are_one_video(self, family, per):
        told = Told(family)
        still = told.inputs([told.shown(4), told.shown(3)], still=True)
        pruned = told.prune(still, MIPruner(keep=9), per=per)
        assert [(image.modality, image.frames, image.tokens) for image in pruned.images] == [
            ("video", 4, 36),
            ("video", 3, 27),
        ]
        for image in pruned.images:
            assert image.repeats.sum() == 9 * (image.frames - 1)
            assert len(image.order) == 9
            if per == "image":
                assert sorted((image.order % 9).tolist()) == list(range(9))
            else:
                assert set((image.order // 9).tolist()) == set(range(image.frames))

    @pytest.mark.parametrize("family", AS_IMAGES)
    def test_beside_others(self, family):
        """Two videos, the second of one frame, between images."""
        told = Told(family)
        prompt = told.shown(0, 3, 2, 0, 1)
        found = told.prune(told.inputs([prompt, told.shown(0)]), MIPruner(keep=0.5)).images
        frames = [(image.sample, image.frames, image.tokens) for image in found]
        assert frames == [(0, 1, 9), (0, 3, 27), (0, 2, 18), (0, 1, 9), (0, 1, 9), (1, 1, 9)]

    @pytest.mark.parametrize(
        ("family", "prompt", "frames", "tokens"),
        [
            ("internvl", "Frame1: {2}\nFrame2: {1}\n", [1, 1], [18, 9]),  # of two tiles, so no frame
            ("internvl", "Frame1: {2}\nFrame2: {2}\n", [1, 1], [18, 18]),
            ("internvl", "Frame1: {1}\nFrame3: {1}\n", [1, 1], [9, 9]),
            ("internvl", "See Frame1: {1} and Frame2: {1}\n", [1, 1], [9, 9]),
            ("internvl", "See Frame1: {1}\nFrame2: {1}\n", [2], [18]),
            ("smolvlm", "Frame 1: {2}\nFrame 2: {2}\n", [1], [36]),
            ("smolvlm", "Frame from 00:00:{2}\nFrame from 00:01:{2}\n", [1], [36]),
        ],
    )
    def test_images_that_are_called_frames(self, family, prompt, frames, tokens):
        """{n}: a picture of n tiles, which is no frame of a video unless it is one, and the text is a processor's."""
        told = Told(family)
        tile = "<image>" * 9
        if family == "internvl":
            pictures = [f"<start>{tile * n}<stop>" for n in range(3)]
        else:
            fake = "<fake_token_around_image>"
            pictures = [
                f"{fake}".join(["", *(f"<row_1_col_{n + 1}>{tile}" for n in range(count)), ""]) for count in range(3)
            ]
        inputs = told.inputs([prompt.format(*pictures)])
        found = told.prune(inputs, MIPruner(keep=0.5)).images
        assert [image.frames for image in found] == frames
        assert [image.tokens for image in found] == tokens
        assert not any(image.repeats.any() for image in found)

    @pytest.mark.parametrize("family", AS_IMAGES)
    def test_without_the_processor_they_are_images(self, family):
        told = Told(family)
        inputs = told.inputs([told.shown(3)])
        mask = torch.zeros_like(inputs["input_ids"]).bool()
        mask[:, -4:] = True
        found = prune_inputs(told.model, inputs, MIPruner(keep=0.5), processor=None, text_mask=mask).images
        assert [image.frames for image in found] == [1] * len(found)
        assert [image.tokens for image in found] == ([9, 9, 9] if family == "internvl" else [27])

    @pytest.mark.parametrize("family", AS_IMAGES)
    @pytest.mark.parametrize("per", ["image", "frame", "sample"])
    def test_the_rewritten_prompt_is_that_with_the_dropped_tokens_masked(self, family, per):
        told = Told(family)
        inputs = told.inputs([told.shown(3), told.shown(2, 0)])
        pruned = told.prune(inputs, MIPruner(keep=8), per=per)
        columns = inputs["attention_mask"].bool()
        places = (inputs["input_ids"] == told.model.config.image_token_id).nonzero()
        start = 0
        for image in pruned.images:
            dropped = torch.ones(image.tokens).bool()
            dropped[image.rows] = False
            columns[tuple(places[start : start + image.tokens][dropped].T)] = False
            start += image.tokens
        positions = (inputs["attention_mask"].cumsum(-1) - 1).clamp(min=0)
        with torch.no_grad():
            masked = told.model(**{**inputs, "attention_mask": columns.long(), "position_ids": positions}).logits
            mine = told.model(**pruned).logits
        torch.testing.assert_close(mine[pruned["attention_mask"].bool()], masked[columns], atol=TOLERANCE, rtol=0)
        beams = {"num_beams": 2, "max_new_tokens": NEW_TOKENS, "do_sample": False}
        assert torch.equal(told.model.generate(**pruned, **beams), told.model.generate(**pruned, **beams))

    def test_a_run_that_is_no_whole_tile(self):
        told = Told("internvl")
        inputs = told.inputs([told.shown(2)])
        ids = inputs["input_ids"][0]
        places = (ids == told.model.config.image_token_id).nonzero()[:, 0]
        ids[places[8]], ids[places[9] - 1] = 20, ids[places[0]].item()
        with pytest.raises(
            ValueError, match="input_ids: expected a multiple of the 9 placeholders of a tile in a row, got 8"
        ):
            told.prune(inputs, MIPruner())
