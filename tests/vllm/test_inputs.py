"""Images of odd shapes, prompts and names in other forms, engines without caches."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from mi_pruner.integrations.vllm.orders import Orders

from .engines import KEEP, Case, cases, check, generate, mark, model_of, picture, reference, request, running


@pytest.mark.parametrize(
    ("family", "sizes"),
    [
        ("llava_next", [(560, 28), (28, 560), (420, 56), (98, 98), (28, 28), (300, 200)]),
        ("qwen2_vl", [(56, 56), (840, 28), (28, 336), (448, 112)]),
        ("qwen3_vl", [(56, 56), (840, 28), (28, 336), (448, 112)]),
    ],
)
def test_shapes(family, sizes, folders):
    """Very wide and very tall ones, whose line ends are counted from the shape alone; down to one token that stays."""
    shown = [picture(seed, 56, 56).resize(size) for seed, size in enumerate(sizes)]
    asked = [Case("<s>user: ", f"{mark(family)}what is it?", images=[image]) for image in shown]
    truth = reference(folders[family])
    with running(folders[family]) as llm:
        for keep in (0.25, 0.01):
            check(generate(llm, [request(case, keep=keep) for case in asked]), [truth(case, keep) for case in asked])


def test_the_same_image_again_and_no_caches(folders):
    family, image = "qwen2_5_vl", picture(0, 112, 84)
    same = Case("<s>user: ", f"{mark(family) * 3}what is it?", images=[image] * 3)
    asked, truth = [*cases(family), same], reference(folders[family])
    for options in ({}, {"mm_processor_cache_gb": 0, "enable_prefix_caching": False}):
        with running(folders[family], **options) as llm:
            for text in ("image", "question"):
                wanted = [truth(case, text=text) for case in asked]
                check(generate(llm, [request(case, text=text) for case in asked]), wanted)


def test_named_images_and_prompts_of_ids(folders):
    """An image that the client names is cached by name, budget and question."""
    truth, case = reference(folders["llava"]), cases("llava")[1]
    named = {"multi_modal_uuids": {"image": ["a", "b"]}}
    ids = truth.processor.tokenizer(case.prompt)["input_ids"]
    with running(folders["llava"]) as llm:
        for _ in range(2):
            for option in ({"keep": 0.25}, {"keep": 0.1}, {"keep": 0.25, "text": "question"}):
                check(generate(llm, [{**request(case, **option), **named}]), [truth(case, **option)])
        check(generate(llm, [{"prompt_token_ids": ids, "multi_modal_data": {"image": case.images}}]), [truth(case)])


def test_a_name_again_for_another_shape(folders):
    """A client's name for a picture is no promise: smaller and larger ones, when nothing is left in vLLM's caches."""
    family = "qwen2_5_vl"
    truth, named = reference(folders[family]), {"multi_modal_uuids": {"image": ["a"]}}
    shown = [picture(seed, side, side) for seed, side in enumerate((168, 84, 140))]
    asked = [Case("<s>user: ", f"{mark(family)}what is it?", images=[image]) for image in shown]
    with running(folders[family], mm_processor_cache_gb=0, enable_prefix_caching=False) as llm:
        for case in asked:
            check(generate(llm, [{**request(case), **named}]), [truth(case)])
            llm.llm_engine.reset_encoder_cache()


@pytest.mark.parametrize("family", ["llava", "qwen2_5_vl"])
def test_a_placeholder_that_is_typed(family, folders):
    """It is text, which changes nothing about an image of an earlier turn."""
    image, shown = "<image>" if family == "llava" else "<|image_pad|>", [picture(0, 84, 84)]
    first = Case("<s>user: ", f"{mark(family)}where is the rocket?", "\nassistant: ", shown)
    other = replace(first, said=f"{mark(family)}describe the cup")
    typed = Case(f"{first.prompt}on the table\nuser: ", f"what is {image}?", "\nassistant: ", shown)
    with running(folders[family], {"keep": KEEP, "text": "question"}) as llm:
        alone = picked(llm, first)
        assert picked(llm, other) != alone
        assert picked(llm, typed) == alone
        assert picked(llm, replace(typed, after=image)) == alone


def test_an_image_last(folders):
    """Refused as `prune_inputs` refuses it, if it loses tokens."""
    family = "llava"
    truth = reference(folders[family])
    last = Case("<s>user: where is it? ", mark(family), "", [picture(0, 84, 84)])
    with running(folders[family], {"keep": 1}) as llm:
        for _ in range(2):
            with pytest.raises(
                ValueError, match="mi_pruner: expected text after the last image, got a prompt that ends"
            ):
                generate(llm, [request(last, keep=0.25)])
            check(generate(llm, [request(last)]), [truth(last, 1)])


@pytest.mark.parametrize("family", ["llava", "qwen2_5_vl"])
def test_embeddings_in_place_of_pictures(family, folders):
    """What the encoder made of a picture, sent by the client."""
    truth, case = reference(folders[family]), cases(family)[0]
    inputs = truth.processor(text=[case.prompt], images=case.images, return_tensors="pt")
    with torch.no_grad():
        grids = {name: inputs[name] for name in ("image_grid_thw",) if name in inputs}
        features = truth.model.get_image_features(pixel_values=inputs["pixel_values"], **grids).pooler_output
    embeddings = torch.cat(list(features))
    data = {"image_embeds": embeddings, **grids} if grids else embeddings[None]
    with running(folders[family], enable_mm_embeds=True) as llm:
        asked = {"prompt": case.prompt, "multi_modal_data": {"image": data}}
        for option in ({}, {"keep": 0.1}, {"text": "question"}):
            kwargs = {"mm_processor_kwargs": {"mi_pruner": option}} if option else {}
            check(generate(llm, [{**asked, **kwargs}]), [truth(case, **option)])


def test_what_a_prompt_may_not_hold(folders):
    """Ids that no tokenizer has, when it is asked for their words; and the option where nobody would read it."""
    case = cases("llava")[0]
    ids = reference(folders["llava"]).processor.tokenizer(case.prompt)["input_ids"]
    with running(folders["llava"], {"keep": KEEP, "text": "question"}) as llm:
        for wrong in (-1, 1 << 40, 1 << 20):
            asked = {"prompt_token_ids": [*ids, wrong], "multi_modal_data": {"image": case.images}}
            with pytest.raises(ValueError, match=rf"mi_pruner: expected a prompt of ids below \d+, got {wrong}"):
                generate(llm, [asked])
        hidden = {"mm_processor_kwargs": {"images_kwargs": {"mi_pruner": {"keep": 0.1}}}}
        with pytest.raises(ValueError, match="mi_pruner: expected it in mm_processor_kwargs themselves, got it within"):
            generate(llm, [{**request(case), **hidden}])
        generate(llm, [request(case)])


def picked(llm, case):
    """Which rows of its first image stay, encoded anew."""
    model_of(llm)._orders = Orders()
    llm.llm_engine.reset_encoder_cache()
    llm.reset_prefix_cache()
    generate(llm, [request(case)])
    return next(rows.tolist() for rows in model_of(llm)._orders._orders.values())
