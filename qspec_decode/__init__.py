"""Speculative decoding that does not change the text, from one set of weights.

    model = qspec_decode.load("demo", precisions=("bf16", "mxfp4"))
    out = qspec_decode.speculate(model, [[1, 2, 3]], target="bf16", draft="mxfp4")

Names are loaded on first use, so that `qspec --help` need not wait for torch.
"""

import sys
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from qspec_decode.cache import KVCache as KVCache
    from qspec_decode.generate import generate as generate
    from qspec_decode.ladder import DraftModel as DraftModel
    from qspec_decode.load import load as load
    from qspec_decode.load import load_tokenizer as load_tokenizer
    from qspec_decode.memory import memory_estimate as memory_estimate
    from qspec_decode.model import Transformer as Transformer
    from qspec_decode.output import DecodingOutput as DecodingOutput
    from qspec_decode.output import Streamer as Streamer
    from qspec_decode.protocol import Model as Model
    from qspec_decode.sampling import SamplingParams as SamplingParams
    from qspec_decode.speculate import speculate as speculate
    from qspec_decode.speculative_config import SpeculativeConfig as SpeculativeConfig
    from qspec_decode.stats import SpecDecodingStats as SpecDecodingStats
    from qspec_decode.tokenizer import Tokenizer as Tokenizer

    __version__: str

_HOME = {
    "KVCache": "cache",
    "generate": "generate",
    "DraftModel": "ladder",
    "SpeculativeConfig": "speculative_config",
    "load": "load",
    "load_tokenizer": "load",
    "memory_estimate": "memory",
    "Transformer": "model",
    "DecodingOutput": "output",
    "Streamer": "output",
    "Model": "protocol",
    "SamplingParams": "sampling",
    "speculate": "speculate",
    "SpecDecodingStats": "stats",
    "Tokenizer": "tokenizer",
}


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import PackageNotFoundError, version

        try:
            return version("qspec")
        except PackageNotFoundError:
            return "unknown (not installed)"
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOME, "__version__"])


class _Package(ModuleType):
    """Python binds a submodule to its package when it is first imported; where it has the name of the
    function that is its point (`generate`, `load`, `speculate`), the function is bound instead."""

    def __setattr__(self, name: str, value: Any) -> None:
        if isinstance(value, ModuleType) and _HOME.get(name) == name:
            value = getattr(value, name)
        super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package
