import os

import pytest

from punie.backends._cores import physical_cores, spins


@pytest.fixture
def machine(tmp_path, monkeypatch):
    """Four hardware threads on two cores, all of them allowed, no limit."""
    monkeypatch.setattr("sys.platform", "linux")
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1, 2, 3}, raising=False)
    for cpu in range(4):
        topology = tmp_path / "cpus" / f"cpu{cpu}" / "topology"
        topology.mkdir(parents=True)
        (topology / "thread_siblings_list").write_text(f"{cpu % 2},{cpu % 2 + 2}\n")
    return {"cpus": tmp_path / "cpus", "cgroup": tmp_path / "cgroup"}


def test_threads_of_one_core_count_once(machine):
    assert physical_cores(**machine) == 2


@pytest.mark.parametrize(
    ("limit", "cores"), [("max 100000", 2), ("100000 100000", 1), ("50000 100000", 1), ("900000 100000", 2)]
)
def test_a_container_is_given_what_its_quota_allows(machine, limit, cores):
    machine["cgroup"].mkdir()
    (machine["cgroup"] / "cpu.max").write_text(limit + "\n")
    assert physical_cores(**machine) == cores


def test_the_older_kind_of_quota(machine):
    folder = machine["cgroup"] / "cpu"
    folder.mkdir(parents=True)
    (folder / "cpu.cfs_period_us").write_text("100000\n")
    for quota, cores in (("-1\n", 2), ("100000\n", 1)):
        (folder / "cpu.cfs_quota_us").write_text(quota)
        assert physical_cores(**machine) == cores


def test_a_machine_that_tells_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr("sys.platform", "linux")
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1, 2}, raising=False)
    assert physical_cores(cpus=tmp_path, cgroup=tmp_path) == 3


def test_threads_sleep_when_others_want_the_cores():
    assert spins(2, load=0.3) > 0
    assert spins(2, load=6.0) == 0
