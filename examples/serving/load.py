"""Starts the service, asks it, and checks every answer.

    python examples/serving/load.py

2,000 requests of 200 adapters from 32 clients at once. Each answer is compared
with that of its adapter alone; beside it the same requests, in the order in
which they came, by one model that has each adapter merged in and taken out.
"""

import argparse
import concurrent.futures
import json
import pathlib
import sys
import tempfile
import time
import urllib.error
import urllib.request

import keras
import numpy as np

sys.path.insert(0, str(pathlib.Path(__file__).parent))

import answers
import service

import keras_ether


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--requests", type=int, default=2_000)
    parser.add_argument("--adapters", type=int, default=200)
    parser.add_argument("--clients", type=int, default=32)
    parser.add_argument("--capacity", type=int, default=256)
    parser.add_argument("--merges", type=int, default=40)
    parser.add_argument("--port", type=int, default=8017)
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--width", type=int, default=384)
    parser.add_argument("--heads", type=int, default=12)
    args = parser.parse_args()
    size = {"layers": args.layers, "width": args.width, "heads": args.heads}
    rng = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        model = answers.adapted_model(**size)
        names = make_adapters(model, folder, args.adapters, rng)
        requests = [
            {
                "adapter": None if i % 50 == 0 else str(rng.choice(names)),
                "token_ids": rng.integers(
                    1, answers.VOCABULARY, rng.integers(4, answers.LENGTH + 1)
                ).tolist(),
            }
            for i in range(args.requests)
        ]
        expected = alone(model, folder, requests, size)
        service.start(folder, args.port, args.capacity, **size)
        url = f"http://127.0.0.1:{args.port}/"
        check_errors(url)
        before = len(ask(f"{url}batches")[1])
        start = time.perf_counter()
        with concurrent.futures.ThreadPoolExecutor(args.clients) as pool:
            found = list(pool.map(lambda one: timed(url, one), requests))
        seconds = time.perf_counter() - start
        check(found, requests, expected)
        batches = ask(f"{url}batches")[1][before:]
        show("one bank", seconds, len(requests), [t for t, _, _ in found])
        print(
            f"  batches: {np.mean(batches):.1f} requests on average, "
            f"at most {max(batches)}"
        )
        print(f"  all {len(requests)} answers are those of their adapters")
        merged(model, folder, requests[: args.merges])


def make_adapters(model, folder, count, rng):
    """Files of adapters, each with vectors and a head of its own."""
    names = [f"user-{i:04d}" for i in range(count)]
    start = {id(v): value_of(v) for v in model.trainable_variables}
    for name in names:
        for variable in model.trainable_variables:
            noise = rng.standard_normal(variable.shape).astype("float32")
            variable.assign(start[id(variable)] + 0.05 * noise)
        keras_ether.save_adapter(model, folder / f"{name}.safetensors")
    return names


def alone(model, folder, requests, size):
    """What each request's adapter answers, the only one in its model."""
    expected = [None] * len(requests)
    for name in {request["adapter"] for request in requests}:
        places = [i for i, one in enumerate(requests) if one["adapter"] == name]
        x = answers.inputs_of([requests[i]["token_ids"] for i in places])
        if name is None:
            logits = answers.base_model(**size).predict(x, verbose=0)
        else:
            keras_ether.load_adapter(model, folder / f"{name}.safetensors")
            logits = model.predict(x, verbose=0)
        for i, row in zip(places, logits, strict=True):
            expected[i] = row
    return expected


def merged(model, folder, requests):
    """One request after the other, each adapter merged in and taken out."""
    base = keras_ether.remove(model)
    before = [(v, value_of(v)) for v in base.variables]
    times = []
    start = time.perf_counter()
    for one in requests:
        if one["adapter"] is not None:
            file = folder / f"{one['adapter']}.safetensors"
            keras_ether.merge(keras_ether.load_adapter(base, file))
        base.predict_on_batch(answers.inputs_of([one["token_ids"]]))
        for variable, value in before:
            variable.assign(value)
        times.append(time.perf_counter() - start)
    show("merged in turn", times[-1], len(requests), np.diff([0, *times]))


def value_of(variable):
    return np.array(keras.ops.convert_to_numpy(variable.value))


def ask(url, body=None):
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(
        url, data, {"content-type": "application/json"}
    )
    try:
        with urllib.request.urlopen(request, timeout=300) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        return error.code, json.load(error)


def timed(url, body):
    start = time.perf_counter()
    status, answer = ask(url, body)
    return time.perf_counter() - start, status, answer


def check(found, requests, expected):
    for (_, status, answer), one, logits in zip(
        found, requests, expected, strict=True
    ):
        if status != 200 or answer["adapter"] != one["adapter"]:
            raise SystemExit(f"wrong: {one} was answered {status} {answer}")
        np.testing.assert_allclose(answer["logits"], logits, atol=1e-4)


def check_errors(url):
    """404 with near names for an unknown adapter, 422 for bad input."""
    status, answer = ask(url, {"adapter": "user-00001", "token_ids": [1]})
    assert status == 404, (status, answer)
    assert "user-0001" in answer["detail"]["did_you_mean"], answer
    for bad in (
        {},
        {"token_ids": []},
        {"token_ids": [-1]},
        {"token_ids": ["a"]},
        {"token_ids": [1] * (answers.LENGTH + 1)},
        {"token_ids": [1], "adapter": "../secret"},
        {"token_ids": [1], "other": 1},
    ):
        status, answer = ask(url, bad)
        assert status == 422, (bad, status, answer)


def show(title, seconds, count, times):
    middle, high, highest = 1e3 * np.percentile(times, [50, 95, 99])
    print(
        f"{title}: {count / seconds:.1f} requests a second; latency "
        f"{middle:.0f} ms (50 %), {high:.0f} ms (95 %), {highest:.0f} ms (99 %)"
    )


if __name__ == "__main__":
    main()
