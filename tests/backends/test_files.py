import threading

import pytest

from punie.backends import _files


def test_a_replacement_is_whole_or_not_at_all(tmp_path):
    path = tmp_path / "new" / "file"

    def interrupted() -> None:
        with _files.replacing(path) as part:
            part.write_text("half")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        interrupted()
    assert list(path.parent.iterdir()) == []
    with _files.replacing(path) as part:
        part.write_text("whole")
        assert not path.exists()
    assert path.read_text() == "whole"
    assert list(path.parent.iterdir()) == [path]


def test_a_checksum_is_trusted_until_the_file_changes(tmp_path):
    path = tmp_path / "file"
    path.write_text("good")
    good = _files.sha256(path)
    assert not _files.matches(path, "0" * 64)
    assert not _files.is_stamped(path)
    assert _files.matches(path, good)
    assert _files.is_stamped(path)
    assert not _files.matches(path, "0" * 64), "a stamp for one checksum says nothing about another"
    path.write_text("longer than it was")
    assert not _files.is_stamped(path)
    assert not _files.matches(path, good)


@pytest.mark.parametrize("stamp", ["", "not json", "[]", '{"size": 4}'])
def test_a_broken_stamp_is_no_stamp(tmp_path, stamp):
    path = tmp_path / "file"
    path.write_text("good")
    _files.stamp_path(path).write_text(stamp)
    assert not _files.is_stamped(path)
    assert _files.matches(path, _files.sha256(path))


def test_a_damaged_file_is_moved_not_deleted(tmp_path):
    path = tmp_path / "file"
    path.write_text("bad")
    _files.stamp(path, "0" * 64)
    aside = _files.move_aside(path)
    assert aside.read_text() == "bad"
    assert list(tmp_path.iterdir()) == [aside]


def test_one_at_a_time(tmp_path):
    order = []

    def other() -> None:
        with _files.locked(tmp_path):
            order.append("second")

    with _files.locked(tmp_path):
        thread = threading.Thread(target=other)
        thread.start()
        thread.join(0.1)
        order.append("first")
    thread.join()
    assert order == ["first", "second"]
