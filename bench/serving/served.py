"""What the demo keeps of a server."""

from dataclasses import dataclass

from bench import record

FILE = "serving.csv"


@dataclass(frozen=True)
class Served(record.Run):
    """One server: the medians of questions asked one at a time, and of requests in flight together."""

    vllm: str
    keep: float  # share of an image's tokens
    requests: int  # together
    prompt: int  # tokens
    alone_first_ms: float  # until the first token
    requests_s: float  # a second
    tokens_s: float  # generated, a second
    first_50_ms: float
    first_95_ms: float
    whole_50_ms: float  # until the last token
    whole_95_ms: float
