"""How far a sweep is, from the files that its jobs leave: counts, failures, and the time left."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from diffusion_lab.studies.watch import ENDED, Counts, Watch, Watched, rounded, seconds_of


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


class Sweep:
    """A sweep's folder to which a test writes what jobs would."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.time = folder, 1_000_000_000

    def put(self, name: str, status: str, evaluations: int = 0, **more: object) -> None:
        path = self.folder / name / "result.json"
        path.parent.mkdir(exist_ok=True)
        record = {
            "status": status,
            "config": {"seed": 0},
            "evaluations": [{"step": i} for i in range(evaluations)],
        }
        path.write_text(json.dumps(record | more))
        self.time += 1_000_000_000  # stamps of a file system may be coarse
        os.utime(path, ns=(self.time, self.time))

    def end(self, name: str, status: str, error: str | None = None) -> None:
        with (self.folder / ENDED).open("a") as file:
            file.write(json.dumps({"job": name, "name": name, "status": status, "error": error}) + "\n")


@pytest.fixture
def sweep(tmp_path: Path) -> Sweep:
    return Sweep(tmp_path)


def watch(sweep: Sweep, *names: str, **more: object) -> Watch:
    jobs = [Watched(sweep.folder / name, kind=name[0], evaluations=4) for name in names]
    return Watch(jobs, sweep.folder, clock=Clock(), **more)  # type: ignore[arg-type]


def numbers(counts: Counts) -> tuple[int, int, int, int]:
    return counts.done, counts.running, counts.failed, counts.to_come


def test_counts_follow_the_files(sweep: Sweep) -> None:
    sweep.end("a1", "failed", "of an earlier sweep")
    sweep.put("a2", "running", 1)  # left by a sweep that was killed
    found = watch(sweep, "a1", "a2", "a3", "a4", done=5, failed=1)
    assert numbers(found.look()) == (5, 0, 1, 4)
    (sweep.folder / "a1" / ".hydra").mkdir(parents=True)
    (sweep.folder / "a1" / ".hydra" / "overrides.yaml").write_text("[]")  # before its record is there
    sweep.put("a3", "running")
    assert numbers(found.look()) == (5, 2, 1, 2)
    sweep.put("a3", "completed", 4)
    sweep.end("a1", "failed", "UserError: no")
    assert numbers(found.look()) == (6, 0, 2, 2)
    assert (found.jobs[0].state, found.jobs[0].error) == ("failed", "UserError: no")
    sweep.end("a4", "diverged", "nan")
    (sweep.folder / ENDED).open("a").write('{"job": "a2", "status": "compl')  # a torn line
    assert numbers(found.look()) == (6, 0, 3, 1)
    (sweep.folder / ENDED).open("a").write('eted", "error": null}\n')
    assert numbers(found.look()) == (7, 0, 3, 0)
    assert str(found.look()) == "7 of 10 done, 0 running, 3 failed, 0 to come"


def test_unchanged_files_are_not_read_again(sweep: Sweep, monkeypatch: pytest.MonkeyPatch) -> None:
    from diffusion_lab.studies import watch as module

    found = watch(sweep, "a1", "a2")
    sweep.put("a1", "running", 1)
    found.look()
    monkeypatch.setattr(module, "_record", lambda folder: pytest.fail("read again"))
    assert numbers(found.look()) == (0, 1, 0, 1)


def test_the_time_left_is_known_from_the_first_evaluations(sweep: Sweep) -> None:
    found = watch(sweep, "a1", "a2", "a3", "a4", "a5")
    assert found.look().left is None
    sweep.put("a1", "running")
    sweep.put("a2", "running")
    assert found.look().left is None
    found.clock.now += 30  # type: ignore[attr-defined]
    sweep.put("a1", "running", 1)
    sweep.put("a2", "running", 1)
    # A run takes 120 s: two have 90 s left, then two of the three to come, then the last one.
    assert found.look().left == pytest.approx(90 + 120 + 120)
    found.clock.now += 10  # type: ignore[attr-defined]
    assert found.look().left == pytest.approx(80 + 120 + 120)
    assert str(found.look()) == "0 of 5 done, 2 running, 0 failed, 3 to come, about 5 min left"


def test_each_kind_has_its_own_duration_and_earlier_runs_count_at_first(sweep: Sweep) -> None:
    found = watch(sweep, "a1", "b1", "a2", "b2", guess={"a": 100.0, "b": 300.0})
    assert found.look().left == pytest.approx(800)
    sweep.put("a1", "running")
    found.look()
    found.clock.now += 50  # type: ignore[attr-defined]
    sweep.put("a1", "completed", 4)
    assert found.look().left == pytest.approx(300 + 50 + 300)  # one at once: b1, a2, b2


def test_a_resumed_run_has_less_to_do(sweep: Sweep) -> None:
    sweep.put("a1", "interrupted", 2)
    found = watch(sweep, "a1", guess={"a": 100.0})
    assert found.look().left == pytest.approx(50)
    sweep.put("a1", "running", 2)
    found.look()
    found.clock.now += 40  # type: ignore[attr-defined]
    sweep.put("a1", "running", 3)
    assert found.look().left == pytest.approx(40)


def test_the_duration_of_a_finished_run(sweep: Sweep) -> None:
    sweep.put("a1", "completed", cost={"training": {"seconds": 30.0}, "evaluation": {"seconds": 60.0}})
    assert seconds_of(sweep.folder / "a1") == 90
    assert seconds_of(sweep.folder / "a2") is None


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [
        (0.2, "1 s"),
        (59, "59 s"),
        (61, "1 min"),
        (3540, "59 min"),
        (4800, "1 h 20 min"),
        (90_000, "25 h 00 min"),
    ],
)
def test_durations_as_people_say_them(seconds: float, expected: str) -> None:
    assert rounded(seconds) == expected
