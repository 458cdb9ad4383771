import pytest

from common import timing
from common.timing import SaveTimer, Stopwatch


@pytest.fixture
def clock(monkeypatch):
    """clock.now is the time that the code under test sees."""

    class Clock:
        now = 1000.0

        def perf_counter(self):
            return self.now

    clock = Clock()
    monkeypatch.setattr(timing, "time", clock)
    return clock


def test_a_stopwatch_counts_from_where_it_starts(clock):
    watch = Stopwatch(50.0)
    clock.now += 3
    assert watch.seconds == 53


def test_a_paused_stopwatch_does_not_count(clock):
    watch = Stopwatch()
    clock.now += 3
    with watch.paused():
        clock.now += 100
        assert watch.seconds == 3
    assert watch.seconds == 3
    clock.now += 4
    assert watch.seconds == 7


@pytest.mark.parametrize("interval", [5, "5"])
def test_saves_every_so_many_steps(interval):
    timer = SaveTimer(interval)
    assert [step for step in range(12) if timer.due(step)] == [0, 5, 10]


def test_saves_every_so_many_minutes_since_the_last_save(clock):
    timer = SaveTimer("0.5min")
    clock.now += 29
    assert not timer.due(1)
    clock.now += 1
    assert timer.due(2)
    timer.saved()
    assert not timer.due(3)
    clock.now += 30
    assert timer.due(4)


@pytest.mark.parametrize("interval", [0, "0", "0min"])
def test_an_interval_of_zero_never_saves(clock, interval):
    timer = SaveTimer(interval)
    clock.now += 1e9
    assert not any(timer.due(step) for step in range(10))
