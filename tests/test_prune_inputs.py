"""prune_inputs on tiny random models of every family, against the unpruned model and against masked tokens."""

from __future__ import annotations

import copy
import subprocess
import sys
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

pytest.importorskip("transformers")

from mi_pruner import MIPruner
from mi_pruner.functional import count_from_ratio
from mi_pruner.integrations.model_inputs import PrunedInputs
from mi_pruner.integrations.next_turn import next_turn
from mi_pruner.integrations.prompt_columns import original_positions
from mi_pruner.integrations.transformers import encode_inputs

from . import tiny_models
from .tiny_models import FAMILIES, NEW_TOKENS, QWEN, TOLERANCE, answer, batch, logits_of, model, prune_inputs

CASES = {"one": [1], "left-padded": [1, 1, 1], "several images": [2, 2], "one sample without": [1, 0, 2]}
pytestmark = pytest.mark.usefixtures("one_thread")

VIDEO_CASES = [(family, [1, 2]) for family in (*QWEN, "llava_onevision")]


def parametrize_batches(function):
    cases = [
        pytest.param(family, images, False, id=f"{family}-{name}")
        for family in FAMILIES
        for name, images in CASES.items()
    ]
    videos = [pytest.param(family, images, True, id=f"{family}-video") for family, images in VIDEO_CASES]
    return pytest.mark.parametrize(("family", "images", "video"), cases + videos)(function)


def dense_inputs(family: str, made: tiny_models.Batch, columns: Tensor | None = None) -> dict[str, Any]:
    """The unpruned inputs with the positions that generate() gives them; `columns` (B, L) bool are not masked."""
    attended = made.inputs["attention_mask"].bool()
    positions = original_positions(model(family), made.inputs, attended)
    if positions.dim() == 3:
        positions = torch.cat([(attended.long().cumsum(-1) - 1).clamp(min=0)[None], positions])
    inputs = {**made.inputs, "position_ids": positions}
    return inputs if columns is None else {**inputs, "attention_mask": columns.long()}


def kept_columns(made: tiny_models.Batch, pruned: PrunedInputs) -> Tensor:
    """(B, L) bool: which columns of the unpruned prompt are left."""
    ids = made.inputs["input_ids"]
    columns = made.inputs["attention_mask"].bool().clone()
    used = [0] * len(ids)
    for image in pruned.images:
        places = (ids[image.sample] >= tiny_models.IMAGE) & (ids[image.sample] <= tiny_models.VIDEO)
        mine = places.nonzero()[used[image.sample] :][: image.tokens, 0]
        columns[image.sample, mine] = False
        columns[image.sample, mine[image.rows]] = True
        used[image.sample] += image.tokens
    return columns


def beam_search(family: str, inputs: dict[str, Any]) -> tuple[Tensor, Tensor]:
    """Ids of the best of two beams, and their scores: with three, features in the wrong order would go unnoticed."""
    options = {"num_beams": 2, "max_new_tokens": NEW_TOKENS, "do_sample": False}
    found = model(family).generate(**inputs, **options, output_scores=True, return_dict_in_generate=True)
    return found.sequences[:, inputs["input_ids"].shape[1] :], found.sequences_scores


def uncached_answer(family: str, inputs: dict[str, Any]) -> Tensor:
    """Greedy decoding that runs the whole prompt for every token."""
    inputs = {**inputs, "use_cache": False}
    length = inputs["input_ids"].shape[1]
    for _ in range(NEW_TOKENS):
        logits = logits_of(family, inputs)[:, -1]
        logits[:, tiny_models.IMAGE : tiny_models.END + 1] = -torch.inf
        inputs["input_ids"] = torch.cat([inputs["input_ids"], logits.argmax(-1, keepdim=True)], 1)
        inputs["position_ids"] = torch.cat([inputs["position_ids"], inputs["position_ids"][..., -1:] + 1], -1)
        inputs["attention_mask"] = torch.nn.functional.pad(inputs["attention_mask"], (0, 1), value=1)
        for name in ("token_type_ids", "mm_token_type_ids"):
            if name in inputs:
                inputs[name] = torch.nn.functional.pad(inputs[name], (0, 1))
    return inputs["input_ids"][:, length:]


