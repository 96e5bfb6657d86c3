"""`QuantLinear` in place of every linear of a transformers model, under `torch.compile`."""

import subprocess
import sys

COMPILED = """
import itertools
import torch
from transformers import LlamaConfig, LlamaForCausalLM
from qspec_kernels.nn import QuantLinear

torch.manual_seed(0)
config = LlamaConfig(
    vocab_size=97, hidden_size=64, intermediate_size=96, num_hidden_layers=1, num_attention_heads=2,
    num_key_value_heads=1, head_dim=32, max_position_embeddings=128, use_cache=False,
)
model = LlamaForCausalLM(config).to(torch.bfloat16).eval()
precisions = itertools.cycle(("w4a16", "w4a8", "w4a4", "mxfp4a16", "mxfp4a8"))
for parent in list(model.modules()):
    for name, layer in list(parent.named_children()):
        if isinstance(layer, torch.nn.Linear):
            setattr(parent, name, QuantLinear.from_linear(layer, next(precisions), 32))

graphs = []

def backend(graph, inputs):
    graphs.append(graph)
    return graph.forward

compiled = torch.compile(model, fullgraph=True, dynamic=True, backend=backend)
with torch.no_grad():
    for rows, tokens in ((2, 7), (3, 16), (5, 40), (2, 33)):
        ids = torch.randint(0, config.vocab_size, (rows, tokens))
        assert torch.equal(compiled(ids).logits, model(ids).logits), (rows, tokens)
assert len(graphs) == 1, "it was compiled again"
calls = [str(node.target) for node in graphs[0].graph.nodes if "qspec" in str(node.target)]
print(calls.count("qspec.linear_packed.default"), calls.count("qspec.linear_integer.default"))
"""


def test_a_model_is_one_graph_for_any_number_of_tokens():
    # a process of its own, without the annotation checks of this one, as users have it
    done = subprocess.run([sys.executable, "-c", COMPILED], capture_output=True, text=True, check=False)
    # a layer of seven linears and the head, of five precisions in turn
    assert done.stdout.split() == ["3", "5"], done.stderr
