"""Low-bit kernels for CPUs and other devices: packed 4-bit weights, and ops whose rows never depend on
each other's company. Importing registers the ops and touches neither the machine nor a library."""

from qspec_kernels import formats as formats
from qspec_kernels import nn as nn
from qspec_kernels.bounds import compute_pass as compute_pass
from qspec_kernels.bounds import read_pass as read_pass
from qspec_kernels.dispatch import cpu_field as cpu_field
from qspec_kernels.dispatch import isa as isa
from qspec_kernels.dispatch import to_device_layout as to_device_layout
from qspec_kernels.errors import CheckpointError as CheckpointError
from qspec_kernels.errors import FormatError as FormatError
from qspec_kernels.errors import KernelUnavailable as KernelUnavailable
from qspec_kernels.errors import QSpecError as QSpecError
from qspec_kernels.errors import UsageError as UsageError
from qspec_kernels.explanation import explain as explain
from qspec_kernels.formats import PackedWeight as PackedWeight
from qspec_kernels.formats import QuantizedActivation as QuantizedActivation
from qspec_kernels.hadamard_matrix import hadamard_matrix as hadamard_matrix
from qspec_kernels.hadamard_matrix import largest_block as largest_block
from qspec_kernels.ops.argmax import argmax as argmax
from qspec_kernels.ops.attention import attention as attention
from qspec_kernels.ops.cache_write import cache_write as cache_write
from qspec_kernels.ops.draw import draw as draw
from qspec_kernels.ops.draw_residual import draw_residual as draw_residual
from qspec_kernels.ops.embedding import embedding as embedding
from qspec_kernels.ops.hadamard import hadamard as hadamard
from qspec_kernels.ops.hadamard_quantize_act import hadamard_quantize_act as hadamard_quantize_act
from qspec_kernels.ops.linear import linear as linear
from qspec_kernels.ops.quantize_act import quantize_act as quantize_act
from qspec_kernels.ops.rescore import rescore as rescore
from qspec_kernels.ops.rmsnorm import rmsnorm as rmsnorm
from qspec_kernels.ops.rmsnorm_quantize_act import rmsnorm_quantize_act as rmsnorm_quantize_act
from qspec_kernels.ops.rope import rope as rope
from qspec_kernels.ops.rope_cache_write import HeadNorm as HeadNorm
from qspec_kernels.ops.rope_cache_write import RotaryEmbedding as RotaryEmbedding
from qspec_kernels.ops.rope_cache_write import rope_cache_write as rope_cache_write
from qspec_kernels.ops.silu_mul import silu_mul as silu_mul
from qspec_kernels.ops.silu_mul_hadamard_quantize_act import (
    silu_mul_hadamard_quantize_act as silu_mul_hadamard_quantize_act,
)
from qspec_kernels.ops.silu_mul_quantize_act import silu_mul_quantize_act as silu_mul_quantize_act
from qspec_kernels.ops.softmax import softmax as softmax
from qspec_kernels.ops.top2 import top2 as top2
from qspec_kernels.precision import PRECISIONS as PRECISIONS
from qspec_kernels.precision import Precision as Precision
from qspec_kernels.precision import precision as precision
from qspec_kernels.program import Program as Program
from qspec_kernels.program import Workspace as Workspace
from qspec_kernels.threads import exclusive_threads as exclusive_threads
from qspec_kernels.threads import num_threads as num_threads
from qspec_kernels.warmup import warmup as warmup