def assert_rows_equal(pruned_logits: Tensor, pruned: PrunedInputs, dense_logits: Tensor, columns: Tensor) -> None:
    """The logits of the attended columns of the pruned run are those of the columns left in the dense run."""
    torch.testing.assert_close(
        pruned_logits[pruned["attention_mask"].bool()], dense_logits[columns], atol=TOLERANCE, rtol=0
    )


def one_sample(pruned: PrunedInputs, sample: int) -> dict[str, Any]:
    """The inputs of one sample of a pruned batch of images."""
    alone: dict[str, Any] = {}
    for name, value in pruned.items():
        if isinstance(value, Tensor):
            alone[name] = value[:, [sample]] if value.dim() == 3 else value[[sample]]
    counts = [len(image.rows) for image in pruned.images]
    output = pruned["mm_encoder_outputs"]["image"]

    def mine(features: Any) -> Any:
        flat = torch.cat([part.flatten(0, -2) for part in features]).split(counts)
        own = torch.cat([part for part, image in zip(flat, pruned.images, strict=True) if image.sample == sample])
        return own[None] if isinstance(features, Tensor) else [own]

    fields = {"pooler_output": mine(output.pooler_output)}
    if "deepstack_features" in output:
        fields["deepstack_features"] = [mine(layer) for layer in output.deepstack_features]
    return {**alone, "mm_encoder_outputs": {"image": type(output)(**fields)}, "use_cache": True}


@parametrize_batches
def test_everything_kept_is_the_unpruned_model(family, images, video):
    made = batch(family, images, video=video)
    pruned = prune_inputs(model(family), made.inputs, MIPruner(keep=1.0))
    dense = dense_inputs(family, made)
    assert [image.tokens for image in pruned.images] == made.images
    assert_rows_equal(logits_of(family, pruned), pruned, logits_of(family, dense), dense["attention_mask"].bool())
    assert torch.equal(answer(family, pruned), answer(family, made.inputs))


@parametrize_batches
def test_pruned_is_the_full_length_run_with_the_dropped_tokens_masked(family, images, video):
    made = batch(family, images, video=video)
    pruned = prune_inputs(model(family), made.inputs, MIPruner(keep=0.25))
    columns = kept_columns(made, pruned)
    masked = dense_inputs(family, made, columns)
    assert_rows_equal(logits_of(family, pruned), pruned, logits_of(family, masked), columns)
    assert torch.equal(answer(family, pruned), uncached_answer(family, pruned))
    prefill = [
        int(made.inputs["attention_mask"][sample].sum())
        - sum(image.tokens - len(image.rows) for image in pruned.images if image.sample == sample)
        for sample in range(len(images))
    ]
    assert pruned["attention_mask"].sum(1).tolist() == prefill
    assert pruned["input_ids"].shape[1] == max(prefill)
    kept = [count_from_ratio(0.25, n - s) + s for n, s in zip(made.images, made.structural, strict=True)]
    assert [len(image.rows) for image in pruned.images] == kept


class TestWrongRewritesAreCaught:
    """The comparison with masked tokens fails for the mistakes that are easy to make."""

    @staticmethod
    def distance(family: str, damage) -> float:
        made = batch(family, [1])
        pruned = prune_inputs(model(family), made.inputs, MIPruner(keep=0.25))
        columns = kept_columns(made, pruned)
        right = logits_of(family, dense_inputs(family, made, columns))[columns]
        inputs = dict(pruned)
        damage(inputs)
        return float((logits_of(family, inputs)[0] - right).abs().max())

    @pytest.mark.parametrize("family", FAMILIES)
    def test_compacted_positions(self, family):
        def compact(pruned):
            pruned["position_ids"] = torch.arange(pruned["input_ids"].shape[1]).expand_as(pruned["position_ids"])

        assert self.distance(family, compact) > 100 * TOLERANCE

    @pytest.mark.parametrize("family", FAMILIES)
    def test_wrong_rows_of_the_features(self, family):
        def shift(pruned):
            output = pruned["mm_encoder_outputs"]["image"]
            flat = torch.cat([part.flatten(0, -2) for part in output.pooler_output])
            shape = output.pooler_output.shape if isinstance(output.pooler_output, Tensor) else None
            output.pooler_output = [flat.roll(1, 0)] if shape is None else flat.roll(1, 0).view(shape)

        assert self.distance(family, shift) > 100 * TOLERANCE

    @pytest.mark.parametrize("layer", [0, 1])
    def test_wrong_rows_of_a_deepstack_layer(self, layer):
        def swap(pruned):
            features = pruned["mm_encoder_outputs"]["image"].deepstack_features
            features[layer] = [part.roll(1, 0) for part in features[layer]]

        assert self.distance("qwen3_vl", swap) > 100 * TOLERANCE


