"""A web service in which every request names its adapter.

    python examples/serving/service.py --folder ADAPTERS --port 8000

    curl localhost:8000/ -H 'content-type: application/json' \
        -d '{"adapter": "alice", "token_ids": [101, 2023, 102]}'

Ray Serve (`pip install "ray[serve]"`) collects requests into batches, whoever
they are for, and adds replicas, on other machines too, where one does not
suffice: `--replicas`. It is bound to the loopback address; what stands before
it, in the open, is yours to choose.
"""

import argparse
import time

import fastapi
import pydantic
import ray
from answers import LENGTH
from answers import VOCABULARY
from answers import Answers
from answers import UnknownAdapterError
from answers import adapted_model
from ray import serve

BATCH = 32
NAME = r"^[A-Za-z0-9_-][A-Za-z0-9._-]{0,99}$"
Token = pydantic.conint(strict=True, ge=0, lt=VOCABULARY)


class Request(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(extra="forbid")

    adapter: pydantic.constr(pattern=NAME) | None = None
    token_ids: pydantic.conlist(Token, min_length=1, max_length=LENGTH)


web = fastapi.FastAPI()


@serve.deployment(max_ongoing_requests=4 * BATCH)
@serve.ingress(web)
class Service:
    def __init__(self, folder, capacity, size):
        self.answers = Answers(
            adapted_model(**size), folder, capacity=capacity, batch=BATCH
        )
        self.sizes = []

    @web.post("/")
    async def answer(self, request: Request):
        try:
            self.answers.check(request.adapter)
        except UnknownAdapterError as error:
            (near,) = error.args
            raise fastapi.HTTPException(
                404, {"unknown": request.adapter, "did_you_mean": near}
            ) from None
        logits = await self.collected(request)
        if isinstance(logits, Exception):
            raise fastapi.HTTPException(500, str(logits))
        return {"adapter": request.adapter, "logits": logits.tolist()}

    @web.get("/batches")
    async def batches(self):
        """The sizes of the batches so far."""
        return self.sizes

    @serve.batch(max_batch_size=BATCH, batch_wait_timeout_s=0.005)
    async def collected(self, requests):
        self.sizes.append(len(requests))
        # Not in a thread: Ray would collect meanwhile, batch by batch, what
        # comes within 5 ms. So it waits, and makes one batch.
        return self.answers(
            [request.adapter for request in requests],
            [request.token_ids for request in requests],
        )


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
    args = parser.parse_args()
    start(args.folder, args.port, args.capacity, args.replicas)
    while True:
        time.sleep(60)


if __name__ == "__main__":
    main()
