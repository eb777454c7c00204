"""A web service in which every request names its adapter.

    python examples/serving/service.py --folder ADAPTERS --port 8000

    curl localhost:8000/ -H 'content-type: application/json' \
        -d '{"adapter": "alice", "token_ids": [101, 2023, 102]}'

Requests are collected into batches, whoever they are for. Ray Serve
(`pip install "ray[serve]"`) adds replicas, on other machines too, where one
does not suffice: `--replicas`. It is bound to the loopback address; the proxy
in front of it is yours to choose. `/ready` answers as soon as requests are
answered, `/metrics` gives the counts of one replica in Prometheus's format.
"""

import argparse
import asyncio
import signal
import threading
import time

import fastapi
import prometheus_client
import pydantic
import ray
from answers import LENGTH
from answers import NAME
from answers import VOCABULARY
from answers import Answers
from answers import BusyError
from answers import DamagedAdapterError
from answers import UnknownAdapterError
from answers import adapted_model
from fastapi import exceptions
from ray import serve

BATCH = 32
# Bytes of a request: many times as many as its tokens need.
LARGEST_BODY = 16 * 1024
LARGEST_DISCARDED = 64 * 2**20
# Requests that may wait for an answer at once; others are told to come back
# (503). Ray lets in more, so that counts can be asked for meanwhile.
WAITING, LET_IN = 3 * BATCH, 1_000
Token = pydantic.conint(strict=True, ge=0, lt=VOCABULARY)