class TestGeneration:
    @pytest.mark.parametrize("family", FAMILIES)
    @pytest.mark.parametrize(
        "options",
        [{"cache_implementation": "static"}, {"prefill_chunk_size": 16}],
        ids=["static cache", "chunked prefill"],
    )
    def test_is_that_of_a_plain_cache(self, family, options):
        if family == "gemma3" and "prefill_chunk_size" in options:
            options = {"prefill_chunk_size": 64}  # its images attend in both directions: no chunk may cut one in two
        made = batch(family, [2, 1])
        plain, other = (prune_inputs(model(family), made.inputs, MIPruner(keep=0.5)) for _ in range(2))
        assert torch.equal(answer(family, other, **options), answer(family, plain))

    @pytest.mark.parametrize("family", FAMILIES)
    def test_beam_search_in_a_batch_is_that_of_each_sample(self, family):
        made = batch(family, [2, 1])
        together = prune_inputs(model(family), made.inputs, MIPruner(keep=7), per="sample")
        assert len({len(image.rows) for image in together.images}) > 1 or family in ("smolvlm", "idefics3")
        beams, scores = beam_search(family, together)
        for sample in range(2):
            alone = one_sample(prune_inputs(model(family), made.inputs, MIPruner(keep=7), per="sample"), sample)
            expected, score = beam_search(family, alone)
            assert torch.equal(expected[0], beams[sample])
            torch.testing.assert_close(score[0], scores[sample], atol=TOLERANCE, rtol=0)

    @pytest.mark.parametrize("family", FAMILIES)
    def test_sampling_is_that_of_the_unpruned_model(self, family):
        made = batch(family, [1, 1])
        options = {"max_new_tokens": NEW_TOKENS, "do_sample": True, "num_return_sequences": 2}
        sampled = []
        for inputs in (made.inputs, prune_inputs(model(family), made.inputs, MIPruner(keep=1.0))):
            torch.manual_seed(4)
            sampled.append(model(family).generate(**inputs, **options)[:, inputs["input_ids"].shape[1] :])
        assert torch.equal(*sampled)

    @pytest.mark.parametrize("family", FAMILIES)
    def test_without_cache_is_refused_or_right(self, family):
        pruned = prune_inputs(model(family), batch(family, [1]).inputs, MIPruner(keep=0.25))
        assert pruned["use_cache"] is True
        with pytest.raises(TypeError, match="use_cache"):
            model(family).generate(**pruned, use_cache=False)
        model(family).generation_config.use_cache = False
        try:
            assert torch.equal(answer(family, pruned), uncached_answer(family, pruned))
        finally:
            model(family).generation_config.use_cache = True


def cache_of(length: int) -> SimpleNamespace:
    return SimpleNamespace(get_seq_length=lambda: length)


