"""Starts the service, asks it, and checks every answer.

    python examples/serving/load.py

2,000 requests of 200 adapters from 32 clients at once. Each answer is compared
with that of its adapter alone; beside it the same requests, in the order in
which they came, by one model that has each adapter merged in and taken out.
Then `--overload` seconds of twice as many requests as were answered in one, at
their own pace: each is answered right or told at once that it has to wait.
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
from collections import Counter

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
    parser.add_argument("--overload", type=int, default=60)
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
        check_errors(url, folder, names[0])
        before = metrics(url)
        start = time.perf_counter()
        with concurrent.futures.ThreadPoolExecutor(args.clients) as pool:
            found = list(pool.map(lambda one: timed(url, one), requests))
        seconds = time.perf_counter() - start
        check(found, requests, expected)
        now = metrics(url)
        count, size = (
            now[f"bank_batch_size_{what}"] - before[f"bank_batch_size_{what}"]
            for what in ("count", "sum")
        )
        show("one bank", seconds, len(requests), [t for t, _, _ in found])
        print(f"  batches: {size / count:.1f} requests on average")
        print(f"  all {len(requests)} answers are those of their adapters")
        rate = 2 * len(requests) / seconds
        overload(url, requests, expected, rate, args.overload)
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


def overload(url, requests, expected, rate, seconds):
    """Requests at a pace of their own, of which a half is too many."""
    if not seconds:
        return
    before = metrics(url)
    start, statuses, times = time.perf_counter(), Counter(), []
    memory = []

    def one(i):
        late = start + i / rate - time.perf_counter()
        if late > 0:
            time.sleep(late)
        k = i % len(requests)
        took, status, answer = timed(url, requests[k])
        statuses[status] += 1
        if status == 200:
            times.append(took)
            check([(took, status, answer)], [requests[k]], [expected[k]])
        elif status != 503:
            raise SystemExit(f"wrong: {requests[k]} was answered {status}")
        if i % int(5 * rate) == 0:
            memory.append(metrics(url)["process_resident_memory_bytes"])

    with concurrent.futures.ThreadPoolExecutor(400) as pool:
        list(pool.map(one, range(int(rate * seconds))))
    show(
        f"{rate:.1f} requests a second, {seconds} s",
        time.perf_counter() - start,
        statuses[200],
        times,
    )
    after = metrics(url)
    evicted = after["bank_adapter_evictions"] - before["bank_adapter_evictions"]
    print(f"  {statuses[200]} answered, all right; {statuses[503]} had to wait")
    print(
        f"  memory of the replica, MB: {[round(m / 1e6) for m in memory]}; "
        f"{evicted:.0f} evictions"
    )


def metrics(url):
    """The counts of the service, by name."""
    with urllib.request.urlopen(f"{url}metrics", timeout=300) as answer:
        lines = answer.read().decode().splitlines()
    pairs = (line.rsplit(" ", 1) for line in lines if not line.startswith("#"))
    return {name: float(value) for name, value in pairs}


def ask(url, body=None):
    data = body if body is None or isinstance(body, bytes) else _text(body)
    request = urllib.request.Request(
        url, data, {"content-type": "application/json"}
    )
    try:
        with urllib.request.urlopen(request, timeout=300) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        text = error.read().decode()
        is_json = "json" in error.headers.get("content-type", "")
        return error.code, json.loads(text) if is_json else text


def _text(body):
    return json.dumps(body).encode()


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


def check_errors(url, folder, name):
    """404 with near names for an unknown adapter, 422 for bad input, 413."""
    status, answer = ask(f"{url}ready")
    assert (status, answer) == (200, {"ready": True}), (status, answer)
    status, answer = ask(url, {"adapter": "user-00001", "token_ids": [1]})
    assert status == 404, (status, answer)
    assert "user-0001" in answer["detail"]["did_you_mean"], answer
    for bad in (
        {},
        {"token_ids": []},
        {"token_ids": [-1]},
        {"token_ids": ["a"]},
        {"token_ids": [float("nan")]},
        {"token_ids": [float("inf")]},
        {"token_ids": [1] * (answers.LENGTH + 1)},
        {"token_ids": [1], "adapter": "../secret"},
        {"token_ids": [1], "adapter": f"{folder}/{name}"},
        {"token_ids": [1], "adapter": f"{name}\n"},
        {"token_ids": [1], "other": 1},
        b"[",
        b"",
    ):
        status, answer = ask(url, bad)
        assert status == 422, (bad, status, answer)
        assert str(folder) not in str(answer["detail"][0]["msg"]), answer
    status, answer = ask(url, b" " * 20_000_000)
    assert status == 413, (status, answer)
    # A damaged file is an error of its own, which tells no path.
    (folder / "damaged.safetensors").write_bytes(b"nothing")
    status, answer = ask(url, {"token_ids": [1], "adapter": "damaged"})
    assert status == 500, (status, answer)
    assert "/" not in answer["detail"], answer


def show(title, seconds, count, times):
    middle, high, highest = 1e3 * np.percentile(times, [50, 95, 99])
    print(
        f"{title}: {count / seconds:.1f} requests a second; latency "
        f"{middle:.0f} ms (50 %), {high:.0f} ms (95 %), {highest:.0f} ms (99 %)"
    )


if __name__ == "__main__":
    main()
