"""prune_inputs on tiny random models of every family, against the unpruned model and against masked tokens."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

pytest.importorskip("transformers")

from mi_pruner import MIPruner
from mi_pruner.functional import count_from_ratio
from mi_pruner.integrations.prompt_columns import original_positions
from mi_pruner.integrations.transformers import PrunedInputs, prune_inputs

from . import tiny_models
from .tiny_models import FAMILIES, QWEN, batch, model

CASES = {"one": [1], "left-padded": [1, 1, 1], "several images": [2, 2], "one sample without": [1, 0, 2]}
VIDEO_CASES = [(family, [1, 2]) for family in (*QWEN, "llava_onevision")]
TOLERANCE = 1e-5
NEW_TOKENS = 5


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


def logits_of(family: str, inputs: dict[str, Any]) -> Tensor:
    with torch.no_grad():
        return model(family)(**inputs).logits


def answer(family: str, inputs: dict[str, Any], **options: Any) -> Tensor:
    """(B, NEW_TOKENS) ids, or those of the best beam."""
    made = model(family).generate(**inputs, max_new_tokens=NEW_TOKENS, do_sample=False, **options)
    return made[:, inputs["input_ids"].shape[1] :]


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
        damage(pruned)
        return float((logits_of(family, pruned)[0] - right).abs().max())

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
        beams = answer(family, together, num_beams=3)
        for sample in range(2):
            alone = one_sample(prune_inputs(model(family), made.inputs, MIPruner(keep=7), per="sample"), sample)
            assert torch.equal(answer(family, alone, num_beams=3)[0], beams[sample])

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