class TestConversation:
    @pytest.mark.parametrize("family", FAMILIES)
    def test_next_turn_continues_the_cache(self, family):
        """Two more turns on the cache are a run of the whole conversation without one; one answer ends early."""
        pruned = prune_inputs(model(family), batch(family, [1, 2]).inputs, MIPruner(keep=0.5))
        features = pruned["mm_encoder_outputs"]
        questions = torch.randint(10, 90, (2, 6), generator=torch.Generator().manual_seed(5))
        mask = torch.tensor([[0, 0, 1, 1, 1, 1], [1, 1, 1, 1, 1, 1]])
        turn = pruned
        for _ in range(2):
            options = {"max_new_tokens": NEW_TOKENS, "do_sample": False, "return_dict_in_generate": True}
            generated = model(family).generate(**turn, **options)
            turn = next_turn(model(family), turn, generated, questions, mask)
        cached = answer(family, turn)
        whole = {name: turn[name] for name in turn if name not in ("cache", "past_key_values")}
        assert torch.equal(cached, uncached_answer(family, {**whole, "mm_encoder_outputs": features}))

    def test_an_answer_is_not_attended_after_its_end(self):
        pruned = prune_inputs(model("llava"), batch("llava", [1, 1]).inputs, MIPruner(keep=4))
        answers = torch.tensor([[11, 2, 0, 0], [11, 12, 13, 14]])
        sequences = torch.cat([pruned["input_ids"], answers], dim=1)
        generated = SimpleNamespace(sequences=sequences, past_key_values=cache_of(sequences.shape[1] - 1))
        model("llava").generation_config.eos_token_id = [tiny_models.EOS, 3]
        try:
            turn = next_turn(model("llava"), pruned, generated, torch.full((2, 3), 20))
        finally:
            model("llava").generation_config.eos_token_id = None
        length = pruned["input_ids"].shape[1]
        assert turn["attention_mask"][:, length:].tolist() == [[1, 1, 0, 0, 1, 1, 1], [1] * 7]
        steps = turn["position_ids"][:, -3:] - pruned["position_ids"][:, -1:]
        assert steps.tolist() == [[3, 4, 5], [5, 6, 7]]
        assert "mm_encoder_outputs" not in turn

    def test_selecting_anew_reads_the_new_question(self):
        made = batch("llava", [1])
        mask = torch.zeros_like(made.inputs["input_ids"], dtype=torch.bool)
        mask[:, -3:] = True
        anew = prune_inputs(model("llava"), made.inputs, MIPruner(keep=6), text_mask=mask)
        first = prune_inputs(model("llava"), made.inputs, MIPruner(keep=6))
        assert not torch.equal(anew.images[0].rows, first.images[0].rows)

    def test_a_generation_without_cache_is_refused(self):
        pruned = prune_inputs(model("llava"), batch("llava", [1]).inputs, MIPruner(keep=4))
        with pytest.raises(ValueError, match="return_dict_in_generate=True"):
            next_turn(model("llava"), pruned, pruned["input_ids"], torch.ones(1, 2, dtype=torch.int64))
        generated = SimpleNamespace(sequences=pruned["input_ids"], cache=cache_of(1))
        with pytest.raises(ValueError, match=r"input_ids: expected \(1, T\) int64, got \(2, 2\) torch.int64"):
            next_turn(model("llava"), pruned, generated, torch.ones(2, 2, dtype=torch.int64))
        with pytest.raises(TypeError, match=r"input_ids: expected \(1, T\) int64 as a tensor, got list"):
            next_turn(model("llava"), pruned, generated, [[20, 21]])
        with pytest.raises(TypeError, match=r"pruned: expected the PrunedInputs of .*, got dict"):
            next_turn(model("llava"), dict(pruned), generated, torch.ones(1, 2, dtype=torch.int64))

    @pytest.mark.parametrize("options", [{"num_beams": 2}, {"do_sample": True, "num_return_sequences": 2}])
    def test_several_answers_for_a_sample_are_refused(self, options):
        pruned = prune_inputs(model("llava"), batch("llava", [1]).inputs, MIPruner(keep=4))
        made = model("llava").generate(**pruned, **options, max_new_tokens=2, return_dict_in_generate=True)
        with pytest.raises(ValueError, match=r"expected one answer for each of the 1 samples, .*without num_beams"):
            next_turn(model("llava"), pruned, made, torch.ones(1, 2, dtype=torch.int64))


