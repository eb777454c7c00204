"""Peak memory of `keras_ether.apply`, each method in a process of its own."""

import json
import sys

from benchmarks import memory
from benchmarks import processes
from benchmarks import report


def main(args):
    rows = []
    for method in ("ether", "ether+"):
        rows.append(processes.measure("apply", method, **memory.ENVIRONMENT))
        print(rows[-1], flush=True)
    title = "BERT-base, all linear maps, n=4: apply over the model itself"
    report.save("apply", args, {title: rows})


def measure(method):
    """Bytes at the high-water mark of `apply`, over those of the model."""
    import keras_ether
    from benchmarks import models

    model, _, _ = models.bert_base()
    # Float32, under the default policy.
    size = 4 * model.count_params()
    # A small model first, so that what libraries load on first use, which does
    # not grow with a model, is not counted.
    warm, _, _ = models.minilm()
    arguments = {"method": method, "rank_blocks": 4, "targets": "all-linear"}
    keras_ether.apply(warm, **arguments)
    before = memory.reset_peak()
    keras_ether.apply(model, **arguments)
    peak, after = memory.peak(), memory.status("VmRSS")
    return {
        "method": method,
        "model_mib": round(size / 2**20),
        "peak_mib": round((peak - before) / 2**20, 1),
        "left_mib": round((after - before) / 2**20, 1),
        "ratio": round(1 + (peak - before) / size, 4),
    }


if __name__ == "__main__":
    print(json.dumps(measure(sys.argv[1])))
