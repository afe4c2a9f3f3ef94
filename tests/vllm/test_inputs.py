"""Images of odd shapes, prompts and names in other forms, engines without caches."""

from __future__ import annotations

import pytest

from .engines import Case, cases, check, generate, mark, picture, reference, request, running


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