class TestBudgets:
    @pytest.mark.parametrize(("keep", "rows"), [(5, [5, 5, 5]), (0.5, [9, 14, 9]), (1000, [18, 27, 18])])
    def test_of_each_image(self, keep, rows):
        pruned = prune_inputs(model("internvl"), batch("internvl", [2, 1]).inputs, MIPruner(keep=keep))
        assert [len(image.rows) for image in pruned.images] == rows

    def test_of_a_sample_is_shared_by_gain_in_order_of_selection(self):
        made = batch("internvl", [2, 1])
        pruned = prune_inputs(model("internvl"), made.inputs, MIPruner(keep=10), per="sample")
        full = prune_inputs(model("internvl"), made.inputs, MIPruner(keep=10))
        assert [sum(len(i.rows) for i in pruned.images if i.sample == sample) for sample in (0, 1)] == [10, 10]
        first, second = pruned.images[:2]
        for image, whole in zip(pruned.images, full.images, strict=True):
            assert image.order.tolist() == whole.order[: len(image.order)].tolist()
        for mine, other, whole in ((first, second, full.images[0]), (second, first, full.images[1])):
            left_out = whole.gains[len(mine.order) :]  # no pick left out may beat all that came before it on both sides
            if len(left_out):
                assert left_out[0] <= other.gains[1:].cummin(0).values.min()

    def test_every_image_of_a_shared_budget_keeps_a_token(self):
        pruned = prune_inputs(model("llava"), batch("llava", [3]).inputs, MIPruner(keep=3), per="sample")
        assert [len(image.rows) for image in pruned.images] == [1, 1, 1]
        with pytest.raises(ValueError, match="at least one token for each of the 3 images of sample 0, got 2"):
            prune_inputs(model("llava"), batch("llava", [3]).inputs, MIPruner(keep=2), per="sample")

    @pytest.mark.parametrize("family", ["llava_next", "llava_onevision"])
    def test_structural_rows_stay_and_take_no_part(self, family):
        made = batch(family, [1])
        pruned = prune_inputs(model(family), made.inputs, MIPruner(keep=1))
        (image,) = pruned.images
        assert len(image.rows) == 1 + made.structural[0]
        features = pruned["mm_encoder_outputs"]["image"].pooler_output[0]
        assert (features == model(family).base_model.image_newline).all(-1).sum() == made.structural[0]
        assert (image.scores != 0).sum() == made.images[0] - made.structural[0]

    def test_nested(self):
        made = batch("qwen3_vl", [2])
        for small, large in zip(
            *(prune_inputs(model("qwen3_vl"), made.inputs, MIPruner(keep=keep)).images for keep in (3, 9)), strict=True
        ):
            assert small.order.tolist() == large.order[:3].tolist()

    def test_min_gain_keeps_fewer(self):
        made = batch("llava", [1])
        (image,) = prune_inputs(model("llava"), made.inputs, MIPruner(keep=30)).images
        floor = float(image.gains.cummin(0).values[10])
        (fewer,) = prune_inputs(model("llava"), made.inputs, MIPruner(keep=30, min_gain=floor)).images
        assert fewer.order.tolist() == image.order[: len(fewer.order)].tolist()
        assert 10 < len(fewer.order) < 30


class TestNothingKept:
    @pytest.mark.parametrize("family", FAMILIES)
    @pytest.mark.parametrize("value", [torch.inf, torch.nan])
    @pytest.mark.parametrize("per", ["image", "sample", "frame"])
    def test_features_that_overflowed_are_an_error(self, family, value, per):
        made = batch(family, [1, 1])
        encoded = encode_inputs(model(family), made.inputs)
        newline = getattr(model(family).base_model, "image_newline", None)
        for part in encoded["mm_encoder_outputs"]["image"].pooler_output:
            part[... if newline is None else (part != newline).any(-1)] = value
        with pytest.raises(
            ValueError, match="inputs: expected finite features of each image, got none of an image or v"
        ):
            prune_inputs(model(family), encoded, MIPruner(keep=0.25), per=per)

    @pytest.mark.parametrize("family", FAMILIES)
    def test_those_of_the_last_image_alone_are_one_too_and_fewer_are_not(self, family):
        made = batch(family, [1, 1])
        encoded = encode_inputs(model(family), made.inputs)
        pooled = encoded["mm_encoder_outputs"]["image"].pooler_output
        flat = pooled.flatten(0, 1) if isinstance(pooled, Tensor) else pooled[-1]  # both are views of the features
        newline = getattr(model(family).base_model, "image_newline", None)
        rows = torch.arange(len(flat) - made.images[-1], len(flat))
        rows = rows if newline is None else rows[(flat[rows] != newline).any(-1)]
        flat[rows[:-1]] = torch.nan
        _, image = prune_inputs(model(family), encoded, MIPruner(keep=0.5)).images
        assert len(image.order) == 1
        flat[rows[-1]] = torch.inf
        with pytest.raises(
            ValueError, match=r"got none of an image or video of sample 1: did the vision encoder overf"
        ):
            prune_inputs(model(family), encoded, MIPruner(keep=0.5))

    @pytest.mark.parametrize("family", FAMILIES)
    @pytest.mark.parametrize("per", ["image", "sample"])
    def test_min_gain_leaves_one_token_of_each_image(self, family, per):
        made = batch(family, [2, 1])
        best = prune_inputs(model(family), made.inputs, MIPruner(keep=6)).images
        pruned = prune_inputs(model(family), made.inputs, MIPruner(keep=6, min_gain=1e9), per=per)
        for image, first in zip(pruned.images, best, strict=True):
            assert image.order.tolist() == first.order[:1].tolist()
            assert torch.equal(image.gains, first.gains[:1])
        assert torch.equal(answer(family, pruned), uncached_answer(family, pruned))


