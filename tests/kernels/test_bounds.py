"""The loops that bound kernels: memory is read whole, and operations are counted as they are done."""

import pytest
import torch

import qspec_kernels as qk
from qspec_kernels.bounds import PEAKS


@pytest.mark.parametrize("words", [0, 1, 63, 64, 65, 1000, 3 << 18])
def test_every_word_is_read_once(native, rng, words):
    data = torch.randint(-(2**31), 2**31, (words,), generator=rng, dtype=torch.int32)
    assert qk.read_pass(data) == int(data.sum(dtype=torch.int64)) % 2**32
    for place in {0, words // 2, words - 1} if words else ():
        before, data[place] = int(data[place]), data[place] + 1
        assert qk.read_pass(data) == int(data.sum(dtype=torch.int64)) % 2**32
        data[place] = before


@pytest.mark.parametrize("kind", PEAKS)
def test_operations_are_counted(native, threads, kind):
    counts = []
    for number in (1, 2):
        torch.set_num_threads(number)
        counts += [qk.compute_pass(kind, iterations) for iterations in (10, 30)]
    one = counts[0]
    assert one > 0
    assert counts == [one, 3 * one, 2 * one, 6 * one]


def test_both_can_be_recorded(native):
    data = torch.arange(10, dtype=torch.int32)
    with qk.Workspace().record() as program:
        assert qk.read_pass(data) == 45
        assert qk.compute_pass("bf16", 10) > 0
    assert len(program) == 2
    program.replay()


def test_what_cannot_be_read_is_refused(native):
    with pytest.raises(qk.UsageError, match="expected one of fp32, bf16, int8"):
        qk.compute_pass("int4", 1)
    for wrong in (torch.ones(4, 4).t(), torch.ones(3, dtype=torch.uint8)):
        with pytest.raises(qk.UsageError, match="contiguous"):
            qk.read_pass(wrong)


def test_the_torch_path_has_no_loops(torch_backend):
    with pytest.raises(qk.KernelUnavailable):
        qk.read_pass(torch.ones(4))
    with pytest.raises(qk.KernelUnavailable):
        qk.compute_pass("fp32", 1)
