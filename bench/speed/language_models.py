"""Language models by their sizes, and a cost model of their prefill.

    flops(L) = layers (2 L P + 2 L^2 heads head_dim) + 2 width vocabulary
    P = width head_dim (heads + 2 kv_heads) + heads head_dim width + 3 width ffn      weights of a layer
    time(L) = flops(L) / (EFFICIENCY * matmul rate)

Multiply-adds count 2. The attention term is that of a causal mask (two products of L^2 / 2 pairs each); only the last
token goes through the head. The matmul rate is measured (bench/measure/floor.py).
"""

from dataclasses import dataclass

EFFICIENCY = 0.8  # of the rate of a large matrix product, for the whole stack: norms, softmax and copies add time only
PROMPT = 64  # tokens of text around the image


@dataclass(frozen=True)
class LanguageModel:
    """The decoder of a multimodal model."""

    name: str
    layers: int
    width: int
    heads: int
    kv_heads: int
    head_dim: int
    ffn: int
    vocabulary: int

    @property
    def layer_weights(self) -> int:
        """P: weights of the products of one layer."""
        attention = self.width * self.head_dim * (2 * self.heads + 2 * self.kv_heads)
        return attention + 3 * self.width * self.ffn

    def flops(self, length: int) -> int:
        """Of the prefill of `length` tokens."""
        attention = 2 * length**2 * self.heads * self.head_dim
        return self.layers * (2 * length * self.layer_weights + attention) + 2 * self.width * self.vocabulary

    def seconds(self, length: int, matmul_gflop_per_s: float) -> float:
        """Of the prefill of `length` tokens, by the cost model."""
        return self.flops(length) / (EFFICIENCY * matmul_gflop_per_s * 1e9)


_VICUNA = (32, 4096, 32, 32, 128, 11008, 32000)
# The case that stands for each model -> its decoder.
MODELS = {
    "llava-1.5/64": LanguageModel("LLaVA-1.5-7B", *_VICUNA),
    "llava-next/320": LanguageModel("LLaVA-NeXT-7B", *_VICUNA),
    "qwen2.5-vl-7b/324": LanguageModel("Qwen2.5-VL-7B", 28, 3584, 28, 4, 128, 18944, 152064),
    "qwen3-vl-2b/256": LanguageModel("Qwen3-VL-2B", 28, 2048, 16, 8, 128, 6144, 151936),
    "qwen3-vl-8b/256": LanguageModel("Qwen3-VL-8B", 36, 4096, 32, 8, 128, 12288, 151936),
}
# The cases that show a model's selection -> its own: the same shapes of photographs, then all of them.
SHOWN = {"photograph-576/64": "llava-1.5/64", "photograph-2880/320": "llava-next/320"} | {case: case for case in MODELS}
