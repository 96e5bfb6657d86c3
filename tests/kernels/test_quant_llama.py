"""`QuantLinear` in place of every linear of a transformers model, under `torch.compile` and in `generate`."""

import subprocess
import sys

from qspec_kernels import dispatch

COMPILED = """
import itertools
import os
import sys
import torch
from transformers import CompileConfig, LlamaConfig, LlamaForCausalLM
from qspec_kernels import dispatch
from qspec_kernels.nn import QuantLinear

config = LlamaConfig(
    vocab_size=97, hidden_size=64, intermediate_size=96, num_hidden_layers=1, num_attention_heads=2,
    num_key_value_heads=1, head_dim=32, max_position_embeddings=128,
)
graphs = []

def backend(graph, inputs):
    graphs.append(graph)
    return graph.forward

def calls():
    assert len(graphs) == 1, "it was compiled again"
    names = [str(node.target) for node in graphs.pop().graph.nodes]
    return [names.count(f"qspec.linear_{kind}.default") for kind in ("packed", "integer")]

def made():
    torch.manual_seed(0)
    model = LlamaForCausalLM(config).to(torch.bfloat16).eval()
    precisions = itertools.cycle(("w4a16", "w4a8", "w4a4", "mxfp4a16", "mxfp4a8"))
    for parent in list(model.modules()):
        for name, layer in list(parent.named_children()):
            if isinstance(layer, torch.nn.Linear):
                setattr(parent, name, QuantLinear.from_linear(layer, next(precisions), 32))
    return model

def check_forward(model):
    compiled = torch.compile(model, fullgraph=True, dynamic=True, backend=backend)
    with torch.no_grad():
        for rows, tokens in ((2, 7), (3, 16), (5, 40), (2, 33)):
            ids = torch.randint(0, config.vocab_size, (rows, tokens))
            out, expected = (run(ids, use_cache=False).logits for run in (compiled, model))
            assert torch.equal(out, expected), (rows, tokens)

def check_generate(model):
    asked = dict(
        max_new_tokens=6, min_new_tokens=6, do_sample=False, pad_token_id=0, cache_implementation="static",
        use_cache=True, output_logits=True, return_dict_in_generate=True,
    )
    compiler = CompileConfig(fullgraph=True, dynamic=True, backend=backend, mode="default")
    # on CPUs, too
    compiler._compile_all_devices = True
    ids = torch.randint(1, config.vocab_size, (3, 7))
    expected = model.generate(ids, **asked)
    assert not graphs
    out = model.generate(ids, compile_config=compiler, **asked)
    assert out.sequences.shape == (3, 13)
    assert torch.equal(out.sequences, expected.sequences)
    assert all(map(torch.equal, out.logits, expected.logits))

for path in sys.argv[1:]:
    os.environ["QSPEC_CPU_ISA"] = path
    dispatch.reset()
    model = made()
    for check in (check_forward, check_generate):
        torch._dynamo.reset()
        check(model)
        print(path, check.__name__, *calls())
"""


def test_a_model_is_one_graph_for_any_number_of_tokens():
    paths = dict.fromkeys(("torch", dispatch.isa()))
    # a process of its own, without the annotation checks of this one, as users have it
    command = [sys.executable, "-c", COMPILED, *paths]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    # a layer of seven linears and the head, of five precisions in turn
    assert done.stdout.splitlines() == [
        f"{path} {check} 3 5" for path in paths for check in ("check_forward", "check_generate")
    ], done.stderr
