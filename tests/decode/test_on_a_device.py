"""Models on a device other than the CPU: what is made where, what waits for it, and how it is asked for."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from qspec_decode import DraftModel, load, load_options, memory, speculate
from qspec_decode import config as configs
from qspec_decode.cache import KVCache
from qspec_decode.graphs import wanted
from qspec_decode.graphs.wanted import Wanted, captures
from qspec_decode.sampling import SamplingParams
from qspec_decode.speculative_config import SpeculativeConfig
from qspec_kernels import UsageError
from tests.decode.tabular import TabularModel, random_tables

Families = Callable[[str], tuple[Path, Any]]


def test_a_device_gives_the_texts_of_the_cpu_and_rounds_do_not_wait_for_it(family: Families) -> None:
    """On a device that is emulated: its ops refuse tensors that are elsewhere."""
    paths = [str(family(name)[0]) for name in ("llama", "llama-tied-one-kv-head")]
    command = [sys.executable, "-m", "tests.decode.emulated_device", *paths]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(done.stdout.splitlines()[-1])
    assert len(found["calls"]) == 12
    assert all(call["same"] and call["given_back"] for call in found["calls"]), found["calls"]
    # op by op the loop looks at values, a round never does
    assert found["rounds"] == {"rounds": found["rounds"]["rounds"]}
    assert found["rounds"]["rounds"] > 30
    assert found["host"]["copy to the host"] > 0
    # what measures models feeds them where they are
    assert found["measured"] == [True, True]
    assert found["mixed"] == "aten.add.Tensor"


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there_is_named_with_a_way_out() -> None:
    with pytest.raises(UsageError, match=r"device is 'cuda'.*finds no GPUs") as found:
        load("demo", device="cuda")
    assert "CPU" in found.value.hint


def test_a_model_that_a_gpu_has_no_room_for_is_refused_beforehand(monkeypatch: pytest.MonkeyPatch) -> None:
    config = configs.from_dir(configs.resolve("demo"))
    options = load_options.parse(("bf16", "mxfp4"), 128, False, (), False, None, config.num_hidden_layers)
    total, gpu = memory.estimate(config, options).total, torch.device("cuda", 1)
    # a third is free, a third is torch's and in use by nothing, and of the rest a byte is missing
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (total // 3, 10 * total))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda _: total)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda _: total // 3 + 1)
    with pytest.raises(UsageError, match=r"bf16 \+ mxfp4 weights needs .* available on cuda:1") as found:
        memory.check_fits(config, options, gpu)
    assert "mxfp4 alone" in found.value.hint
    with pytest.raises(UsageError, match="a KV cache of"):
        KVCache(2, 1, 1, total, 1, torch.bfloat16, gpu)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda _: total // 3 - 2)
    memory.check_fits(config, options, gpu)


@pytest.mark.parametrize("device", ["gpu", "mps", 3.5])
@pytest.mark.usefixtures("untyped")
def test_devices_that_are_not_served_are_refused(device: Any) -> None:
    with pytest.raises(UsageError, match="expected 'cpu', 'cuda' or 'cuda:0'"):
        load("demo", device=device)


def test_a_draft_on_another_device_is_refused() -> None:
    model = TabularModel(random_tables(7, 1, {}))
    there: Any = TabularModel(random_tables(7, 1, {}))
    there.device = torch.device("cuda:0")
    with pytest.raises(UsageError, match="the draft 'small' is on cuda:0, the target on cpu"):
        speculate(model, [[1]], draft=DraftModel(there))


def _wanted(model: Any, enforce_eager: bool | None = None) -> Wanted:
    config = SpeculativeConfig(enforce_eager=enforce_eager)
    return Wanted(model, "bf16", [], config, SamplingParams(), frozenset())


def test_rounds_are_captured_on_gpus_with_kernels_and_nowhere_else(
    family: Families, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = load(family("llama")[0])
    assert not captures(_wanted(model))
    assert captures(_wanted(model, enforce_eager=False))
    model.device = torch.device("cuda:0")
    with pytest.warns(UserWarning, match="not captured as CUDA graphs.*attention on cuda:0: torch"):
        assert not captures(_wanted(model))
    monkeypatch.setattr(wanted, "explain", lambda op, device, dtype: f"{op} on {device}: triton (sm_90)")
    assert captures(_wanted(model))
    assert not captures(_wanted(model, enforce_eager=True))
    foreign: Any = TabularModel(random_tables(7, 1, {}))
    foreign.device = model.device
    with pytest.warns(UserWarning, match="TabularModel may wait for the device"):
        assert not captures(_wanted(foreign))


@pytest.mark.usefixtures("untyped")
def test_enforce_eager_is_checked_and_given_in_one_place() -> None:
    model = TabularModel(random_tables(7, 1, {"mxfp4a8": 0.3}))
    with pytest.raises(UsageError, match="enforce_eager is 'no'"):
        SpeculativeConfig(enforce_eager="no")  # type: ignore[arg-type]
    config = SpeculativeConfig(enforce_eager=False)
    with pytest.raises(UsageError, match="enforce_eager is True as a keyword and False in"):
        speculate(model, [[1]], draft="mxfp4", config=config, enforce_eager=True)
