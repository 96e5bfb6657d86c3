"""A device that is not the CPU, emulated on the CPU: `python -m tests.decode.emulated_device MODEL SMALL`.

Its tensors hold CPU tensors inside. Ops that mix them with others are refused, and what brings values to the
host is counted. Registering a device is for good, so this runs in a process of its own; it prints one JSON
document, which `test_on_a_device.py` looks at.
"""

import json
import random
import sys
from collections import Counter
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

DEVICE = torch.device("privateuseone:0")
HOST: Counter[str] = Counter()


class Mixed(Exception):
    """An op on tensors of two devices."""


class There(torch.Tensor):
    """A tensor on the device."""

    inside: Tensor

    @staticmethod
    def __new__(cls, inside: Tensor) -> "There":
        out = torch.Tensor._make_wrapper_subclass(
            cls, inside.shape, strides=inside.stride(), dtype=inside.dtype, device=DEVICE,
            storage_offset=inside.storage_offset(),
        )  # fmt: skip
        out.inside = inside
        return out

    def tolist(self) -> Any:
        HOST["tolist"] += 1
        return self.inside.tolist()

    @classmethod
    def __torch_dispatch__(
        cls, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        return run(func, args, kwargs or {})


class Device(TorchDispatchMode):
    """Inside, tensors can be made on the device."""

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        return run(func, args, kwargs or {})


def run(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """One op, on what is inside."""
    name, given = str(func), [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
    there = [isinstance(leaf, There) for leaf in given]
    target = kwargs.get("device")
    moved = name in ("aten._to_copy.default", "aten.copy_.default")
    # numbers may come from the host
    if (
        any(there)
        and not moved
        and any(not here and leaf.ndim for here, leaf in zip(there, given, strict=True))
    ):
        raise Mixed(name)
    if name in ("aten._local_scalar_dense.default", "aten.nonzero.default", "aten.equal.default") and any(
        there
    ):
        HOST[name] += 1
    onto = any(there) if target is None else torch.device(target).type == DEVICE.type
    if moved and any(there) and not (onto and all(there)):
        HOST["copy to the host" if not onto or not there[0] else "copy to the device"] += 1
        onto = there[0] if name == "aten.copy_.default" else onto
    if target is not None:
        kwargs = kwargs | {"device": torch.device("cpu")}
    inner = tree_map(lambda leaf: leaf.inside if isinstance(leaf, There) else leaf, (args, kwargs))
    out = func(*inner[0], **inner[1])
    if func._schema.name.endswith("_") and given and out is inner[0][0]:
        return args[0]
    return tree_map(lambda leaf: There(leaf) if isinstance(leaf, Tensor) and onto else leaf, out)


def main(model_path: str, small_path: str) -> dict[str, Any]:
    """Every ladder on the device and on the CPU, and what rounds bring to the host."""
    from qspec_decode import DraftModel, generate, load, speculate, weights
    from qspec_decode.bench.agreement import Voice
    from qspec_decode.bench.passes import Pass, Warm
    from qspec_decode.graphs.round import Round

    torch.set_num_threads(1)
    here = load(model_path, ("bf16", "mxfp4", "w4a8"), group_size=32, rotate=("mxfp4",))
    small_here = load(small_path, ("bf16",))
    _setup_privateuseone_for_python_backend()
    # kernels of the CPU compute here
    weights.to_device_layout = lambda packed, device: packed.to(device)
    calls, rounds = [], Counter()
    run_round = Round.__call__

    def counting(self: Round) -> Tensor:
        before = Counter(HOST)
        out = run_round(self)
        rounds.update(HOST - before)
        rounds["rounds"] += 1
        return out

    Round.__call__ = counting  # type: ignore[method-assign]
    with Device():
        there, small_there = (on_device(model) for model in (here, small_here))
        rng = random.Random(0)
        for draft in ([], ["mxfp4"], ["small"], ["ngram"], ["mxfp4", "w4a8"], ["small", "w4a4"]):
            for temperature in (0.0, 0.8):
                prompts = [[rng.randrange(211) for _ in range(rng.randint(1, 12))] for _ in range(3)]
                options = {"max_new_tokens": 7, "seed": 1, "eos_token_id": rng.randrange(211)}
                texts, given_back = [], False
                for models, eager in (
                    ((here, small_here), True),
                    *(((there, small_there), e) for e in (True, False)),
                ):
                    call: dict[str, Any] = options | {"temperature": temperature, "enforce_eager": eager}
                    names = [DraftModel(models[1]) if name == "small" else name for name in draft]
                    out = (
                        speculate(models[0], prompts, draft=names, **call)
                        if names
                        else generate(models[0], prompts, **call)
                    )
                    texts.append(out.token_ids)
                    if models[0] is there and eager:
                        given_back = there._spares.num_bytes > 0
                # sampled, a deep ladder has other rounds when they are captured
                alike = texts[:2] if temperature and len(draft) > 1 else texts
                same = all(text == texts[0] for text in alike)
                found = {"draft": draft, "temperature": temperature, "same": same, "given_back": given_back}
                calls.append(found)
        text, kind = list(range(20)), Pass("target", "mxfp4a8", 3, draft=True)
        measured = [
            (
                Voice(model, "bf16", "bf16").logits(text).cpu(),
                Warm(model, "bf16", [text], 9).forward(kind).cpu(),
            )
            for model in (here, there)
        ]
        mixed = "nothing"
        try:
            torch.zeros(3, device=DEVICE) + torch.zeros(3)
        except Mixed as error:
            mixed = str(error)
    alike = [torch.equal(*pair) for pair in zip(*measured, strict=True)]
    return {"calls": calls, "rounds": rounds, "host": HOST, "measured": alike, "mixed": mixed}


def on_device(model: Any) -> Any:
    """The model with every tensor there."""
    from qspec_decode.model import Transformer
    from qspec_decode.weights import WeightSet, moved

    sets = {
        name: WeightSet(
            tuple(layer.to(DEVICE) for layer in found.layers), found.head.to(DEVICE),
            moved(found.draft_head, DEVICE, torch.float32), moved(found.signs, DEVICE, torch.float32),
        )
        for name, found in model.sets.items()
    }  # fmt: skip
    out = Transformer(model.config, model.embedding.to(DEVICE), model.final_norm.to(DEVICE), sets)
    out.precisions = model.precisions
    return out


if __name__ == "__main__":
    print(json.dumps(main(*sys.argv[1:])))
