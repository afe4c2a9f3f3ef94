"""vLLM with the plug-in against transformers with `prune_inputs`, token by token."""

from __future__ import annotations

import pytest
from vllm_checkpoints import FAMILIES, save

from .engines import KEEP, cases, check, generate, reference, request, running


@pytest.mark.parametrize("family", FAMILIES)
def test_as_transformers(family, folders):
    asked, truth = cases(family), reference(folders[family])
    wanted = {keep: [truth(case, keep) for case in asked] for keep in (KEEP, 0.1, 1)}
    by_question = [truth(case, text="question") for case in asked]
    shorter = [len(a.prompt) < len(b.prompt) for a, b in zip(wanted[KEEP], wanted[1], strict=True)]
    assert shorter == [bool(case.images) for case in asked]
    assert any(a.tokens != b.tokens for a, b in zip(wanted[KEEP], by_question, strict=True))
    for options in ({}, {"max_num_batched_tokens": 24, "max_num_seqs": 2}):  # whole prompts; cut, also within images
        with running(folders[family], **options) as llm:
            check(generate(llm, [request(case) for case in asked]), wanted[KEEP])
            check(generate(llm, [request(case) for case in asked]), wanted[KEEP])  # from caches
            check(generate(llm, [request(case, keep=0.1) for case in asked]), wanted[0.1])
            check(generate(llm, [request(case, text="question") for case in asked]), by_question)
            if not options:
                for case, want in zip(asked, wanted[KEEP], strict=True):
                    check(generate(llm, [request(case)]), [want])


def test_siglip(tmp_path):
    """LLaVA-1.5 with another vision encoder, of which all tokens are an image's."""
    folder = save("llava_siglip", tmp_path / "llava_siglip")
    asked, truth = cases("llava"), reference(folder)
    with running(folder) as llm:
        check(generate(llm, [request(case) for case in asked]), [truth(case) for case in asked])


@pytest.mark.parametrize("family", ["llava", "qwen3_vl"])
def test_an_engine_for_all_budgets(family, folders):
    """Started with keep = 1: a batch of whole and pruned prompts, each with its own budget."""
    asked, truth = cases(family), reference(folders[family])
    keeps = [1, 0.5, 0.25, 0.1, 0.5, 1, 1.0]
    wanted = [truth(case, keep) for case, keep in zip(asked, keeps, strict=True)]
    with running(folders[family], {"keep": 1}) as llm:
        requests = [request(case, keep=keep) for case, keep in zip(asked, keeps, strict=True)]
        check(generate(llm, requests), wanted)
        check(generate(llm, requests), wanted)
        check(generate(llm, [request(case) for case in asked]), [truth(case, 1) for case in asked])


def test_compiled(folders):
    """Not eager, as engines run by default."""
    asked, truth = cases("llava"), reference(folders["llava"])
    with running(folders["llava"], enforce_eager=False) as llm:
        check(generate(llm, [request(case) for case in asked]), [truth(case) for case in asked])