@pytest.mark.parametrize("family", ["llava", "qwen2_5_vl", "smolvlm"])
def test_all_images_of_a_batch_go_through_one_packed_call(family):
    calls = []

    class Count(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, arguments=(), keywords=None):
            if function.namespace == "mi_pruner":
                calls.append(function._opname)
            return function(*arguments, **(keywords or {}))

    with Count():
        prune_inputs(model(family), batch(family, [2, 1, 3]).inputs, MIPruner(keep=0.25))
    assert calls == ["mi_scores_varlen", "greedy_select_varlen"]


@pytest.mark.parametrize("family", FAMILIES)
def test_selection_is_that_of_each_image_alone(family):
    """The packed call gives every image its own tokens and its own sample's question."""
    made = batch(family, [2, 1])
    pruner = MIPruner(keep=5)
    encoded = encode_inputs(model(family), made.inputs)
    pruned = prune_inputs(model(family), encoded, pruner)
    pooled = encoded["mm_encoder_outputs"]["image"].pooler_output
    flat = torch.cat([part.flatten(0, -2) for part in pooled]).split(made.images)
    embed = model(family).get_input_embeddings()
    for image, features in zip(pruned.images, flat, strict=True):
        ids = made.inputs["input_ids"][image.sample]
        question = ids[int((ids == tiny_models.IMAGE).nonzero().max()) + 1 :]
        if family in (*QWEN, "gemma3"):  # the marker of the image's end is special in their configurations
            question = question[1:]
        newline = getattr(model(family).base_model, "image_newline", None)
        prior = torch.ones(1, len(features)).bool() if newline is None else (features != newline).any(-1)[None]
        _, alone, gains = pruner(features[None], embed(question)[None], visual_prior=prior)
        assert image.order.sort().values.tolist() == alone[0].tolist()
        torch.testing.assert_close(image.gains[image.order.argsort()], gains[0])


def test_encoding_once_serves_many_budgets():
    made = batch("qwen3_vl", [2, 1])
    encoded = encode_inputs(model("qwen3_vl"), made.inputs)
    assert "pixel_values" not in encoded
    for keep in (0.25, 0.5):
        once = prune_inputs(model("qwen3_vl"), encoded, MIPruner(keep=keep))
        again = prune_inputs(model("qwen3_vl"), made.inputs, MIPruner(keep=keep))
        assert torch.equal(logits_of("qwen3_vl", once), logits_of("qwen3_vl", again))


