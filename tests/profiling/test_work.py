"""FLOPs and bytes of operators whose numbers are known; the roofline over them."""

from __future__ import annotations

import pytest
import torch

from fashionbert_fast.kernels import bias_gelu, packed_attention
from fashionbert_fast.profiling.roofline import Ceilings, measure_ceilings, plot_roofline, point
from fashionbert_fast.profiling.timeline import KernelRow
from fashionbert_fast.profiling.work import Work


def _count(function, name):
    with Work() as work:
        function()
    return work.counts[name]


def test_a_product():
    a, b = torch.randn(3, 5), torch.randn(5, 7)
    count = _count(lambda: a @ b, "aten::mm")
    assert (count.calls, count.flops, count.bytes) == (1, 2 * 3 * 5 * 7, 4 * (15 + 35 + 21))


def test_a_product_that_is_added_to_a_matrix():
    a, b, c = torch.randn(3, 5), torch.randn(5, 7), torch.zeros(3, 7)
    count = _count(lambda: c.addmm_(a, b), "aten::addmm_")
    assert (count.calls, count.flops, count.bytes) == (1, 2 * 3 * 5 * 7, 4 * (15 + 35 + 2 * 21))


def test_views_and_allocations_are_free_and_overwriting_does_not_read():
    x, y = torch.zeros(4, 6), torch.ones(4, 6)
    with Work() as work:
        x.view(6, 4).t()
        torch.empty(100)
        x.copy_(y)
        x.add_(y)
    assert set(work.counts) == {"aten::copy_", "aten::add_"}
    assert work.counts["aten::copy_"].bytes == 2 * 96
    assert work.counts["aten::add_"].bytes == 3 * 96  # read and written, and y


def test_gathering_counts_the_rows_taken():
    table, rows = torch.zeros(1000, 8), torch.tensor([1, 2, 3])
    assert _count(lambda: table.index_select(0, rows), "aten::index_select").bytes == 2 * 3 * 8 * 4


def test_a_reduction_is_as_much_work_as_it_reads():
    x = torch.ones(10, 10)
    assert _count(x.sum, "aten::sum").flops == 100
    assert _count(lambda: x.expand(10, 10) + torch.ones(1), "aten::add").flops == 101


def test_one_tensor_twice_is_read_once():
    x = torch.ones(10)
    assert _count(lambda: x * x, "aten::mul").bytes == 2 * 40


def test_operators_of_this_project():
    qkv = torch.randn(5, 3 * 8, requires_grad=True)
    offsets = torch.tensor([0, 2, 5], dtype=torch.int32)
    with Work() as work:
        packed_attention(qkv, offsets, 2, max_seqlen=3).sum().backward()
        bias_gelu(torch.randn(5, 8), torch.zeros(8))
    squares = 2**2 + 3**2
    assert work.counts["fashionbert_fast::packed_attention"].flops == 4 * squares * 8
    assert work.counts["fashionbert_fast::packed_attention_backward"].flops == 10 * squares * 8
    assert work.counts["fashionbert_fast::bias_gelu"].bytes == 4 * (40 + 8 + 40)


def test_a_point_is_under_the_lower_of_both_ceilings():
    ceilings = Ceilings({"float32": 100.0}, bandwidth=10.0)
    bound_by_memory, bound_by_products = KernelRow("a", 1, 4.0, 50.0, 20.0), KernelRow("b", 1, 4.0, 300.0, 10.0)
    assert point(bound_by_memory, ceilings, "float32").attained == pytest.approx(2 / 4)
    assert point(bound_by_products, ceilings, "float32").attained == pytest.approx(3 / 4)
    assert point(KernelRow("c", 1, 4.0), ceilings, "float32") is None


def test_ceilings_are_measured_and_drawn(tmp_path):
    ceilings = measure_ceilings(torch.device("cpu"), quick=True)
    assert set(ceilings.matmul) == {"float32", "bfloat16"} and all(rate > 1e8 for rate in ceilings.matmul.values())
    assert 1e8 < ceilings.bandwidth < 1e13
    shown = [point(KernelRow("step", 1, 1.0, 1e9, 1e8), ceilings, "float32")]
    plot_roofline(shown, ceilings, "float32", tmp_path / "roofline.png")
    assert (tmp_path / "roofline.png").stat().st_size > 10_000
