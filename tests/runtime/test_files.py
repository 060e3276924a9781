"""Output files: complete or absent, and never replaced by accident."""

import errno
import fcntl
import os
import pickle
import threading
from pathlib import Path

import pytest

from ssdd.runtime import files
from ssdd.runtime.files import OutputExists, atomic_path, one_after_another, only_one, share


@pytest.fixture(params=["links", "no links"])
def either_file_system(request, monkeypatch):
    """Run a test twice: where hard links work, and where the file system refuses them."""
    if request.param == "no links":

        def refuse(*args, **kwargs):
            raise OSError(errno.EPERM, "Operation not permitted")

        monkeypatch.setattr(os, "link", refuse)


def write(target, text, overwrite=False, then=lambda: None):
    """Write `text` to `target` atomically; `then` runs before the block ends."""
    with atomic_path(target, overwrite) as temporary:
        temporary.write_text(text)
        then()


def fail(error):
    raise error


@pytest.mark.usefixtures("either_file_system")
@pytest.mark.parametrize("overwrite", [False, True])
def test_file_appears_complete_and_alone(tmp_path, overwrite):
    target = tmp_path / "new" / "folder" / "out.png"
    with atomic_path(target, overwrite) as temporary:
        temporary.write_bytes(b"first half, ")
        assert not target.exists(), "a reader could see a half-written file"
        with temporary.open("ab") as file:
            file.write(b"second half")
    assert target.read_bytes() == b"first half, second half", "the file is not what was written"
    assert os.listdir(target.parent) == ["out.png"], "the temporary file was left behind"
    assert os.stat(target).st_nlink == 1, "the file shares its content with another name"


def test_temporary_is_hidden_unique_and_keeps_the_suffix(tmp_path):
    target = tmp_path / "latents.tar.gz"
    with atomic_path(target, overwrite=True) as one, atomic_path(target, overwrite=True) as two:
        assert one.parent == two.parent == tmp_path, "another folder may be another disk: no atomic rename"
        assert one.name.startswith("."), "folder walks would pick up a half-written file"
        assert str(os.getpid()) in one.name, "the name does not tell the process"
        assert one.name.endswith("latents.tar.gz"), "writers that look at the suffix pick another format"
        assert one != two, "two writers of one file would write into each other's temporary"
        one.write_text("one")
        two.write_text("two")
    assert target.read_text() == "one", "the block that ended last did not leave its file"


@pytest.mark.usefixtures("either_file_system")
def test_long_names_fit(tmp_path):
    """A name that the file system just allows must not fail for the sake of our temporary's prefix."""
    target = tmp_path / ("é" * 125 + ".png")
    write(target, "x")
    assert target.read_text() == "x"


def test_existing_file_stops_before_the_work(tmp_path):
    target = tmp_path / "out.png"
    target.write_text("precious")
    with pytest.raises(OutputExists) as caught, atomic_path(target):
        pytest.fail("the block ran although its result could not be kept")
    message = str(caught.value)
    assert str(target) in message, "the message does not name the file"
    assert "--overwrite" in message, "the message does not say what to do"
    assert "\n" not in message, "the message is not one line"
    assert isinstance(caught.value, FileExistsError), "callers that know only Python's own error miss it"
    assert str(pickle.loads(pickle.dumps(caught.value))) == message, "the error does not survive a worker"
    assert target.read_text() == "precious", "the existing file was changed"


@pytest.mark.usefixtures("either_file_system")
def test_file_that_appears_during_the_block_is_kept(tmp_path):
    target = tmp_path / "out.png"
    with pytest.raises(OutputExists):
        write(target, "ours", then=lambda: target.write_text("theirs"))
    assert target.read_text() == "theirs", "a file that appeared meanwhile was replaced without --overwrite"
    assert os.listdir(tmp_path) == ["out.png"], "the temporary file was left behind"


def test_dangling_link_counts_as_existing(tmp_path):
    target = tmp_path / "out.png"
    target.symlink_to(tmp_path / "nowhere")
    with pytest.raises(OutputExists), atomic_path(target):
        pytest.fail("the link would have been replaced")
    assert target.is_symlink(), "the link was replaced"


