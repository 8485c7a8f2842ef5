"""Order and skips: slow tests last, GPU tests only where there is a GPU. Side by side they share the cores."""

import os

import pytest
import torch

PROCESSES = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))


def pytest_configure() -> None:
    if PROCESSES > 1:
        threads = max(1, (os.cpu_count() or 1) // PROCESSES)
        torch.set_num_threads(threads)
        # For the processes that tests start.
        os.environ["OMP_NUM_THREADS"] = str(threads)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: item.get_closest_marker("slow") is not None)
    if PROCESSES > 1:
        # A file's tests are all one process's: those that take long begin first, or it works alone at the end.
        long = {item.path for item in items if item.get_closest_marker("slow")}
        items.sort(key=lambda item: item.path not in long)
    if not torch.cuda.is_available():
        for item in items:
            if item.get_closest_marker("gpu"):
                item.add_marker(pytest.mark.skip(reason="no CUDA device"))
