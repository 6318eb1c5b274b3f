"""Who was at fault, whether a group hangs, and who gets which rank: the pure parts of the supervision."""

from __future__ import annotations

import dataclasses

import pytest

from orchestrator.records import Failure, Pulse
from orchestrator.runners.ray_workers.blame import culprit
from orchestrator.runners.ray_workers.hangs import ALLOWANCE, HangWatch, where_they_stand
from orchestrator.runners.ray_workers.seats import Facts, assign_seats


def failure(rank: int, time_s: float, *, peer_lost: bool = False) -> Failure:
    return Failure(rank, 1, time_s, f"what rank {rank} saw", "hardware", peer_lost=peer_lost)


def test_a_rank_of_its_own_fault_goes_before_those_that_lost_it() -> None:
    reported = {0: failure(0, 5.0, peer_lost=True), 1: failure(1, 5.1), 2: failure(2, 4.9, peer_lost=True)}
    assert culprit(reported, {}, {}).rank == 1


def test_a_dead_process_goes_before_the_error_that_its_death_led_to() -> None:
    """Rank 0's own code wrapped the broken collective into an error of its own, half a second after the death."""
    assert culprit({0: failure(0, 10.5)}, {1: failure(1, 10.0)}, {}).rank == 1
    assert culprit({0: failure(0, 9.5)}, {1: failure(1, 10.0)}, {}).rank == 0


def test_a_silent_rank_goes_before_broken_collectives_only() -> None:
    silent = {2: failure(2, 1.0)}
    assert culprit({0: failure(0, 3.0, peer_lost=True)}, {}, silent).rank == 2
    assert culprit({0: failure(0, 3.0)}, {}, silent).rank == 0
    assert culprit({1: failure(1, 4.0, peer_lost=True), 0: failure(0, 3.0, peer_lost=True)}, {}, {}).rank == 0


def test_nothing_hangs_while_any_rank_moves() -> None:
    watch = HangWatch(10.0, now_s=100.0)
    for second in range(101, 160):
        watch.note(0, Pulse("training", 7, 1), float(second))
        watch.note(1, Pulse("training", 7, second), float(second))
        assert watch.stuck_s(second + 0.5) is None
    watch.note(0, Pulse("training", 7, 1), 165.0)
    watch.note(1, Pulse("training", 7, 159), 165.0)
    assert watch.stuck_s(169.0) is None
    assert watch.stuck_s(170.0) == 11.0


def test_long_phases_have_a_larger_allowance_and_zero_waits_for_ever() -> None:
    watch = HangWatch(10.0, now_s=0.0)
    assert watch.stuck_s(10.0 * ALLOWANCE) is None  # no rank has answered yet: they are coming up
    watch.note(0, Pulse("starting", 0, 1), 0.0)
    assert watch.stuck_s(10.0 * ALLOWANCE) is None
    assert watch.stuck_s(10.0 * ALLOWANCE + 1) == 10.0 * ALLOWANCE + 1
    watch.note(0, Pulse("training", 1, 2), 40.0)
    assert watch.stuck_s(51.0) == 11.0
    assert HangWatch(0.0, now_s=0.0).stuck_s(1e9) is None


def test_the_reason_of_a_hang_names_every_rank() -> None:
    text = where_they_stand(
        {0: Pulse("training", 12, 3), 1: Pulse("saving", 11, 2)}, {0: "loop.py:7 in step"}
    )
    assert text == "rank 0: training, step 12, loop.py:7 in step; rank 1: saving, step 11, does not answer"


def facts(node: str, *gpus: str) -> Facts:
    return Facts(node, f"host-{node}", "10.0.0.1", 1, gpus)


def test_the_ranks_of_a_node_are_neighbours_and_rank_0_stays() -> None:
    places = {0: facts("a"), 1: facts("b"), 2: facts("a"), 3: facts("b")}
    seats = assign_seats(places, None)
    assert {key: seat.rank for key, seat in seats.items()} == {0: 0, 2: 1, 1: 2, 3: 3}
    seats = assign_seats(places, 3)
    assert {key: seat.rank for key, seat in seats.items()} == {3: 0, 1: 1, 0: 2, 2: 3}
    by_rank = sorted(seats.values(), key=lambda seat: seat.rank)
    assert [(seat.node_rank, seat.local_rank, seat.local_world_size) for seat in by_rank] == [
        (0, 0, 2), (0, 1, 2), (1, 0, 2), (1, 1, 2),
    ]  # fmt: skip
    assert assign_seats({1: facts("b"), 2: facts("a")}, 0)[1].rank == 0  # the former rank 0 is gone


def test_workers_of_a_node_see_all_their_gpus_and_take_their_own() -> None:
    seats = assign_seats({0: facts("a", "10"), 1: facts("a", "2"), 2: facts("b", "0", "1")}, None)
    assert [seats[key].visible_gpus for key in (0, 1, 2)] == [("2", "10"), ("2", "10"), ("0", "1")]
    assert [(seats[key].gpus, seats[key].rank) for key in (0, 1, 2)] == [
        (("10",), 0),
        (("2",), 1),
        (("0", "1"), 2),
    ]


def test_devices_come_in_the_order_of_their_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    import os

    from orchestrator.runners.ray_workers.rendezvous import choose_device

    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    first, second = (assign_seats({0: facts("a", "4"), 1: facts("a", "11")}, None)[key] for key in (0, 1))
    assert str(choose_device(second)) == "cuda:1"
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "4,11"
    assert str(choose_device(first)) == "cuda:0"
    assert str(choose_device(dataclasses.replace(first, gpus=(), visible_gpus=()))) == "cpu"
