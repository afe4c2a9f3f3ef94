"""A model inside a wrapper gets the inputs of the bare one, or an error that says what to pass."""

from __future__ import annotations

import copy

import pytest
import torch

pytest.importorskip("transformers")
pytest.importorskip("peft")

import peft

from mi_pruner import MIPruner
from mi_pruner.integrations.supported_model import SUPPORTED, unwrapped
from mi_pruner.integrations.transformers import encode_inputs

from .tiny_models import FAMILIES, batch, model, prune_inputs

pytestmark = pytest.mark.usefixtures("one_thread")

ADAPTER = {"target_modules": ["q_proj", "v_proj"], "r": 2}  # the identity: B of LoRA is 0


class Forwarding(torch.nn.Module):
    """Looks up on the model inside what it has not itself, as many wrappers do."""

    def __init__(self, inside):
        super().__init__()
        self.inside = inside

    def __getattr__(self, name):
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("inside"), name)

    def forward(self, *arguments, **keywords):
        return self.inside(*arguments, **keywords)


def wrappers(bare):
    return {
        "peft": peft.get_peft_model(copy.deepcopy(bare), peft.LoraConfig(**ADAPTER)).eval(),
        "peft with a task": peft.get_peft_model(
            copy.deepcopy(bare), peft.LoraConfig(**ADAPTER, task_type="CAUSAL_LM")
        ).eval(),
        "compiled": torch.compile(bare, backend="eager"),
        "compiled peft": torch.compile(
            peft.get_peft_model(copy.deepcopy(bare), peft.LoraConfig(**ADAPTER)).eval(), backend="eager"
        ),
    }


def assert_same_inputs(mine, expected):
    assert mine.keys() == expected.keys()
    for name, value in expected.items():
        if isinstance(value, torch.Tensor):
            assert torch.equal(mine[name], value)
    for image, other in zip(mine.images, expected.images, strict=True):
        assert torch.equal(image.rows, other.rows)


def test_families_of_the_tests_are_all():
    assert sorted(FAMILIES) == sorted(SUPPORTED)


@pytest.mark.parametrize("family", FAMILIES)
def test_known_wrappers_get_the_inputs_of_the_bare_model(family):
    made = batch(family, [2, 1])
    bare = prune_inputs(model(family), made.inputs, MIPruner(keep=0.25))
    options = {"max_new_tokens": 3, "do_sample": False}
    expected = model(family).generate(**bare, **options)
    for name, wrapper in wrappers(model(family)).items():
        pruned = prune_inputs(wrapper, encode_inputs(wrapper, made.inputs), MIPruner(keep=0.25))
        assert_same_inputs(pruned, bare)
        if not name.startswith("compiled"):  # their generate() is the bare model's own
            assert torch.equal(wrapper.generate(**pruned, **options), expected)


def test_a_compiled_model_takes_pruned_inputs():
    pruned = prune_inputs(model("qwen3_vl"), batch("qwen3_vl", [1]).inputs, MIPruner(keep=0.25))
    compiled = torch.compile(model("qwen3_vl"), backend="eager")
    with torch.no_grad():
        assert torch.equal(compiled(**pruned).logits, model("qwen3_vl")(**pruned).logits)


@pytest.mark.skipif(not torch.distributed.is_available(), reason="this PyTorch is built without torch.distributed")
def test_a_model_trained_on_several_devices_is_unwrapped():
    torch.distributed.init_process_group("gloo", rank=0, world_size=1, store=torch.distributed.HashStore())
    try:
        parallel = torch.nn.parallel.DistributedDataParallel(copy.deepcopy(model("llava_next")))
        made = batch("llava_next", [1])
        pruned = prune_inputs(parallel, made.inputs, MIPruner(keep=0.25))
        assert_same_inputs(pruned, prune_inputs(model("llava_next"), made.inputs, MIPruner(keep=0.25)))
    finally:
        torch.distributed.destroy_process_group()


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(("wrap", "inside"), [(Forwarding, "inside"), (torch.nn.DataParallel, "module")])
def test_other_wrappers_are_refused_with_the_way_out(family, wrap, inside):
    wrapper = wrap(model(family))
    with pytest.raises(
        ValueError, match=rf"model: expected .*, got {wrap.__name__}, .*: pass model.{inside}, and call"
    ):
        prune_inputs(wrapper, batch(family, [1]).inputs, MIPruner())
    assert unwrapped(getattr(wrapper, inside)) is model(family)


def test_adapters_that_learn_a_prompt_are_refused():
    prompt = peft.PromptTuningConfig(
        task_type="CAUSAL_LM", num_virtual_tokens=3, num_layers=3, token_dim=32, num_attention_heads=4
    )
    learned = peft.get_peft_model(copy.deepcopy(model("llava")), prompt)
    with pytest.raises(ValueError, match=r"model: expected an adapter .* such as LoRA, got one that learns a prompt"):
        prune_inputs(learned, batch("llava", [1]).inputs, MIPruner())
