"""`QuantLinear` in place of `torch.nn.Linear`."""

import copy

import pytest
import torch

import qspec_kernels as qk
from qspec_kernels import formats
from qspec_kernels.nn import QuantLinear
from tests.kernels.cases import same_bits

QUANTISED = [name for name, precision in qk.PRECISIONS.items() if precision.act]


@pytest.mark.parametrize("precision", QUANTISED)
@pytest.mark.parametrize("bias", [True, False])
def test_from_linear(backend, rng, precision, bias):
    torch.manual_seed(0)
    plain = torch.nn.Linear(200, 37, bias=bias)
    layer = QuantLinear.from_linear(plain, precision, group_size=64)
    x = torch.randn(2, 3, 200, generator=rng)
    weight = formats.dequantize(layer.weight)
    expected = torch.nn.functional.linear(x, weight, plain.bias)
    out = layer(x)
    # quantised inputs differ by their rounding only: relative to the whole output it is small
    tolerance = {"a16": 0.01, "a8": 0.03, "a4": 0.3}[qk.PRECISIONS[precision].act or ""]
    assert (out - expected).norm() <= tolerance * expected.norm()
    assert same_bits(out, qk.linear(x, layer.weight, plain.bias, act=layer.act).detach())
    assert layer(x.bfloat16()).dtype == torch.bfloat16
    assert f"act={layer.act}" in repr(layer)


def test_groups_and_rows(torch_backend):
    plain = torch.nn.Linear(200, 37)
    assert QuantLinear.from_linear(plain).group_size == 128
    assert QuantLinear.from_linear(plain, group_size=-1).group_size == 200
    assert QuantLinear.from_linear(plain, "mxfp4a8").group_size == 32


def test_one_line_in_a_model(backend, rng):
    model = torch.nn.Sequential(torch.nn.Linear(64, 128), torch.nn.SiLU(), torch.nn.Linear(128, 10))
    x = torch.randn(5, 64, generator=rng)
    before = model(x)
    for name, layer in list(model.named_children()):
        if isinstance(layer, torch.nn.Linear):
            setattr(model, name, QuantLinear.from_linear(layer, "w4a16", group_size=32))
    assert (model(x) - before).norm() < 0.15 * before.norm()
    assert not list(model.parameters())


@pytest.mark.parametrize("precision", ["w4a8", "mxfp4a16"])
def test_state_dict_is_the_same_on_every_path(backend, rng, precision, tmp_path):
    torch.manual_seed(1)
    layer = QuantLinear.from_linear(torch.nn.Linear(100, 20), precision)
    state = layer.state_dict()
    canonical = formats.convert(layer.weight, formats.canonical(layer.format))
    assert set(state) == {"data", "scales", "bias"}
    assert torch.equal(state["data"], canonical.data)
    assert same_bits(state["scales"], canonical.scales)
    torch.save(state, tmp_path / "layer.pt")
    other = QuantLinear.from_linear(torch.nn.Linear(100, 20), precision)
    other.load_state_dict(torch.load(tmp_path / "layer.pt"))
    x = torch.randn(3, 100, generator=rng)
    assert same_bits(other(x), layer(x))
    # loading does not change what the caller holds
    assert torch.equal(torch.load(tmp_path / "layer.pt")["data"], state["data"])


def test_casting_leaves_the_weight_alone(backend, rng):
    layer = QuantLinear.from_linear(torch.nn.Linear(100, 20), "w4a8")
    x, out = torch.randn(3, 100, generator=rng).bfloat16(), None
    for cast in (
        copy.deepcopy(layer),
        copy.deepcopy(layer).to(torch.bfloat16),
        copy.deepcopy(layer).double(),
    ):
        assert cast.scales.dtype == torch.float16
        assert same_bits(cast.scales, layer.scales)
        assert torch.equal(cast.data, layer.data)
        out = cast(x) if out is None else out
    torch.testing.assert_close(cast(x), out)


def test_strict_loading_names_what_is_missing(torch_backend):
    layer = QuantLinear.from_linear(torch.nn.Linear(100, 20), "w4a8")
    state = layer.state_dict()
    del state["scales"]
    with pytest.raises(RuntimeError, match="scales"):
        layer.load_state_dict(state)


def test_dense_precision_is_refused(torch_backend):
    with pytest.raises(qk.UsageError, match="precision 'bf16' has dense weights"):
        QuantLinear.from_linear(torch.nn.Linear(8, 8), "bf16")


def test_an_activation_that_the_weights_do_not_serve_is_refused_at_once():
    weight = formats.get("mxfp4").pack(*formats.get("mxfp4").quantize(torch.randn(16, 64)))
    with pytest.raises(qk.UsageError, match="act is 'a4'; mxfp4 weights serve a16, a8"):
        QuantLinear(weight, act="a4")