def test_images_and_videos_in_one_batch():
    """A sample with an image beside one with a video."""
    image, video = batch("qwen3_vl", [1]), batch("qwen3_vl", [1], video=True)
    length = max(made.inputs["input_ids"].shape[1] for made in (image, video))
    mixed = {**image.inputs, **video.inputs}
    for name in ("input_ids", "attention_mask", "mm_token_type_ids"):
        rows = [torch.nn.functional.pad(m.inputs[name], (length - m.inputs[name].shape[1], 0)) for m in (image, video)]
        mixed[name] = torch.cat(rows)
    made = tiny_models.Batch(mixed)
    pruned = prune_inputs(model("qwen3_vl"), mixed, MIPruner(keep=0.25))
    assert [(part.modality, part.sample) for part in pruned.images] == [("image", 0), ("video", 1)]
    columns = kept_columns(made, pruned)
    masked = logits_of("qwen3_vl", dense_inputs("qwen3_vl", made, columns))
    assert_rows_equal(logits_of("qwen3_vl", pruned), pruned, masked, columns)


def test_right_padding_and_labels():
    made = batch("llava", [1, 1])
    shift = [int((row == 0).sum()) for row in made.inputs["attention_mask"]]
    right = {**made.inputs}
    for name in ("input_ids", "attention_mask"):
        right[name] = torch.stack([row.roll(-n) for row, n in zip(made.inputs[name], shift, strict=True)])
    labels = torch.full_like(made.inputs["input_ids"], -100)
    labels[:, -2:] = made.inputs["input_ids"][:, -2:]
    right["labels"] = torch.stack([row.roll(-n) for row, n in zip(labels, shift, strict=True)])
    left, pruned = (
        prune_inputs(model("llava"), inputs, MIPruner(keep=9)) for inputs in ({**made.inputs, "labels": labels}, right)
    )
    for name in ("input_ids", "attention_mask", "position_ids", "labels"):
        assert torch.equal(left[name], pruned[name])
    assert torch.equal(pruned["labels"][:, -2:], pruned["input_ids"][:, -2:])
    assert (pruned["labels"][:, :-2] == -100).all()


def test_half_precision():
    made = batch("qwen2_5_vl", [1, 1])
    half = copy.deepcopy(model("qwen2_5_vl")).bfloat16()
    pruned = prune_inputs(half, made.inputs, MIPruner(keep=4))
    assert pruned["mm_encoder_outputs"]["image"].pooler_output[0].dtype == torch.bfloat16
    with torch.no_grad():
        assert half(**pruned).logits.isfinite().all()