class Request(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(extra="forbid")

    adapter: pydantic.constr(pattern=f"^{NAME}$") | None = None
    token_ids: pydantic.conlist(Token, min_length=1, max_length=LENGTH)


class TooLargeError(Exception):
    """A body has more bytes than `LARGEST_BODY`."""


class LimitBody:
    """Answers 413 to bodies that are too large, without reading them whole."""

    def __init__(self, app):
        self.app = app

    async def __call__(self, scope, receive, send):
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        length = dict(scope["headers"]).get(b"content-length", b"0")
        read, more = 0, True

        async def next_part():
            nonlocal read, more
            message = await receive()
            read += len(message.get("body", b""))
            more = message.get("more_body", False)
            return message

        async def limited():
            message = await next_part()
            if read > LARGEST_BODY:
                raise TooLargeError
            return message

        try:
            if not length.isdigit() or int(length) > LARGEST_BODY:
                raise TooLargeError
            return await self.app(scope, limited, send)
        except TooLargeError:
            # Most clients listen only when they have sent all. Nothing is kept.
            while more and read < LARGEST_DISCARDED:
                await next_part()
            answer = fastapi.responses.JSONResponse(
                {"detail": f"a body has at most {LARGEST_BODY} bytes"}, 413
            )
            return await answer(scope, receive, send)


web = fastapi.FastAPI()
web.add_middleware(LimitBody)


@web.exception_handler(exceptions.RequestValidationError)
async def invalid(_, error):
    # Without the values: not all of them could be sent, such as NaN.
    parts = ("type", "loc", "msg")
    detail = [{part: one[part] for part in parts} for one in error.errors()]
    return fastapi.responses.JSONResponse({"detail": detail}, 422)


class Metrics:
    """The counts of one replica."""

    def __init__(self, answers):
        self.registry = prometheus_client.CollectorRegistry()
        common = {"registry": self.registry, "namespace": "bank"}
        prometheus_client.ProcessCollector(registry=self.registry)
        self.requests = prometheus_client.Counter(
            "requests", "Requests by status", ["status"], **common
        )
        self.latency = prometheus_client.Histogram(
            "latency_seconds", "From arrival to answer", **common
        )
        self.batch_size = prometheus_client.Histogram(
            "batch_size",
            "Requests answered together",
            buckets=[2**i for i in range(BATCH.bit_length())],
            **common,
        )
        for name, what in {
            "hits": "Adapters asked for that were in memory",
            "loads": "Adapters loaded from their files",
            "evictions": "Adapters that went for others",
        }.items():
            gauge = prometheus_client.Gauge(f"adapter_{name}", what, **common)
            gauge.set_function(lambda name=name: answers.counts[name])

    def text(self):
        return prometheus_client.generate_latest(self.registry)


@serve.deployment(
    max_ongoing_requests=LET_IN,
    max_queued_requests=LET_IN,
    graceful_shutdown_timeout_s=30,
)
@serve.ingress(web)
class Service:
    def __init__(self, folder, capacity, size):
        self.answers = Answers(
            adapted_model(**size), folder, capacity=capacity, batch=BATCH
        )
        self.metrics = Metrics(self.answers)
        self.waiting = 0
        self.queue = asyncio.Queue()
        self.worker = None

    @web.post("/")
    async def answer(self, request: Request):
        start, status = time.perf_counter(), 500
        self.waiting += 1
        try:
            answer = await self._answer(request)
            status = 200
        except fastapi.HTTPException as error:
            status = error.status_code
            raise
        finally:
            self.waiting -= 1
            self.metrics.requests.labels(status).inc()
            self.metrics.latency.observe(time.perf_counter() - start)
        return answer

    async def _answer(self, request):
        try:
            if self.waiting > WAITING:
                raise BusyError("Too many requests at once")
            await asyncio.to_thread(self.answers.check, request.adapter)
            logits = await self.collected(request)
            if isinstance(logits, Exception):
                raise logits
        except UnknownAdapterError as error:
            (near,) = error.args
            raise fastapi.HTTPException(
                404, {"unknown": request.adapter, "did_you_mean": near}
            ) from None
        except DamagedAdapterError as error:
            raise fastapi.HTTPException(500, str(error)) from None
        except BusyError as error:
            raise fastapi.HTTPException(
                503, str(error), {"retry-after": "1"}
            ) from None
        return {"adapter": request.adapter, "logits": logits.tolist()}

    @web.get("/ready")
    async def ready(self):
        return {"ready": True}

    @web.get("/metrics")
    async def counts(self):
        return fastapi.Response(
            self.metrics.text(),
            media_type=prometheus_client.CONTENT_TYPE_LATEST,
        )

    async def collected(self, request):
        """The answer to a request, in a batch of all that wait."""
        if self.worker is None:
            self.worker = asyncio.create_task(self._work())
        answer = asyncio.get_running_loop().create_future()
        self.queue.put_nowait((request, answer))
        return await answer

    async def _work(self):
        """Answers batch after batch: what comes meanwhile is the next one.

        (Ray's own `serve.batch` would make batches meanwhile, each of what
        comes within milliseconds.)
        """
        while True:
            batch = [await self.queue.get()]
            while len(batch) < BATCH and not self.queue.empty():
                batch.append(self.queue.get_nowait())
            self.metrics.batch_size.observe(len(batch))
            requests = [request for request, _ in batch]
            try:
                # In a thread, so that others are told to wait meanwhile.
                found = await asyncio.to_thread(
                    self.answers,
                    [request.adapter for request in requests],
                    [request.token_ids for request in requests],
                )
            except Exception as error:
                found = [error] * len(batch)
            for (_, answer), logits in zip(batch, found, strict=True):
                if not answer.done():
                    answer.set_result(logits)


def start(folder, port, capacity=256, replicas=1, **size):
    """Starts the service, and returns when it answers."""
    ray.init(
        include_dashboard=False,
        _node_ip_address="127.0.0.1",
        log_to_driver=False,
        configure_logging=False,
        num_cpus=2,
        object_store_memory=100 * 2**20,
    )
    serve.start(
        http_options=serve.HTTPOptions(host="127.0.0.1", port=port),
        logging_config={"log_level": "ERROR", "enable_access_log": False},
    )
    service = Service.options(num_replicas=replicas)
    serve.run(service.bind(str(folder), capacity, size))


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", required=True)
    parser.add_argument("--port", type=int, default=8000)
    parser.add_argument("--capacity", type=int, default=256)
    parser.add_argument("--replicas", type=int, default=1)
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--width", type=int, default=384)
    parser.add_argument("--heads", type=int, default=12)
    args = parser.parse_args()
    size = {"layers": args.layers, "width": args.width, "heads": args.heads}
    asked_to_stop = threading.Event()
    for name in (signal.SIGTERM, signal.SIGINT):
        signal.signal(name, lambda *_: asked_to_stop.set())
    start(args.folder, args.port, args.capacity, args.replicas, **size)
    print("ready", flush=True)
    asked_to_stop.wait()
    # What is being answered is answered first.
    serve.shutdown()
    ray.shutdown()


if __name__ == "__main__":
    main()
