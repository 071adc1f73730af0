"""Groups of processes: who they are, and how they agree on a folder."""

import threading

import pytest
import torch
from torch.distributed import HashStore

from sp_profile import run_group, work_folder
from sp_profile.lock import folder_lock, join_lock
from sp_profile.run_group import Exchange, RunGroup, current_group, group_device
from sp_profile.work_folder import WorkKind, open_work
from sp_runtime.errors import FolderLockedError, ResourceError, SpError, UsageError

TORCHRUN = {"RANK": "3", "WORLD_SIZE": "8", "LOCAL_RANK": "1", "TORCHELASTIC_RUN_ID": "abc"}


def test_group_is_read_from_the_variables_of_torchrun():
    group = current_group(TORCHRUN)
    assert group == RunGroup(rank=3, world_size=8, local_rank=1, run_id="abc")
    assert not group.is_first
    assert not group.is_alone


@pytest.mark.parametrize("missing", ["RANK", "WORLD_SIZE"])
def test_without_a_launcher_a_process_is_alone(missing):
    group = current_group({name: value for name, value in TORCHRUN.items() if name != missing})
    assert group == RunGroup()
    assert group.is_first
    assert group.is_alone


@pytest.mark.parametrize(
    "change", [{"RANK": "8"}, {"RANK": "-1"}, {"WORLD_SIZE": "many"}, {"LOCAL_RANK": "-2"}]
)
def test_impossible_places_are_usage_errors(change):
    with pytest.raises(UsageError) as caught:
        current_group({**TORCHRUN, **change})
    assert "torchrun" in caught.value.hint


@pytest.mark.parametrize(("local_rank", "name"), [(0, "cuda:0"), (1, "cuda:1"), (5, "cuda:1")])
def test_ranks_spread_over_the_gpus_of_their_host(monkeypatch, local_rank, name):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert group_device(RunGroup(rank=5, world_size=6, local_rank=local_rank)) == name


def test_host_without_a_gpu_is_a_usage_error(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    with pytest.raises(UsageError, match="no GPU"):
        group_device(RunGroup())


def test_silence_of_the_first_process_is_an_error():
    class Silent:
        def get(self, key):
            raise torch.distributed.DistStoreError("wait timeout")

    with pytest.raises(SpError, match="did not answer"):
        Exchange(Silent()).hear("open x")


def test_members_join_the_lock_of_their_group_and_nobody_else(tmp_path):
    with folder_lock(tmp_path, processes=2) as lock:
        with pytest.raises(FolderLockedError), join_lock(tmp_path, lock.token):
            pass
        lock.admit()
        with join_lock(tmp_path, lock.token):
            with pytest.raises(FolderLockedError, match=r"\(first of 2\)"), folder_lock(tmp_path):
                pass
            with pytest.raises(FolderLockedError), join_lock(tmp_path, "another"):
                pass


def test_living_member_keeps_strangers_out_after_the_first_has_gone(tmp_path):
    with folder_lock(tmp_path) as lock:
        lock.admit()
        member = join_lock(tmp_path, lock.token)
        member.__enter__()
    with pytest.raises(FolderLockedError), folder_lock(tmp_path):
        pass
    member.__exit__(None, None, None)
    with folder_lock(tmp_path):
        pass


KIND = WorkKind(
    config=RunGroup, units=lambda config: ("a", "b"), data="units", suffix=".txt", command="x"
)


@pytest.fixture
def exchange(monkeypatch):
    exchange = Exchange(HashStore())
    monkeypatch.setattr(work_folder, "connect", lambda group: exchange)
    return exchange


def member_result(path, config):
    """What a member of a group of two gets, in a thread that waits for the first process."""
    found = []

    def join():
        try:
            with open_work(path, KIND, config, group=RunGroup(rank=1, world_size=2)) as work:
                found.append(work.finished)
        except SpError as error:
            found.append(error)

    thread = threading.Thread(target=join)
    thread.start()
    return thread, found


def test_members_raise_what_the_first_process_raised(exchange, tmp_path, monkeypatch):
    thread, found = member_result(tmp_path / "run", RunGroup())

    def full(*args, **options):
        raise ResourceError("no space", hint="make room")

    monkeypatch.setattr(work_folder, "publish_bytes", full)
    group = RunGroup(rank=0, world_size=2)
    with (
        pytest.raises(ResourceError),
        open_work(tmp_path / "run", KIND, RunGroup(), group=group),
    ):
        pass
    thread.join(timeout=30)
    assert isinstance(found[0], ResourceError)
    assert (found[0].message, found[0].hint) == ("no space", "make room")


def test_member_with_another_configuration_is_refused(exchange, tmp_path):
    thread, found = member_result(tmp_path / "run", RunGroup(run_id="other"))
    group = RunGroup(rank=0, world_size=2)
    with open_work(tmp_path / "run", KIND, RunGroup(), group=group) as work:
        thread.join(timeout=30)
        assert "run_id" in found[0].message
        with work.claim("a") as mine:
            assert mine
            work.add("a", b"1")
        with work.claim("a") as mine:
            assert not mine


def test_missing_address_is_a_usage_error(monkeypatch):
    monkeypatch.delenv("MASTER_ADDR", raising=False)
    monkeypatch.delenv("MASTER_PORT", raising=False)
    with pytest.raises(UsageError, match="cannot meet") as caught:
        run_group.connect(RunGroup(rank=1, world_size=2))
    assert "MASTER_ADDR" in caught.value.hint