@pytest.mark.slow
def test_nothing_is_imported_before_it_is_used():
    program = """
import sys, mi_pruner.integrations.transformers, mi_pruner.integrations.next_turn, mi_pruner.integrations.serving
print(sorted({"transformers", "matplotlib", "PIL", "numpy"} & set(sys.modules) - before))
"""
    before = "import sys, torch\nbefore = set(sys.modules)\n"  # torch may bring numpy
    done = subprocess.run([sys.executable, "-c", before + program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


class TestBadInput:
    @pytest.mark.parametrize(
        ("change", "options", "message"),
        [
            (
                {"pixel_values": None},
                {},
                "expected pixel_values or pixel_values_videos, got .*no image to prune; call model.generate",
            ),
            ({"input_ids": [[1, 2]]}, {}, r"expected input_ids \(B, L\) as a tensor, got list: .*return_tensors"),
            ({"input_ids": torch.full((1, 48), 5)}, {}, "a placeholder for each of the 36 image tokens, got none: "),
            ({"input_ids": torch.full((1, 48), 95)}, {}, "expected 36 image placeholders, .* got 48: was .*truncated"),
            ({"position_ids": torch.zeros(1, 48)}, {}, "position_ids are computed here"),
            ({"mm_encoder_outputs": {"image": 1}}, {}, "got both: leave out pixel_values"),
            ({}, {"processor": None}, "processor: expected .* got None: pass processor=.*text_mask.*text='image'"),
            ({}, {"text": "question"}, "text: expected one of 'instruction', 'image', got 'question'"),
            ({}, {"per": "batch"}, "per: expected one of 'image', 'sample', 'frame', got 'batch'"),
            ({}, {"text_mask": torch.ones(1, 48)}, r"text_mask: expected \(1, 48\) bool, as input_ids, got \(1, 48\) "),
            (
                {},
                {"text_mask": torch.ones(1, 48).bool(), "text": "image"},
                "text_mask: has no meaning with text='image'",
            ),
        ],
    )
    def test_says_what_to_do(self, change, options, message):
        inputs = {**batch("llava", [1]).inputs, **change}
        with pytest.raises(ValueError, match=message):
            prune_inputs(model("llava"), inputs, MIPruner(), **options)

    @pytest.mark.parametrize(
        ("inputs", "got"),
        [("USER: <image> ASSISTANT:", "str"), (torch.ones(1, 4), "Tensor"), (None, "NoneType"), ([], "list")],
    )
    def test_what_no_processor_returns(self, inputs, got):
        for call in (
            lambda: prune_inputs(model("llava"), inputs, MIPruner()),
            lambda: encode_inputs(model("llava"), inputs),
        ):
            with pytest.raises(
                TypeError, match=rf"inputs: expected what the model's processor returned.*, got {got}: call"
            ):
                call()

    def test_attention_mask_of_another_shape(self):
        inputs = {**batch("llava", [1]).inputs, "attention_mask": torch.ones(1, 1, 48, 48)}
        with pytest.raises(
            ValueError, match=r"expected attention_mask \(1, 48\), as input_ids, .*, got \(1, 1, 48, 48\)"
        ):
            prune_inputs(model("llava"), inputs, MIPruner())

    def test_another_type(self):
        inputs = batch("llava", [1]).inputs
        with pytest.raises(TypeError, match=r"pruner: expected an MIPruner, such as MIPruner\(keep=0.25\), got float"):
            prune_inputs(model("llava"), inputs, 0.25)
        with pytest.raises(TypeError, match=r"text_mask: expected \(1, 48\) bool as a tensor, got list"):
            prune_inputs(model("llava"), inputs, MIPruner(), text_mask=[[True] * 48])

    def test_videos_for_a_model_of_images(self):
        inputs = {**batch("llava", [1]).inputs, "pixel_values_videos": torch.zeros(1)}
        with pytest.raises(ValueError, match="LlavaForConditionalGeneration takes no videos"):
            prune_inputs(model("llava"), inputs, MIPruner())

    def test_placeholders_of_an_image_in_two_samples(self):
        inputs = batch("llava", [1, 1]).inputs
        ids = inputs["input_ids"]
        ids[0, (ids[0] == 95).nonzero()[0]] = 20
        ids[1, (ids[1] == 95).nonzero()[0] - 1] = 95
        with pytest.raises(ValueError, match="spread over samples 0 and 1: do the images belong to this prompt"):
            prune_inputs(model("llava"), inputs, MIPruner())

    def test_ends_in_an_image(self):
        inputs = batch("llava", [1]).inputs
        last = int((inputs["input_ids"] == 95).nonzero()[-1, 1]) + 1
        cut = {name: value[:, :last] if value.dim() == 2 else value for name, value in inputs.items()}
        with pytest.raises(ValueError, match="expected text after the last image"):
            prune_inputs(model("llava"), cut, MIPruner(keep=1), text="image")

    def test_pruned_already_or_pixels_beside(self):
        inputs = batch("llava", [1]).inputs
        pruned = prune_inputs(model("llava"), inputs, MIPruner())
        with pytest.raises(ValueError, match="pruned already"):
            prune_inputs(model("llava"), pruned, MIPruner())
        both = {**pruned, "pixel_values": inputs["pixel_values"]}
        with pytest.raises(ValueError, match="cannot specify both pixel_values and mm_encoder_outputs"):
            model("llava")(**both)
        with pytest.raises(ValueError, match="cannot pass both"):
            model("llava").generate(**both, max_new_tokens=1)

    def test_unsupported(self, monkeypatch):
        with pytest.raises(ValueError, match=r"model: expected one of gemma3, .*smolvlm, got 'Linear'"):
            prune_inputs(torch.nn.Linear(1, 1), {}, MIPruner())
        with pytest.raises(ValueError, match=r"ForConditionalGeneration with generate\(\), got LlavaModel"):
            prune_inputs(model("llava").model, {}, MIPruner())
        monkeypatch.setattr("transformers.__version__", "5.17.3")
        with pytest.raises(ImportError, match=r"transformers >= 5.18 is needed .*, found 5.17.3: pip install"):
            prune_inputs(model("llava"), {}, MIPruner())
