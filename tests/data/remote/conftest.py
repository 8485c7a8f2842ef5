"""A local S3 server, and a store that fails every third read."""

import itertools
import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from unveil.data.remote import store


@pytest.fixture(autouse=True)
def private_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Nothing outside of the test's folder, and no long waits."""
    monkeypatch.setenv("UNVEIL_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(store, "FIRST_DELAY", 0.001)
    return tmp_path / "cache"


class FailingStore(MemoryFileSystem):
    """flaky://: every third read fails, in one of the ways in which stores do."""

    protocol = "flaky"
    store: ClassVar[dict[str, Any]] = {}
    pseudo_dirs: ClassVar[list[str]] = [""]
    reads = itertools.count(1)
    answered = 0

    @classmethod
    def _strip_protocol(cls, path: str) -> str:
        return super()._strip_protocol(path.removeprefix("flaky://"))

    def cat_file(self, path: str, start: int | None = None, end: int | None = None, **options: Any) -> bytes:
        number = next(FailingStore.reads)
        data = super().cat_file(path, start, end, **options)
        if number % 3 == 0:
            if number % 6 == 0:
                return data[: len(data) // 2]
            raise ConnectionResetError(104, "Connection reset by peer")
        FailingStore.answered += 1
        return data


@pytest.fixture
def flaky() -> Iterator[MemoryFileSystem]:
    """The file system of flaky://."""
    fsspec.register_implementation("flaky", FailingStore, clobber=True)
    FailingStore.store, FailingStore.reads, FailingStore.answered = {}, itertools.count(1), 0
    yield fsspec.filesystem("flaky")
    FailingStore.store = {}


@pytest.fixture(scope="module")
def s3() -> Iterator[Callable[[str, Path], None]]:
    """(key, file): put it into s3://bucket. The server answers every third reading of an object with an error."""
    from moto.server import DomainDispatcherApplication, create_backend_app
    from werkzeug.serving import make_server

    application = DomainDispatcherApplication(create_backend_app)
    numbers = itertools.count(1)

    def every_third_fails(environment: dict[str, Any], start_response: Callable[..., Any]) -> Any:
        if (
            environment["REQUEST_METHOD"] == "GET"
            and environment["PATH_INFO"].endswith(".tar")
            and next(numbers) % 3 == 0
        ):
            start_response("503 Slow Down", [("Content-Length", "0")])
            return [b""]
        return application(environment, start_response)

    server = make_server("127.0.0.1", 0, every_third_fails, threaded=True)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    settings = {
        "AWS_ACCESS_KEY_ID": "testing",
        "AWS_SECRET_ACCESS_KEY": "testing",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{server.server_port}",
    }
    before = {name: os.environ.get(name) for name in settings}
    os.environ.update(settings)
    system = fsspec.filesystem("s3")
    system.mkdir("bucket")
    yield lambda key, file: system.put_file(str(file), f"bucket/{key}")
    server.shutdown()
    for name, value in before.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value
    type(system).clear_instance_cache()


class WebServer(NamedTuple):
    """A web server of this machine that fails at every third question for a tar, HEAD as well as GET."""

    address: str
    folder: Path
    """What it serves; below `whole/` without regard to the range asked for, below `secret/` and `down/` never."""


@pytest.fixture
def web(tmp_path: Path) -> Iterator[WebServer]:
    from flask import Flask, Response, abort, request, send_from_directory
    from werkzeug.serving import make_server

    application, numbers, folder = Flask(__name__), itertools.count(1), tmp_path / "served"
    folder.mkdir()

    @application.get("/<path:name>")
    def get(name: str) -> Response:
        if name.startswith("secret/"):
            abort(403)
        if name.startswith("down/") or (name.endswith(".tar") and next(numbers) % 3 == 0):
            abort(503)
        # Without an ETag, like the plainest of servers: only the time tells versions apart.
        return send_from_directory(
            folder, name, etag=False, conditional=not (name.startswith("whole/") and "Range" in request.headers)
        )

    server = make_server("127.0.0.1", 0, application, threaded=True)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield WebServer(f"http://127.0.0.1:{server.server_port}", folder)
    server.shutdown()
