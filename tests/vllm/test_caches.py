"""What may be taken from caches, and what holds when it is gone: prefix cache, encoder cache, preemption, budgets."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from mi_pruner.integrations.vllm.orders import Orders

from .engines import (
    KEEP,
    LONG,
    NEW_TOKENS,
    Case,
    cached_tokens,
    cases,
    changed_features,
    check,
    generate,
    mark,
    metrics,
    model_of,
    picture,
    reference,
    request,
    running,
)


@pytest.mark.parametrize("family", ["llava", "qwen2_5_vl"])
def test_caches_and_preemption(family, folders):
    truth, asked = reference(folders[family]), cases(family)
    long = replace(asked[4], said=f"{asked[4].said} {LONG}")
    first, other = (replace(long, after=f" {word} assistant: ") for word in ("cup", "rocket"))
    wanted = [truth(case, tokens=60) for case in asked]
    with running(folders[family], num_gpu_blocks_override=9, max_model_len=256, disable_log_stats=False) as llm:
        cached_tokens(llm, first)
        assert cached_tokens(llm, other) >= 64  # blocks of 32: text; images and some words; more words
        cached_tokens(llm, first, text="question")
        assert cached_tokens(llm, other, text="question") == 32  # another question, other images
        assert cached_tokens(llm, other, text="question") >= 64
        check(generate(llm, [request(case) for case in asked], 60), wanted)
        assert metrics(llm)["vllm:num_preemptions"] > 0


def test_a_second_turn_keeps_what_the_first_saw(folders):
    """The image of the first turn is scored against the first turn's words, also when a second has come."""
    family = "qwen2_5_vl"
    image, shown = mark(family), [picture(n, 112, 84) for n in range(2)]
    said = f"{image}where is the rocket? {LONG}{LONG}"
    first = Case("<s>user: ", said, "\nassistant: ", shown[:1])
    answered = f"<s>user: {said}\nassistant: on the table\nuser: "
    second = Case(answered, "what is the woman wearing?", "\nassistant: ", shown[:1])
    both = replace(second, said=f"{image}{second.said}", images=shown)
    with running(folders[family], {"keep": KEEP, "text": "question"}) as llm:
        cached_tokens(llm, first)
        assert cached_tokens(llm, second) >= 64  # of text, image, and text
        assert cached_tokens(llm, both) >= 64
        output = generate(llm, [request(first)])[0]
    alone = reference(folders[family])(first, text="question")
    assert list(output.outputs[0].token_ids) == alone.tokens


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_encoded_again_in_another_batch(dtype, folders):
    """Nothing is left in any cache, the encoder runs beside others: the tokens are those of the first time."""
    asked = cases("qwen3_vl")
    with running(folders["qwen3_vl"], dtype=dtype, enable_prefix_caching=False) as llm:
        before = [generate(llm, [request(case)])[0] for case in asked]
        llm.llm_engine.reset_encoder_cache()
        after = generate(llm, [request(case) for case in reversed(asked)])[::-1]
    same = [a.outputs[0].token_ids == b.outputs[0].token_ids for a, b in zip(before, after, strict=True)]
    assert all(same) if dtype == "float32" else sum(same) >= len(same) - 2  # bfloat16 rounds otherwise in a batch
    assert [a.prompt_token_ids for a in before] == [b.prompt_token_ids for b in after]


def test_the_selection_is_remembered(folders):
    """Whatever the encoder makes of an image the second time."""
    picked, rows = [], []

    def noisy(items):
        picked.append(len(items))
        return [item + torch.randn_like(item) * len(picked) for item in items]

    with running(folders["qwen2_5_vl"]) as llm, changed_features(llm, noisy):
        for _ in range(2):
            generate(llm, [request(cases("qwen2_5_vl")[0])])
            rows.append({key: order.tolist() for key, order in model_of(llm)._orders._orders.items()})
            llm.llm_engine.reset_encoder_cache()
            llm.reset_prefix_cache()
    assert len(picked) >= 2
    assert rows[0] == rows[1]


def test_many_images_at_once(folders):
    """The scheduler counts tokens that are left: ten images of 36 as 40. The encoder gets no more than 72 at a time."""
    family, shown = "llava", [picture(seed, 84, 84) for seed in range(12)]
    asked = [Case("<s>user: ", f"{mark(family)}what is it?", images=[image]) for image in shown]
    truth, seen = reference(folders[family]), []
    wanted = [truth(case, 0.1) for case in asked]

    def counted(items):
        seen.append(sum(map(len, items)))
        return items

    options = {"max_num_batched_tokens": 72, "max_num_seqs": 16}
    with running(folders[family], {"keep": 0.1}, **options) as llm, changed_features(llm, counted):
        check(generate(llm, [request(case) for case in asked]), wanted)
    assert sum(seen) >= 12 * 36
    assert max(seen) == 72


def test_without_the_option_nothing_changes(folders):
    asked, truth = cases("llava"), reference(folders["llava"])
    wanted = [truth(case, 1) for case in asked]
    with running(folders["llava"], {}) as llm:
        check(generate(llm, [request(case) for case in asked]), wanted)
        processor = llm.llm_engine.renderer.get_mm_processor()
        items = processor.info.parse_mm_data({"image": asked[0].images})
        made = processor("<s>user: <image>what?", items)
        parent = type(processor).__mro__[2]
        plain = parent(processor.info, processor.dummy_inputs)("<s>user: <image>what?", items)
        assert made["mm_hashes"] == plain["mm_hashes"]
        assert made["mm_placeholders"] == plain["mm_placeholders"]
        assert set(made["mm_kwargs"]["image"][0]) == set(plain["mm_kwargs"]["image"][0])
        with pytest.raises(ValueError, match="mi_pruner: expected an engine that was started with --hf-overrides"):
            generate(llm, [request(asked[0], keep=0.5)])


def test_what_a_request_may_not_say(folders):
    asked = cases("llava")
    wrong = [
        ({"keep": 0.5}, r"expected keep <= 0.25, for which the engine was started, got 0.5"),
        ({"keep": 3}, r"a ratio in \(0, 1\], got 3"),
        ({"min_gain": 0.0}, "no min_gain"),
        ({"text": "words"}, "text to be one of"),
    ]
    many = Case("<s>user: ", "<image>" * 3 + "what?", images=[picture(n, 84, 84) for n in range(3)])
    short = {"text_config": {"max_position_embeddings": 96}}
    with running(folders["llava"], hf_overrides={"mi_pruner": {"keep": KEEP}, **short}, max_model_len=64) as llm:
        for said, message in wrong:
            with pytest.raises(ValueError, match=f"mi_pruner: .*{message}"):
                generate(llm, [request(asked[0], **said)])
        with pytest.raises(
            ValueError, match=r"mi_pruner: .* positions end below 96, .*, got 1\d\d: .* fewer or smaller"
        ):
            generate(llm, [request(many)])
        check(generate(llm, [request(asked[0])], NEW_TOKENS), [reference(folders["llava"])(asked[0])])


def test_what_is_remembered_has_a_bound():
    """Small images, too, of which each takes a piece of memory. The longest unused go."""
    orders = Orders(rows=640)
    for key in range(100):
        orders.put(key, torch.arange(1))
        orders.put(key, torch.arange(2))  # anew
        orders.get(0)
    assert [key for key in range(100) if orders.get(key) is not None] == [0, *range(91, 100)]
    orders.put("large", torch.arange(1000))
    assert orders.get(0) is None
    assert len(orders.get("large")) == 1000
