"""`QuantLinear` in place of `torch.nn.Linear`."""

import copy
import pickle

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


@pytest.mark.parametrize("precision", ["w4a16", "mxfp4a8"])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64], ids=str)
def test_models_of_any_dtype(backend, rng, dtype, bias, precision):
    torch.manual_seed(0)
    plain = torch.nn.Linear(200, 37, bias=bias, dtype=dtype)
    layer = QuantLinear.from_linear(plain, precision)
    x = torch.randn(3, 200, generator=rng).to(dtype)
    offset = torch.zeros(37) if plain.bias is None else plain.bias.detach().clone()
    expected = x.double() @ formats.dequantize(layer.weight).double().T + offset.double()
    # what becomes of the original layer changes nothing
    for parameter in plain.parameters():
        parameter.data.zero_()
    out = layer(x)
    assert out.dtype == dtype
    assert (out.double() - expected).norm() <= 0.03 * expected.norm()
    with torch.no_grad():
        assert same_bits(layer(x), out)


@pytest.mark.parametrize("precision", ["w4a16", "w4a8"])
def test_a_backward_pass_is_refused(backend, rng, precision):
    layer = QuantLinear.from_linear(torch.nn.Linear(100, 20), precision)
    x = torch.randn(3, 100, generator=rng).requires_grad_()
    out = layer(x)
    with torch.no_grad():
        assert same_bits(layer(x), out.detach())
    with pytest.raises(qk.UsageError, match=r"qspec::linear_\w+ has no gradient") as error:
        out.sum().backward()
    assert "torch.no_grad()" in error.value.hint


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
        copy.deepcopy(layer).type(torch.float64),
        copy.deepcopy(layer).double(),
    ):
        assert cast.scales.dtype == torch.float16
        assert same_bits(cast.scales, layer.scales)
        assert torch.equal(cast.data, layer.data)
        out = cast(x) if out is None else out
    torch.testing.assert_close(cast(x), out)


@pytest.mark.parametrize("again", [copy.deepcopy, lambda layer: pickle.loads(pickle.dumps(layer))])
def test_a_copy_loads_into_itself(backend, rng, again):
    layer, other = (QuantLinear.from_linear(torch.nn.Linear(100, 20), "w4a8") for _ in range(2))
    x, before = torch.randn(3, 100, generator=rng), layer.data.clone()
    copied = again(layer)
    copied.load_state_dict(other.state_dict())
    assert same_bits(copied(x), other(x))
    assert torch.equal(layer.data, before)


@pytest.mark.parametrize("precision", ["w4a8", "mxfp4a16"])
@pytest.mark.parametrize("assign", [True, False])
def test_a_layer_without_bytes_is_filled(backend, rng, precision, assign):
    full = QuantLinear.from_linear(torch.nn.Linear(100, 20), precision)
    state, x = full.state_dict(), torch.randn(3, 100, generator=rng)
    # made without bytes, or made and then moved where there are none
    made = QuantLinear.from_linear(torch.nn.Linear(100, 20, device="meta"), precision)
    for empty in (made, copy.deepcopy(full).to("meta")):
        assert empty.data.is_meta
        assert empty(x.to("meta")).shape == (3, 20)
        assert {name: value.shape for name, value in empty.state_dict().items()} == {
            name: value.shape for name, value in state.items()
        }
        if not assign:
            empty.to_empty(device="cpu")
        empty.load_state_dict(state, assign=assign)
        assert empty.format == full.format
        assert same_bits(empty(x), full(x))


def test_bytes_are_not_copied_to_nowhere_in_silence(torch_backend):
    state = QuantLinear.from_linear(torch.nn.Linear(100, 20, bias=False)).state_dict()
    empty = QuantLinear.from_linear(torch.nn.Linear(100, 20, bias=False, device="meta"))
    with pytest.warns(UserWarning, match="assign=True"):
        empty.load_state_dict(state)


def test_strict_loading_names_what_is_missing(torch_backend):
    layer = QuantLinear.from_linear(torch.nn.Linear(100, 20), "w4a8")
    state = layer.state_dict()
    del state["scales"]
    with pytest.raises(RuntimeError, match="scales"):
        layer.load_state_dict(state)


def test_dense_precision_is_refused(torch_backend):
    with pytest.raises(qk.UsageError, match="precision 'bf16' has dense weights") as error:
        QuantLinear.from_linear(torch.nn.Linear(8, 8), "bf16")
    assert "w4a16" in error.value.hint


def test_other_layers_are_refused(torch_backend):
    # transformers' Conv1D and its like hold the transposed matrix
    with pytest.raises(qk.UsageError, match=r"linear is a Conv1d; expected a torch.nn.Linear"):
        QuantLinear.from_linear(torch.nn.Conv1d(8, 8, 1))


def test_an_activation_that_the_weights_do_not_serve_is_refused_at_once():
    weight = formats.get("mxfp4").pack(*formats.get("mxfp4").quantize(torch.randn(16, 64)))
    with pytest.raises(qk.UsageError, match="act is 'a4'; mxfp4 weights serve a16, a8"):
        QuantLinear(weight, act="a4")
