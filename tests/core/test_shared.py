"""Everyone finds a block in shared memory by the same rule, and a tensor is one run of it on any number of servers."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from shoal.arena import PAGE_BYTES
from shoal.core.shared import lay_out_shared
from shoal.placement import blocks_of_tensor, cut, owned
from shoal.vocabulary import ITEM_BYTES, PolicySpec, TableSpec, TensorSpec

tensors = st.lists(
    st.tuples(st.integers(0, 20_000), st.sampled_from(sorted(ITEM_BYTES))), min_size=1, max_size=8
).filter(lambda items: any(elements for elements, _ in items))


def table(items: list[tuple[int, str]], block: int) -> TableSpec:
    specs = tuple(TensorSpec(f"t{i}", (elements,), dtype, 0) for i, (elements, dtype) in enumerate(items))
    return TableSpec(specs, "sgd", ((("lr", 0.1),),), PolicySpec("sync"), block_elements_max=block)


@given(tensors, st.integers(1, 4))
def test_blocks_do_not_overlap_tensors_are_whole_and_pages_have_one_owner(
    items: list[tuple[int, str]], servers: int
) -> None:
    spec = table(items, block=2048)
    layout = lay_out_shared(spec, servers)
    assert layout is not None, "blocks of whole pages can be shared on any number of servers"
    end = servers * PAGE_BYTES  # the stamps come first
    for block, piece in zip(cut(spec), layout.blocks, strict=True):
        assert piece.start >= end
        assert piece.stop - piece.start == block.elements * ITEM_BYTES[spec.tensors[block.tensor].dtype]
        end = piece.stop
    assert end <= layout.size_bytes
    for whole, blocks in zip(layout.tensors, blocks_of_tensor(spec), strict=True):
        runs = [layout.blocks[index] for index in blocks]
        assert all(one.stop == other.start for one, other in zip(runs, runs[1:], strict=False))
        assert not runs or (runs[0].start, runs[-1].stop) == (whole.start, whole.stop)
    for server, part in enumerate(layout.parts):
        assert part.start % PAGE_BYTES == part.stop % PAGE_BYTES == 0
        mine = owned(spec, server, servers)
        assert all(part.start <= layout.blocks[block].start for block in mine)
        assert all(layout.blocks[block].stop <= part.stop for block in mine)
    filled = sorted((part.start, part.stop) for part in layout.parts if part.size)
    assert all(one[1] <= other[0] for one, other in zip(filled, filled[1:], strict=False))


def test_a_tensor_that_would_break_within_a_page_is_not_shared() -> None:
    spec = table([(100, "float32")], block=10)
    assert lay_out_shared(spec, 1) is not None
    assert lay_out_shared(spec, 2) is None
