"""The benchmarks for accelerators, as far as a CPU can run them."""

import argparse
import json
import os
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


def test_kernels_of_a_gpu_are_counted_by_kind():
    from benchmarks import gpu_plan

    text = """
%fused_product (p: f16[512,512]) -> f16[512,512] {
  %p = f16[512,512]{1,0} parameter(0)
  ROOT %d = f16[512,512]{1,0} dot(%p, %p), lhs_contracting_dims={1}
}

%fused_sum (q: f16[512,512]) -> f16[512] {
  %q = f16[512,512]{1,0} parameter(0)
  ROOT %r = f16[512]{0} reduce(%q), dimensions={1}
}

%body (b: f16[512]) -> f16[512] {
  %b = f16[512]{0} parameter(0)
  ROOT %n = f16[512]{0} negate(%b)
}

ENTRY %main (a: f16[512,512]) -> f16[512] {
  %a = f16[512,512]{1,0} parameter(0)
  %product = f16[512,512]{1,0} fusion(%a), kind=kCustom, \
calls=%fused_product, metadata={op_name="jit(step)/dense/dot"}
  %sum = f16[512]{0} fusion(%product), kind=kInput, calls=%fused_sum
  %view = f16[512]{0} bitcast(%sum)
  %large = f16[512,512]{1,0} add(%product, %product)
  ROOT %loop = f16[512]{0} while(%view), condition=%c, body=%body, \
backend_config={"known_trip_count":{"n":"3"}}
}
"""
    found = gpu_plan.kernels(text)
    kinds = [kernel["kind"] for kernel in found]
    assert kinds == ["product", "small", "large", *["small"] * 3]
    assert found[0]["of"] == "jit(step)/dense/dot"
    assert found[0]["MB"] == round(2 * 2 * 512 * 512 / 1e6, 4)


def test_a_collective_is_counted_once_and_in_loops_as_often_as_they_run():
    from benchmarks import collectives

    # The first is in two fusions, since it runs beside their work.
    text = """
%beside.1 (p: bf16[8,128]) -> bf16[64,128] {
  %p = bf16[8,128]{1,0} parameter(0)
  ROOT %g.1 = bf16[64,128]{1,0} all-gather(%p), channel_id=1, dimensions={0}
}

%beside.2 (q: bf16[8,128]) -> bf16[64,128] {
  %q = bf16[8,128]{1,0} parameter(0)
  ROOT %g.2 = bf16[64,128]{1,0} all-gather(%q), channel_id=1, dimensions={0}
}

%goes_on (c: (u32[], bf16[8,128])) -> pred[] {
  %end = u32[] constant(6)
  %c = (u32[], bf16[8,128]{1,0}) parameter(0)
  %i = u32[] get-tuple-element(%c), index=0
  ROOT %less = pred[] compare(%i, %end), direction=LT
}

%body (b: (u32[], bf16[8,128])) -> (u32[], bf16[8,128]) {
  %step = u32[] constant(2)
  %b = (u32[], bf16[8,128]{1,0}) parameter(0)
  %j = u32[] get-tuple-element(%b), index=0
  %x = bf16[8,128]{1,0} get-tuple-element(%b), index=1
  %next = u32[] add(%j, %step)
  %sent = (bf16[8,128]{1,0}, bf16[8,128]{1,0}, u32[], u32[]) \
collective-permute-start(%x), channel_id=2
  %came = bf16[8,128]{1,0} collective-permute-done(%sent)
  ROOT %t = (u32[], bf16[8,128]{1,0}) tuple(%next, %came)
}

ENTRY %main (a: bf16[8,128]) -> bf16[64,128] {
  %a = bf16[8,128]{1,0} parameter(0)
  %one = bf16[64,128]{1,0} fusion(%a), kind=kOutput, calls=%beside.1
  %two = bf16[64,128]{1,0} fusion(%a), kind=kOutput, calls=%beside.2
  %zero = u32[] constant(0)
  %start = (u32[], bf16[8,128]{1,0}) tuple(%zero, %a)
  %loop = (u32[], bf16[8,128]{1,0}) while(%start), condition=%goes_on, \
body=%body
  ROOT %sum = bf16[64,128]{1,0} add(%one, %two)
}
"""
    gathered, sent = collectives.collectives(text)
    assert (gathered["kind"], gathered["times"]) == ("all-gather", 1)
    assert gathered["MB"] == round(2 * 64 * 128 / 1e6, 4)
    assert (sent["kind"], sent["times"]) == ("collective-permute", 3)
    assert sent["MB"] == round(3 * 2 * 8 * 128 / 1e6, 4)


@pytest.mark.parametrize("base", ["int8", "int4"])
def test_a_model_of_shapes_has_those_of_a_quantized_one(base):
    """An abstract build quantizes as Keras does, odd widths included."""
    code = f"""
import keras
from benchmarks import abstract_models

def build():
    model = keras.Sequential(
        [
            keras.Input((4, 6)),
            keras.layers.Dense(7),
            keras.layers.EinsumDense("abc,cde->abde", (4, 2, 5)),
        ]
    )
    model.quantize({base!r})
    model.compile("adam", "mse")
    model.optimizer.build(model.trainable_variables)
    return model

def described(variables):
    return [(tuple(v.shape), str(v.dtype)) for v in variables]

real, planned = build(), abstract_models.build(build)
assert described(planned.weights) == described(real.weights)
for of_shapes, variables in zip(
    abstract_models.state_of(planned), abstract_models.state_of(real)
):
    assert described(of_shapes) == described(variables)
assert any(v.dtype == "int8" for v in planned.weights)
"""
    environment = {**os.environ, "KERAS_BACKEND": "jax"}
    subprocess.run([sys.executable, "-c", code], env=environment, check=True)


def test_rows_of_other_models_stay_in_a_table_of_plans(tmp_path, monkeypatch):
    from benchmarks import fits

    planned = iter([1.0, 2.0, 20.0])
    monkeypatch.setattr(fits, "gibibytes", lambda *_: {"GiB": next(planned)})
    monkeypatch.setattr(fits, "compiler", lambda args: (None, 16))
    for names in (["Gemma 2B"], ["SmolLM2 135M", "Gemma 2B"]):
        parser = argparse.ArgumentParser()
        fits.add_arguments(parser)
        args = parser.parse_args(["--rows", "3", "--models", *names])
        args.results, args.quick = tmp_path, False
        args.backend, args.threads = "jax", 1
        fits.main(args)
    (path,) = tmp_path.iterdir()
    (rows,) = json.loads(path.read_text("utf-8"))["tables"].values()
    assert [(row["model"], row["GiB"], row["fits"]) for row in rows] == [
        ("SmolLM2 135M", 2.0, "yes"),
        ("Gemma 2B", 20.0, "no"),
    ]
