"""Data that lie elsewhere: an S3 interface and HTTP servers on this machine, with and without ranges, some broken."""

import contextlib
import http.server
import os
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from ssdd.data import remote
from ssdd.data.images import ImageError
from ssdd.tokenization import LatentDataset, finish, tokenize, verify
from tests.tokenization.conftest import NAMES, Bar, Job

Tree = Callable[[Path], dict[str, bytes]]
fsspec = pytest.importorskip("fsspec", reason="needs the extra: pip install 'ssdd[remote]'")


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote, "_PAUSE_SECONDS", 0.001)


@pytest.fixture(scope="module")
def tars(photographs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The photographs as two tar files."""
    import tarfile

    folder = tmp_path_factory.mktemp("tars")
    for shard in range(2):
        with tarfile.open(folder / f"{shard}.tar", "w") as tar:
            for name in [name for name in NAMES if "broken" not in name][shard::2]:  # its reason names the place
                tar.add(photographs / name, name)
    return folder


@pytest.fixture(scope="module")
def local(job: Job, tars: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The set of these tar files, as they lie on this machine."""
    out = tmp_path_factory.mktemp("local") / "out"
    tokenize(job(paths=(str(tars),), shard_images=None), out, workers=0)
    return out


def visible(files: dict[str, bytes]) -> dict[str, bytes]:
    """Files whose bytes do not say where the data lay."""
    return {name: content for name, content in files.items() if name.startswith("shard")}


@contextlib.contextmanager
def s3_server(**variables: str) -> Iterator[None]:
    """Run an S3 interface, with variables of its own, and have the environment name it."""
    pytest.importorskip("s3fs", reason="needs the extra: pip install 'ssdd[remote]'")
    pytest.importorskip("moto", reason="needs the extra: pip install 'ssdd[dev]'")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    server = subprocess.Popen(
        [sys.executable, "-c", "from moto.server import main; main()", "-H", "127.0.0.1", "-p", str(port)],
        env={**os.environ, **variables},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    environment = {
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}",
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
    }
    try:
        with pytest.MonkeyPatch.context() as patch:
            for name, value in environment.items():
                patch.setenv(name, value)
            end = time.monotonic() + 60
            while True:
                with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
                    break
                assert time.monotonic() < end, "no server"
                time.sleep(0.1)
            _forget_connections()
            yield
    finally:
        _forget_connections()
        server.kill()
        server.wait()


def _forget_connections() -> None:
    fsspec.get_filesystem_class("s3").clear_instance_cache()


@pytest.fixture(scope="module")
def bucket(tars: Path) -> Iterator[str]:
    with s3_server():
        system = fsspec.filesystem("s3")
        system.mkdir("bucket")
        system.put(str(tars), "bucket/tars", recursive=True)
        yield "s3://bucket"


@pytest.fixture
def guarded_bucket() -> Iterator[str]:
    """A bucket on a server that knows nobody."""
    with s3_server(INITIAL_NO_AUTH_ACTION_COUNT="0"):
        yield "s3://bucket"


@pytest.mark.parametrize("paths", ["tars", "tars/*.tar", "tars/{0..1}.tar"])
def test_s3_in(job: Job, bucket: str, local: Path, tmp_path: Path, tree: Tree, paths: str) -> None:
    tokenize(job(paths=(f"{bucket}/{paths}",), shard_images=None), tmp_path / "out", workers=1)
    assert visible(tree(tmp_path / "out")) == visible(tree(local))


@pytest.mark.slow
def test_s3_out(job: Job, bucket: str, tars: Path, local: Path, tmp_path: Path, tree: Tree) -> None:
    """Two processes; a second call finds all there; what is lost is made again."""
    system, out = fsspec.filesystem("s3"), f"{bucket}/latents"
    settings = job(paths=(str(tars),), shard_images=None)
    assert tokenize(settings, out, processes=2).made == 2
    assert tokenize(settings, out, workers=0).kept == 2
    system.rm("bucket/latents/shard-000001.tar")
    system.rm("bucket/latents/manifest.json")
    with pytest.raises(ValueError, match="expected all 2 shards, found 1 missing"):
        finish(out)
    done = tokenize(settings, out, workers=0)
    assert (done.made, done.kept) == (1, 1)
    system.get("bucket/latents", str(tmp_path / "copy"), recursive=True)
    assert visible(tree(tmp_path / "copy")) == visible(tree(local))
    assert verify(tmp_path / "copy") == []
    with pytest.raises(ValueError, match="begun with other settings"):
        tokenize(job(paths=(str(tars),), shard_images=None, size=16), out, workers=0)


def test_listed_images_to_s3(job: Job, bucket: str, whole: Path, tmp_path: Path, tree: Tree) -> None:
    tokenize(job(flips=True), f"{bucket}/listed", workers=0)
    fsspec.filesystem("s3").get("bucket/listed", str(tmp_path / "copy"), recursive=True)
    assert visible(tree(tmp_path / "copy")) == visible(tree(whole))
    assert len(LatentDataset(tmp_path / "copy")) == len(LatentDataset(whole))


def test_nothing_there(job: Job, bucket: str, tmp_path: Path) -> None:
    for path, message in {
        "nothing": "expected tar or Parquet files, or images, found none",
        "x.tar": "found none",
    }.items():
        with pytest.raises(ImageError, match=message):
            tokenize(job(paths=(f"{bucket}/{path}",), shard_images=None), tmp_path / "out", workers=0)


class Handler(http.server.BaseHTTPRequestHandler):
    """Gives files of a folder: as a whole, or by ranges; it breaks off some answers."""

    folder: Path
    ranges = False
    breaks = 0
    status: int | None = None
    requests = 0
    lock = threading.Lock()

    def do_HEAD(self) -> None:
        self.answer(head=True)

    def do_GET(self) -> None:
        self.answer(head=False)

    def answer(self, head: bool) -> None:
        type(self).requests += 1
        if self.status is not None:
            self.send_error(self.status)
            return
        path = self.folder / self.path.lstrip("/")
        if not path.is_file():
            self.send_error(404)
            return
        content, first, last = path.read_bytes(), 0, path.stat().st_size - 1
        wanted = self.headers.get("Range")
        if self.ranges and wanted:
            first, last = (int(word or last) for word in wanted.removeprefix("bytes=").split("-"))
            last = min(last, len(content) - 1)
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {first}-{last}/{len(content)}")
        else:
            self.send_response(200)
        if self.ranges:
            self.send_header("Accept-Ranges", "bytes")
        self.send_header("Content-Length", str(last + 1 - first))
        self.end_headers()
        if head:
            return
        with self.lock:
            breaks = type(self).breaks > 0
            type(self).breaks -= breaks
        part = content[first : last + 1]
        self.wfile.write(part[: len(part) // 2] if breaks else part)
        if breaks:
            self.wfile.flush()
            self.connection.shutdown(socket.SHUT_RDWR)

    def log_message(self, *arguments: object) -> None:
        """Say nothing."""


@pytest.fixture
def server(tars: Path) -> Iterator[tuple[str, type[Handler]]]:
    pytest.importorskip("aiohttp", reason="needs the extra: pip install 'ssdd[remote]'")
    handler = type("OwnHandler", (Handler,), {"folder": tars})
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as running:
        thread = threading.Thread(target=running.serve_forever, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{running.server_address[1]}", handler
        running.shutdown()


@pytest.mark.parametrize("ranges", [True, False])
@pytest.mark.parametrize("breaks", [0, 2])
def test_http(
    job: Job, server: tuple[str, type[Handler]], local: Path, tmp_path: Path, tree: Tree, ranges: bool, breaks: int
) -> None:
    """A connection that breaks is tried again."""
    address, handler = server
    handler.ranges, handler.breaks = ranges, breaks
    tokenize(job(paths=(f"{address}/{{0..1}}.tar",), shard_images=None), tmp_path / "out", workers=0)
    assert visible(tree(tmp_path / "out")) == visible(tree(local))
    assert handler.breaks == 0


def test_an_image_that_is_gone_is_not_a_broken_one(job: Job, photographs: Path, tmp_path: Path) -> None:
    """It would be skipped for ever."""
    system = fsspec.filesystem("memory")
    for name in ("0.png", "1.png"):
        system.pipe(f"/gone/{name}", (photographs / "ant" / name).read_bytes())
    settings = job(paths=("memory://gone",), shard_images=1)
    with pytest.raises(OSError, match=r"1\.png: expected the image that was listed, found none: put the data back"):
        tokenize(settings, tmp_path / "out", workers=0, progress=Bar(lambda done: system.rm("/gone/1.png")))
    system.pipe("/gone/1.png", (photographs / "ant" / "1.png").read_bytes())
    done = tokenize(settings, tmp_path / "out", workers=0)
    assert done.manifest is not None
    assert done.manifest.skipped_images == 0


def test_a_connection_that_always_breaks_is_named(
    job: Job, server: tuple[str, type[Handler]], local: Path, tmp_path: Path, tree: Tree
) -> None:
    """Nothing is half-written, and the same command goes on when it works again."""
    address, handler = server
    handler.breaks = 1000
    settings = job(paths=(f"{address}/{{0..1}}.tar",), shard_images=None)
    with pytest.raises(ImageError, match=r"/0\.tar: expected to read it, found in 4 attempts: ") as caught:
        tokenize(settings, tmp_path / "out", workers=0)
    assert "\n" not in str(caught.value)
    assert [name for name in os.listdir(tmp_path / "out") if name.startswith(("shard", ".reading"))] == []
    handler.breaks = 0
    tokenize(settings, tmp_path / "out", workers=0)
    assert visible(tree(tmp_path / "out")) == visible(tree(local))
    shutil.rmtree(tmp_path / "out")


@pytest.mark.parametrize("credentials", ["wrong", "none"])
def test_credentials_that_do_not_fit_are_named_at_once(
    job: Job, guarded_bucket: str, tars: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, credentials: str
) -> None:
    """Another attempt would not help: as input, as a pattern, as output."""
    monkeypatch.setattr(remote, "_PAUSE_SECONDS", 1000)
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        if credentials == "none":
            monkeypatch.delenv(name)
    reason = "Unable to locate credentials" if credentials == "none" else "Forbidden|The AWS Access Key Id"
    for paths, out in {
        (f"{guarded_bucket}/{{0..1}}.tar",): str(tmp_path / "out"),
        (f"{guarded_bucket}/*.tar",): str(tmp_path / "out"),
        (str(tars),): f"{guarded_bucket}/out",
    }.items():
        with pytest.raises(ImageError, match=rf"s3://bucket/\S+: expected to (read|write) it, found ({reason})"):
            tokenize(job(paths=paths, shard_images=None), out, workers=0)


@pytest.mark.parametrize(("status", "attempts"), [(403, 1), (401, 1), (503, 4)])
def test_answers_of_a_server(
    job: Job, server: tuple[str, type[Handler]], tmp_path: Path, status: int, attempts: int
) -> None:
    """fsspec says "not found" for all of them."""
    address, handler = server
    handler.status = status
    found = "found in 4 attempts: " if attempts > 1 else "found "
    with pytest.raises(ImageError, match=rf"/0\.tar: expected to read it, {found}{status}, "):
        tokenize(job(paths=(f"{address}/{{0..1}}.tar",), shard_images=None), tmp_path / "out", workers=0)
    assert handler.requests <= 2 * attempts, "a HEAD and a GET an attempt"
