"""The benchmarks for accelerators, as far as a CPU can run them."""

import json
import subprocess
import sys

import pytest

pytestmark = pytest.mark.once


@pytest.mark.parametrize(
    "job",
    [
        ("torch", "step", "ETHER+ n=4"),
        pytest.param(
            ("torch", "generate", "active"), marks=pytest.mark.nightly
        ),
        pytest.param(("torch", "peer", "LoRA r=8"), marks=pytest.mark.nightly),
        pytest.param(("jax", "step", "limit"), marks=pytest.mark.nightly),
    ],
)
def test_a_row_of_the_benchmark_of_accelerators(job):
    from benchmarks import gpu

    row = gpu.in_process(job, "tiny", 300)
    assert "error" not in row, row["error"]
    assert row["ms"] > 0
    assert row["peak MiB"] > 0
    assert row["name"] == job[2]


def test_the_benchmark_of_accelerators_leaves_what_it_had(tmp_path):
    """A row that fails says so, and when the time is up no more is run."""
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "benchmarks",
            "gpu",
            "--tiny",
            "--minutes",
            "0.01",
            "--modes",
            "torch",
            "--results",
            str(tmp_path),
        ],
        capture_output=True,
        text=True,
        check=True,
    )
    assert "The time is up" in done.stdout
    run = json.loads((tmp_path / "gpu-tiny.json").read_text())
    (rows,) = run["tables"].values()
    assert [r["name"] for r in rows] == ["limit"]
    assert rows[0]["error"] == "the time is up"


def test_traffic_counts_operands_and_results_outside_the_chip():
    from benchmarks import tpu

    text = """
ENTRY %main {
  %a = bf16[8,128]{1,0:T(8,128)(2,1)} parameter(0)
  %b = f32[128]{0:T(128)S(1)} parameter(1)
  %c = (bf16[8,128]{1,0:S(1)}, bf16[8,128]{1,0}, u32[]{:S(2)}) copy-start(%a)
  %d = bf16[8,128]{1,0:S(1)} copy-done(%c)
  ROOT %e = (f32[8,128]{1,0}, f32[4]{0:S(1)}) fusion(%d, %a, %b), kind=kLoop, \
metadata={op_name="jit(step)/layer_0/dense/dot"}, backend_config=\
{"estimated_cycles":"12"}
}
"""
    copy, fusion = tpu.operations(text)
    # The copy is counted where it starts, and reads what is outside.
    assert copy["MB"] == 0.002
    assert fusion["of"] == "jit(step)/layer_0/dense/dot"
    assert fusion["MB"] == round((4 * 8 * 128 + 2 * 8 * 128) / 1e6, 3)
    assert fusion["cycles"] == 12
    assert fusion["writes"] == ["f32[8,128]", "(f32[4])"]


def test_kernels_are_operations_that_are_no_views():
    import torch

    from benchmarks import kernels

    x = torch.ones(4, 4)
    with kernels.counter() as found:
        x.reshape(2, 8).T @ x.view(2, 8)
        x.add_(1.0)
    assert found.counts == {"aten::mm": 1, "aten::add_": 1}
