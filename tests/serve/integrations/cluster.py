"""A Ray cluster of two nodes in this machine, and a client of what is deployed on it."""

import os
import time
from collections.abc import Generator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

from ferryman.client import Client

from ..server.process import free_address

NAME = "ferryman"


class Cluster:
    """Two nodes, each with room for one replica; a client reaches all by the proxy of the first."""

    def __init__(self) -> None:
        if "FERRYMAN_RAY" not in os.environ:
            pytest.skip("set FERRYMAN_RAY (minutes; pip install '.[ray]')")
        from ferryman.integrations.ray import start

        self._ray: Any = import_module("ray")
        self._serve: Any = import_module("ray.serve")
        head = {"num_cpus": 1, "include_dashboard": False}
        self.nodes: Any = import_module("ray.cluster_utils").Cluster(initialize_head=True, head_node_args=head)
        self.second = self.nodes.add_node(num_cpus=1)
        self._ray.init(address=self.nodes.address, log_to_driver=False)
        self.address = free_address()
        start(int(self.address.rpartition(":")[2]))

    def deploy(self, repository: Path, **options: object) -> Any:
        """A handle to it."""
        from ferryman.integrations.ray import Options, app

        facts = Options(repository=repository, **options)  # pyright: ignore
        return self._serve.run(app(facts), name=NAME, route_prefix="/ferryman")

    def replicas(self) -> dict[str, int]:
        """How many are in each state, by its name."""
        deployment = self._serve.status().applications[NAME].deployments[NAME]
        return {str(getattr(state, "value", state)): count for state, count in deployment.replica_states.items()}

    @contextmanager
    def client(self, model: str) -> Generator[Client]:
        with Client(self.address, timeout=60) as client:
            end = time.monotonic() + 120
            while not client.is_ready(model):  # a proxy that has not heard of the application finds nothing
                assert time.monotonic() < end
                time.sleep(0.2)
            yield client

    def end(self) -> None:
        self._serve.shutdown()
        self._ray.shutdown()
        self.nodes.shutdown()
