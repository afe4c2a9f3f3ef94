"""Pruned and encoded inputs as a user handles them: used twice, moved, read by name, in a loop of one's own."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from torch.utils.data import DataLoader, default_convert

pytest.importorskip("transformers")

from mi_pruner import MIPruner
from mi_pruner.integrations.model_inputs import PrunedInputs
from mi_pruner.integrations.next_turn import next_turn
from mi_pruner.integrations.transformers import encode_inputs

from . import tiny_models
from .tiny_models import FAMILIES, NEW_TOKENS, TOLERANCE, answer, batch, model, prune_inputs

pytestmark = pytest.mark.usefixtures("one_thread")

SEVERAL = [{"num_beams": 2}, {"do_sample": True, "num_return_sequences": 2}]


def pruned_of(family, images=(2, 1), **options):
    return prune_inputs(model(family), batch(family, list(images), **options).inputs, MIPruner(keep=0.25))


def generated(family, inputs, **options):
    torch.manual_seed(3)
    return model(family).generate(**inputs, **{"max_new_tokens": NEW_TOKENS, "do_sample": False, **options})


def rebuilt(value):
    """As libraries do that move nested values to a device."""
    if isinstance(value, dict):
        return type(value)({name: rebuilt(part) for name, part in value.items()})
    return type(value)(rebuilt(part) for part in value) if isinstance(value, list) else value


class TestUsedTwice:
    @pytest.mark.parametrize("family", FAMILIES)
    @pytest.mark.parametrize("options", SEVERAL, ids=["beams", "several answers"])
    def test_the_second_call_answers_as_the_first(self, family, options):
        pruned = pruned_of(family)
        assert torch.equal(generated(family, pruned, **options), generated(family, pruned, **options))
        alone = prune_inputs(model(family), batch(family, [2, 1]).inputs, MIPruner(keep=0.25))
        assert torch.equal(generated(family, pruned), generated(family, alone))

    @pytest.mark.parametrize("family", FAMILIES)
    def test_so_does_the_second_call_on_encoded_inputs(self, family):
        encoded = encode_inputs(model(family), batch(family, [2, 1]).inputs)
        first = generated(family, encoded, num_beams=2)
        assert torch.equal(generated(family, encoded, num_beams=2), first)
        assert len(prune_inputs(model(family), encoded, MIPruner(keep=0.25)).images) > 1

    @pytest.mark.parametrize("family", FAMILIES)
    def test_a_dict_of_them_is_refused_the_second_time(self, family):
        inputs = {**pruned_of(family), "num_beams": 2}
        generated(family, inputs)
        with pytest.raises(ValueError, match=r"mm_encoder_outputs: expected .* once, got some .*: unpack .* anew"):
            generated(family, inputs)

    @pytest.mark.parametrize("copied", [copy.deepcopy, lambda inputs: pickle.loads(pickle.dumps(inputs)), rebuilt])
    def test_so_is_a_copy_of_a_dict_that_was_used(self, copied):
        inputs = {**pruned_of("llava", (1, 1)), "num_beams": 2}
        generated("llava", copied(inputs))
        generated("llava", inputs)
        with pytest.raises(ValueError, match=r"mm_encoder_outputs: expected .* once"):
            generated("llava", copied(inputs))

    def test_videos(self):
        pruned = pruned_of("qwen3_vl", (1, 2), video=True)
        assert torch.equal(generated("qwen3_vl", pruned, num_beams=2), generated("qwen3_vl", pruned, num_beams=2))

    @pytest.mark.parametrize("family", FAMILIES)
    def test_a_turn_whose_cache_has_gone_on_is_refused(self, family):
        pruned = pruned_of(family)
        first = generated(family, pruned, return_dict_in_generate=True)
        ids = torch.full((2, 3), 20)
        turn = next_turn(model(family), pruned, first, ids)
        again = copy.deepcopy(turn)
        answers = generated(family, turn)
        with pytest.raises(ValueError, match=r"expected the cache of the turn before, got one that has gone on since"):
            generated(family, turn)
        with pytest.raises(ValueError, match=r"generated: expected the cache of these \d+ tokens.*copy.deepcopy"):
            next_turn(model(family), pruned, first, ids)
        assert torch.equal(generated(family, again), answers)


class TestLoop:
    @pytest.mark.parametrize("family", FAMILIES)
    def test_is_generate(self, family):
        pruned = pruned_of(family)
        expected = answer(family, pruned)
        tokens = []
        with torch.no_grad():
            output = model(family)(**pruned)
            for _ in range(NEW_TOKENS):
                logits = output.logits[:, -1:].clone()
                logits[..., tiny_models.IMAGE : tiny_models.END + 1] = -torch.inf
                tokens.append(logits.argmax(-1))
                output = model(family)(**pruned.following(output, tokens[-1]))
        assert torch.equal(torch.cat(tokens, 1), expected)

    @pytest.mark.parametrize("family", FAMILIES)
    def test_several_tokens_at_once_are_one_by_one(self, family):
        pruned = pruned_of(family)
        choice = torch.randint(10, 90, (2, 4), generator=torch.Generator().manual_seed(0))
        with torch.no_grad():
            together = model(family)(**pruned.following(model(family)(**pruned), choice)).logits
            output = model(family)(**pruned)
            for number, token in enumerate(choice.split(1, dim=1)):
                output = model(family)(**pruned.following(output, token))
                torch.testing.assert_close(output.logits[:, 0], together[:, number], atol=TOLERANCE, rtol=0)

    @pytest.mark.parametrize("family", FAMILIES)
    def test_two_answers_to_one_prompt_need_a_copy(self, family):
        pruned = pruned_of(family)
        first, second = torch.randint(10, 90, (2, 2, 3), generator=torch.Generator().manual_seed(0))
        with torch.no_grad():
            output = model(family)(**pruned)
            again = copy.deepcopy(output)
            model(family)(**pruned.following(output, first))
            with pytest.raises(ValueError, match=r"output: expected its cache of \d+ tokens, got .*copy.deepcopy"):
                pruned.following(output, second)
            mine = model(family)(**pruned.following(again, second)).logits
            alone = model(family)(**pruned.following(model(family)(**pruned), second)).logits
        assert torch.equal(mine, alone)

    @pytest.mark.parametrize("family", FAMILIES)
    def test_goes_on_after_generate(self, family):
        pruned = pruned_of(family)
        first = generated(family, pruned, return_dict_in_generate=True)
        question = torch.randint(10, 90, (2, 4), generator=torch.Generator().manual_seed(1))
        turn = next_turn(model(family), pruned, copy.deepcopy(first), question)
        expected = generated(family, turn, return_dict_in_generate=True, output_logits=True, max_new_tokens=1).logits[0]
        with torch.no_grad():
            asked = torch.cat([first.sequences[:, -1:], question], dim=1)
            mine = model(family)(**pruned.following(first, asked)).logits[:, -1]
        torch.testing.assert_close(mine.float(), expected, atol=TOLERANCE, rtol=1e-6)  # generate() gives float32

    def test_what_does_not_belong_is_refused(self):
        pruned = pruned_of("llava", [1])
        token = torch.full((1, 1), 20)
        with torch.no_grad():
            output = model("llava")(**pruned)
            without = model("llava")(**{**pruned, "use_cache": False})
            shorter = model("llava")(input_ids=token, use_cache=True)
        with pytest.raises(
            ValueError, match=r"output: expected what the model returned, with its cache, got Llava.* wit"
        ):
            pruned.following(without, token)
        with pytest.raises(
            ValueError, match=r"output: expected a cache of at least .* got one of 1: is it of these in"
        ):
            pruned.following(shorter, token)
        with pytest.raises(TypeError, match=r"input_ids: expected \(1, T\) int64 as a tensor, got list"):
            pruned.following(output, [[20]])
        with pytest.raises(ValueError, match=r"input_ids: expected \(1, T\) int64, got \(1,\) torch.int64"):
            pruned.following(output, token[0])


class TestHabits:
    def test_values_by_name(self):
        pruned = pruned_of("qwen2_5_vl")
        assert pruned.input_ids is pruned["input_ids"]
        assert pruned.get("pixel_values") is None
        with pytest.raises(AttributeError, match="'PrunedInputs' object has no attribute 'pixel_values'"):
            _ = pruned.pixel_values

    @pytest.mark.parametrize("family", FAMILIES)
    def test_moved_and_converted_in_place(self, family):
        pruned = pruned_of(family)
        assert pruned.to("meta", torch.float16) is pruned
        assert pruned.input_ids.device.type == "meta"
        assert pruned.input_ids.dtype == torch.int64
        features = pruned["mm_encoder_outputs"]["image"]
        flat = [*features.pooler_output, *(part for layer in features.get("deepstack_features", ()) for part in layer)]
        assert all(part.device.type == "meta" and part.dtype == torch.float16 for part in flat)
        assert encode_inputs(model(family), batch(family, [1]).inputs).to(device="meta").input_ids.is_meta

    @pytest.mark.parametrize("family", FAMILIES)
    def test_copies(self, family):
        pruned = pruned_of(family)
        expected = generated(family, pruned, num_beams=2)
        for copied in (copy.copy(pruned), copy.deepcopy(pruned), pickle.loads(pickle.dumps(pruned)), pruned.copy()):
            assert isinstance(copied, PrunedInputs)
            assert [image.tokens for image in copied.images] == [image.tokens for image in pruned.images]
            assert torch.equal(generated(family, copied, num_beams=2), expected)
        pickled = pickle.loads(pickle.dumps(dict(pruned)))
        assert torch.equal(generated(family, pickled, num_beams=2), expected)

    @pytest.mark.parametrize("family", FAMILIES)
    @pytest.mark.parametrize(
        "convert", [default_convert, lambda inputs: next(iter(DataLoader([inputs], batch_size=None)))]
    )
    def test_through_a_data_loader(self, family, convert):
        pruned = pruned_of(family)
        expected = generated(family, pruned, num_beams=2)
        assert torch.equal(generated(family, convert(pruned), num_beams=2), expected)
        assert torch.equal(generated(family, convert(dict(pruned)), num_beams=2), expected)
        encoded = encode_inputs(model(family), batch(family, [2, 1]).inputs)
        assert len(prune_inputs(model(family), convert(encoded), MIPruner(keep=0.25)).images) > 1

    @pytest.mark.parametrize("family", FAMILIES)
    def test_a_copy_is_not_pruned_again(self, family):
        pruned = pruned_of(family)
        bare = {name: value for name, value in pruned.items() if name != "position_ids"}
        for inputs in (pruned, dict(pruned), bare, pickle.loads(pickle.dumps(bare))):
            with pytest.raises(
                ValueError, match="inputs: expected the processor's output, got inputs that are pruned al"
            ):
                prune_inputs(model(family), inputs, MIPruner())
