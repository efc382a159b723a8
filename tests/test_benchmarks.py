"""Benchmarks run once, small, so that they cannot rot."""

from __future__ import annotations

import pytest

from benchmarks import bench_label, bench_segment


@pytest.mark.parametrize("module", [bench_label, bench_segment])
def test_a_benchmark_runs_and_reports_figures(two_workers, module):
    result = module.run(two_workers, small=True)
    numbers = [value for value in result.values() if isinstance(value, float)]
    assert numbers
    assert all(number > 0 for number in numbers)
    if module is bench_label:
        ours, scipy = result["clusters (ours, scipy)"]
        assert ours == scipy > 0