def test_overwrite_replaces(tmp_path):
    target = tmp_path / "out.png"
    target.write_text("old")
    with atomic_path(target, overwrite=True) as temporary:
        temporary.write_text("new")
        assert target.read_text() == "old", "the old file went before the new one was complete"
    assert target.read_text() == "new", "--overwrite did not replace the file"


@pytest.mark.usefixtures("either_file_system")
@pytest.mark.parametrize("error", [ValueError("no"), KeyboardInterrupt()])
def test_exception_leaves_nothing(tmp_path, error):
    with pytest.raises(type(error)):
        write(tmp_path / "out.png", "half", then=lambda: fail(error))
    assert os.listdir(tmp_path) == [], "a failed write left something behind"


def test_exception_keeps_the_old_file(tmp_path):
    target = tmp_path / "out.png"
    target.write_text("old")
    with pytest.raises(ValueError, match="no"):
        write(target, "half", overwrite=True, then=lambda: fail(ValueError("no")))
    assert target.read_text() == "old", "a failed overwrite lost the old file"


def test_block_that_writes_nothing_is_an_error(tmp_path):
    with pytest.raises(FileNotFoundError), atomic_path(tmp_path / "out.png"):
        pass
    assert os.listdir(tmp_path) == [], "an empty file stands for one that was never written"


def test_failed_placing_leaves_no_claim(tmp_path, monkeypatch):
    """Without hard links the name is claimed by an empty file, which must go if the rename then fails."""

    def refuse(*args, **kwargs):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, "link", refuse)
    monkeypatch.setattr(os, "replace", refuse)
    with pytest.raises(OSError, match="Input/output"):
        write(tmp_path / "out.png", "x")
    assert os.listdir(tmp_path) == [], "an empty claim or a temporary was left behind"


@pytest.mark.parametrize("overwrite", [False, True])
def test_folder_is_refused(tmp_path, overwrite):
    with pytest.raises(IsADirectoryError, match="folder"), atomic_path(tmp_path, overwrite):
        pytest.fail("the block ran although its result has no place")


def test_content_is_synced_before_it_appears(tmp_path, monkeypatch):
    synced = []
    real = os.fsync

    def record(descriptor):
        real(descriptor)
        synced.append((os.fstat(descriptor).st_ino, (tmp_path / "out").exists()))

    monkeypatch.setattr(files.os, "fsync", record)
    write(tmp_path / "out", "x")
    inode = os.stat(tmp_path / "out").st_ino
    assert synced == [(inode, False)], "after a power cut the name could stand for an empty file"


def test_permissions_are_the_users_own(tmp_path):
    (tmp_path / "plain").write_text("x")
    write(tmp_path / "atomic", "x")
    expected = os.stat(tmp_path / "plain").st_mode
    assert os.stat(tmp_path / "atomic").st_mode == expected, "others cannot read what they could before"


@pytest.mark.usefixtures("either_file_system")
def test_of_many_writers_one_wins(tmp_path):
    target = tmp_path / "out"
    barrier = threading.Barrier(8)
    outcomes: list[str] = []

    def compete(index: int) -> None:
        try:
            write(target, str(index), then=lambda: barrier.wait(timeout=10))
            outcomes.append(str(index))
        except OutputExists:
            outcomes.append("refused")

    threads = [threading.Thread(target=compete, args=(i,)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    winners = [outcome for outcome in outcomes if outcome != "refused"]
    assert len(outcomes) == 8, "a writer failed in another way than by OutputExists"
    assert winners == [target.read_text()], "several writers believe that their file is in place"


def test_share_follows_the_umask(tmp_path: Path) -> None:
    """A model that one user trained would be unreadable for all others."""
    path = tmp_path / "weights.safetensors"
    path.touch(mode=0o600)
    mask = os.umask(0o027)
    try:
        share(path)
        assert os.umask(0o027) == 0o027, "the process' umask was changed"
    finally:
        os.umask(mask)
    assert path.stat().st_mode & 0o777 == 0o640


def test_a_file_system_without_locks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog) -> None:
    """On some of Lustre ``generate sample`` and ``tokenize --part`` could not end."""

    def refuse(*_: object) -> None:
        raise OSError(errno.ENOSYS, "Function not implemented")

    monkeypatch.setattr(fcntl, "flock", refuse)
    with only_one(tmp_path), one_after_another(tmp_path):
        assert caplog.text.count("cannot be locked ([Errno 38] Function not implemented)") == 2
