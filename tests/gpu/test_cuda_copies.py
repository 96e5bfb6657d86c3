"""The emulator's memory: when asynchronous copies land, and what is in memory that nothing has written.

On a GPU a copy lands at any time until its wait; here it does as late as can be, or at once. A kernel that
reads too early, or what nobody wrote, reads all ones: NaN as a float.
"""

import pytest
import torch

from tests.gpu.emulation.cases import Probe, emulated

UNWRITTEN = -1

# four copies by each lane, in two closed groups and an open one, looked at before and after each wait
COPIES = """
KERNEL(32, 1)
probe(int* out, const int* in) {
    int* own = reinterpret_cast<int*>(shared_memory()) + thread_index() * 16;
    in += thread_index() * 16;
    copy16(own, in, true);
    close_copy_group();
    copy16(own + 4, in + 4, true);
    copy4(own + 8, in + 8, false);
    close_copy_group();
    copy16(own + 12, in + 12, true);
    out += thread_index() * 16;
    for (int i = 0; i < 16; ++i) store_global(out + i, own[i]);
    wait_for_copies<1>();
    for (int i = 0; i < 16; ++i) store_global(out + 512 + i, own[i]);
    wait_for_copies<0>();
    for (int i = 0; i < 16; ++i) store_global(out + 1024 + i, own[i]);
}
"""

# every block looks at all of shared memory and leaves zeros there; one number of the output stays as it is
MEMORY = """
KERNEL(32, 1)
probe(int* out) {
    int* own = reinterpret_cast<int*>(shared_memory()) + thread_index() * 4;
    for (int i = 0; i < 4; ++i) {
        store_global(out + (block_x() * 32 + thread_index()) * 4 + i, own[i]);
        own[i] = 0;
    }
}
"""


def copied(late: bool) -> list[torch.Tensor]:
    """What lanes find at their destinations [32, 16]: before the first wait, behind it, behind the second."""
    given = torch.arange(512, dtype=torch.int32)
    out = torch.empty(3, 32, 16, dtype=torch.int32)
    with emulated(late=late) as emulator:
        emulator.launch(Probe("probe", ("ptx.cuh",), (), 32, 2048, COPIES), (1, 1), [out, given])
    return list(out)


@pytest.mark.parametrize("late", [True, False])
def test_copies_land_at_their_wait_or_at_once(late):
    landed = torch.arange(512, dtype=torch.int32).view(32, 16)
    # a copy that is not valid writes zeros, and only as many as it would copy
    landed[:, 8], landed[:, 9:12] = 0, UNWRITTEN
    before, first, both = copied(late)
    # no wait is for a group that is not closed
    ends = (0, 4, 12) if late else (16, 16, 16)
    for found, end in zip((before, first, both), ends, strict=True):
        assert torch.equal(found[:, :end], landed[:, :end])
        assert (found[:, end:] == UNWRITTEN).all()


def test_memory_that_nothing_has_written():
    out = torch.zeros(2 * 32 * 4 + 1, dtype=torch.int32)
    with emulated() as emulator:
        emulator.launch(Probe("probe", ("ptx.cuh",), (), 32, 512, MEMORY), (2, 1), [out])
    assert (out == UNWRITTEN).all()
    assert out.view(torch.float32).isnan().all()
