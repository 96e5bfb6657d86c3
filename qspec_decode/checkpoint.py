"""`Checkpoint`: the tensors of a directory of safetensors files, read one at a time."""

from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from qspec_decode.config import read_json
from qspec_kernels import CheckpointError

_SINGLE = "model.safetensors"
_INDEX = "model.safetensors.index.json"
_DTYPES = {"F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16, "F64": torch.float64}
_AGAIN = "Download or copy the file again."


class Checkpoint:
    """One `model.safetensors`, or the shards that `model.safetensors.index.json` lists.

    Creating one reads headers only. `dtypes` maps each tensor's name to the dtype it is stored in.

    Raises
    ------
    CheckpointError
        Where there is no safetensors file, a shard is missing or truncated, or only pickle
        files are there.
    """

    def __init__(self, directory: Path):
        self.directory = directory
        self._shards: dict[str, Path] = {}
        self._shapes: dict[str, tuple[int, ...]] = {}
        self.dtypes: dict[str, torch.dtype | None] = {}
        for path in self._files():
            with _open(path) as shard:
                names = shard.keys()
                for name in names:
                    tensor = shard.get_slice(name)
                    self._shards[name] = path
                    self._shapes[name] = tuple(tensor.get_shape())
                    self.dtypes[name] = _DTYPES.get(tensor.get_dtype())

    def _files(self) -> list[Path]:
        index = self.directory / _INDEX
        if not index.exists():
            single = self.directory / _SINGLE
            if single.exists():
                return [single]
            raise self._nothing_to_read()
        names = read_json(index).get("weight_map")
        if not isinstance(names, dict) or not names:
            raise CheckpointError(f"{index} has no weight_map", _AGAIN)
        paths = []
        for name in sorted({str(name) for name in names.values()}):
            path = self.directory / name
            if path.parent != self.directory:
                raise CheckpointError(f"{index} names the shard {name!r}, expected a file beside it")
            if not path.exists():
                raise CheckpointError(f"the shard {path} is missing; {_INDEX} lists it", _AGAIN)
            paths.append(path)
        return paths

    def _nothing_to_read(self) -> CheckpointError:
        pickled = sorted(
            p.name for pattern in ("*.bin", "*.pt", "*.pth") for p in self.directory.glob(pattern)
        )
        if pickled:
            some = ", ".join(pickled[:3])
            return CheckpointError(
                f"{self.directory} holds weights only as pickle files, which can run code: {some}",
                "Convert them to safetensors, or download the checkpoint's safetensors files.",
            )
        return CheckpointError(f"{self.directory} has neither {_SINGLE} nor {_INDEX}", _AGAIN)

    def check(self, shapes: dict[str, tuple[int, ...]]) -> None:
        """Hold names, shapes and dtypes against what the configuration asks for, reading no data.

        Raises
        ------
        CheckpointError
            Naming the first tensor that is missing or contradicts `config.json`, and its file.
        """
        for name, shape in shapes.items():
            if name not in self._shards:
                raise CheckpointError(
                    f"{self.directory} lacks the tensor {name}, which its config.json asks for",
                    "The checkpoint is incomplete, or config.json belongs to another model.",
                )
            found = self._shapes[name]
            if found != shape:
                raise CheckpointError(
                    f"{self._shards[name]}: {name} has shape {list(found)}, "
                    f"config.json asks for {list(shape)}",
                    "config.json and the weights belong to different models.",
                )
            if self.dtypes[name] is None:
                raise CheckpointError(
                    f"{self._shards[name]}: {name} is of an unsupported dtype, "
                    f"expected one of {list(_DTYPES)}",
                    "Load the original checkpoint; it is quantised while it loads.",
                )

    def read(self, name: str) -> Tensor:
        """One tensor, in memory of its own, in the dtype it is stored in.

        Raises
        ------
        CheckpointError
            When it holds NaN or infinity.
        """
        path = self._shards[name]
        # opened for this tensor alone: a mapping kept open would keep what was read from it resident
        with _open(path) as shard:
            try:
                tensor = shard.get_tensor(name).clone()
            except SafetensorError as error:
                raise CheckpointError(f"{path}: {name} cannot be read: {error}", _AGAIN) from None
        # a NaN makes both extremes NaN, so no mask of the tensor's size is needed
        low, high = torch.aminmax(tensor)
        if not bool(torch.isfinite(low) & torch.isfinite(high)):
            kind = "NaN" if bool(low.isnan()) else "infinity"
            raise CheckpointError(f"{path}: {name} contains {kind}", "The checkpoint is damaged. " + _AGAIN)
        return tensor


def _open(path: Path) -> Any:
    try:
        return safe_open(str(path), framework="pt")
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path} is truncated or not a safetensors file: {error}", _AGAIN) from None
