"""The offline run is read back from its file: a LevelDB log of protobuf records."""

from __future__ import annotations

import http.server
import json
import logging
import os
import random
import socket
import struct
import threading
import time
import zlib
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
import wandb
from PIL import Image
from wandb.proto.wandb_internal_pb2 import Record

from diffusion_lab.config import schema as config
from diffusion_lab.records import UserError
from diffusion_lab.trackers import Fanout, build_trackers, wandb_mode
from diffusion_lab.trackers import wandb as view

KEY = "x" * 20 + "0123456789abcdef0123"
BLOCK = 32768


@pytest.fixture(autouse=True)
def a_person_without_wandb(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No key, no settings, no proxies, and a home of its own; wandb starts anew for each test."""
    for name in list(os.environ):
        if name.startswith("WANDB_") or name.lower().endswith("_proxy"):
            monkeypatch.delenv(name)
    home = tmp_path / "home"
    home.mkdir()
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("NETRC", str(home / "netrc"))
    monkeypatch.setenv("WANDB_CONFIG_DIR", str(home / "config"))
    monkeypatch.setenv("WANDB_CACHE_DIR", str(home / "cache"))
    wandb.teardown()
    yield
    wandb.teardown()


def records(path: Path) -> Iterator[Record]:
    """Header ":W&B", magic, version; then blocks of 32 KiB with chunks of checksum, length, kind, data."""
    content = path.read_bytes()
    ident, magic, _ = struct.unpack("<4sHB", content[:7])
    assert (ident, magic) == (b":W&B", 0xBEE1)
    position, parts = 7, b""
    while position + 7 <= len(content):
        if BLOCK - position % BLOCK < 7:  # too little room for a chunk's head: filled up with zeros
            position += BLOCK - position % BLOCK
            continue
        checksum, length, kind = struct.unpack("<IHB", content[position : position + 7])
        data = content[position + 7 : position + 7 + length]
        assert zlib.crc32(bytes([kind]) + data) == checksum
        position += 7 + length
        parts += data
        if kind in (1, 4):  # whole, or the last part
            record = Record()
            record.ParseFromString(parts)
            parts = b""
            yield record


class Read:
    """What the file of one session of an offline run says."""

    def __init__(self, folder: Path, session: int = 0, sessions: int = 1) -> None:
        wandb.teardown()  # waits for wandb's own process, which may still be writing
        paths = sorted(folder.glob("wandb/offline-run-*/run-*.wandb"))
        assert len(paths) == sessions
        path = paths[session]
        self.folder = path.parent
        self.config: dict[str, Any] = {}
        self.summary: dict[str, Any] = {}
        self.history: list[dict[str, Any]] = []
        self.exit_code: int | None = None
        self.metrics: list[Any] = []
        for record in records(path):
            kind = record.WhichOneof("record_type")
            if kind == "run":
                self.run = record.run
                self.config |= {item.key: json.loads(item.value_json) for item in record.run.config.update}
            elif kind == "config":
                self.config |= {item.key: json.loads(item.value_json) for item in record.config.update}
            elif kind == "summary":
                for item in record.summary.update:
                    self.summary["/".join([item.key] if item.key else item.nested_key)] = json.loads(
                        item.value_json
                    )
            elif kind == "history":
                row = {}
                for item in record.history.item:
                    row["/".join([item.key] if item.key else item.nested_key)] = json.loads(item.value_json)
                self.history.append(row)
            elif kind == "metric":
                self.metrics.append(record.metric)
            elif kind == "exit":
                assert self.exit_code is None, "closed twice"
                self.exit_code = record.exit.exit_code

    def curve(self, name: str) -> list[tuple[int, Any]]:
        return [(row["step"], row[name]) for row in self.history if name in row]


def offline(folder: Path, **changes: Any) -> Fanout:
    tracking = config.Tracking(wandb="offline", **changes)
    return Fanout(build_trackers(tracking, folder, tags=["miniature"], group="a-sweep", job_type="finetune"))


def test_everything_is_in_the_offline_run(tmp_path: Path, cases: ModuleType) -> None:
    folder = tmp_path / "run"
    tracker = offline(folder, tags=["mine"], run_name="anna-14", project="faces", entity="us", images=4)
    tracker.start(cases.CONFIG)
    tracker.evaluation(cases.evaluation(0), cases.prompt_set())
    for step in (10, 20, 50):
        tracker.scalars(step, {"train/loss": 1 / step, "train/learning_rate": 1e-4})
    tracker.evaluation(cases.evaluation(50), cases.prompt_set())
    tracker.scalars(60, {"train/loss": 0.01})
    summary = {
        "recommendation": {"step": 50, "reason": "flat"},
        "recommended": {"similarity": 0.3},
        "error": None,
    }
    tracker.finish("completed", summary)

    read = Read(folder)
    assert read.exit_code == 0
    assert read.run.project == "faces"
    assert read.run.entity == "us"
    assert read.run.display_name == "anna-14"
    assert read.run.run_group == "a-sweep"
    assert read.run.job_type == "finetune"
    assert list(read.run.tags) == ["mine", "miniature"]
    assert {name: value for name, value in read.config.items() if name != "_wandb"} == cases.CONFIG

    # One axis, the optimizer's steps, for every curve.
    assert [metric.name for metric in read.metrics if metric.name] == ["step"]
    (rule,) = [metric for metric in read.metrics if metric.glob_name]
    assert (rule.glob_name, rule.step_metric) == ("*", "step")
    assert all("step" in row for row in read.history)
    assert [row["step"] for row in read.history] == [0, 0, 10, 20, 50, 50, 50, 60]  # nothing was dropped

    assert read.curve("train/loss") == [(10, 0.1), (20, 0.05), (50, 0.02), (60, 0.01)]
    assert read.curve("train/learning_rate") == [(10, 1e-4), (20, 1e-4), (50, 1e-4)]
    for name, item in cases.evaluation(0).summaries.items():
        later = cases.evaluation(50).summaries[name]
        for ending, field in (("", "mean"), ("_low", "low"), ("_high", "high"), ("_penalised", "penalised")):
            values = [(0, getattr(item, field)), (50, getattr(later, field))]
            assert read.curve(f"eval/{name}{ending}") == [pair for pair in values if pair[1] is not None]
        assert read.curve(f"eval/{name}_missing") == [(0, item.missing), (50, later.missing)]
    assert read.curve("seconds/sampling") == [(0, 1.5), (50, 1.5)]

    assert read.summary["status"] == "completed"
    assert read.summary["recommendation/step"] == 50
    assert read.summary["recommended/similarity"] == 0.3

    for step, shown in read.curve("eval/samples"):
        assert (shown["_type"], shown["nrows"], shown["ncols"]) == ("table-file", 4, 6)
        table = json.loads((read.folder / "files" / shown["path"]).read_text())
        assert table["columns"] == ["step", "number", "prompt", "image", "aesthetics", "similarity"]
        evaluation = cases.evaluation(step)
        similarity = [row.value for row in evaluation.rows if row.metric == "similarity"]
        assert [row[:3] for row in table["data"]] == [
            [step, number, prompt.text] for number, prompt in enumerate(cases.prompt_set().prompts[:4])
        ]
        assert [row[5] for row in table["data"]] == similarity[:4]
    # The pictures themselves wait in the run's folder, not in the person's home.
    staged = list((folder / "wandb" / "data").rglob("*"))
    assert sum(path.is_file() and path.read_bytes()[:4] == b"\x89PNG" for path in staged) == 8
    assert not (tmp_path / "home" / ".local" / "share" / "wandb").exists()
    assert "WANDB_DATA_DIR" not in os.environ


@pytest.mark.parametrize(("status", "code"), [("failed", 1), ("interrupted", 130), ("diverged", 3)])
def test_a_run_that_ends_early_is_closed_with_its_code(tmp_path: Path, status: Any, code: int) -> None:
    tracker = offline(tmp_path)
    tracker.start({})
    tracker.scalars(1, {"train/loss": float("nan")})
    tracker.finish(status, {"error": "no face"})
    tracker.finish("completed", {})
    read = Read(tmp_path)
    assert read.exit_code == code
    assert read.summary["status"] == status
    assert read.summary["error"] == "no face"


def test_jobs_of_one_process_do_not_mix(tmp_path: Path) -> None:
    """The second job dies without closing its run; the third has one of its own all the same."""
    left = []
    for number in range(3):
        tracker = offline(tmp_path / str(number), run_name=f"job-{number}")
        tracker.start({"number": number})
        tracker.scalars(number, {f"train/only_{number}": 1.0})
        if number == 1:
            left.append(tracker)
        else:
            tracker.finish("completed", {})
        assert wandb.run is None
    left[0].finish("failed", {})
    for number in range(3):
        read = Read(tmp_path / str(number))
        assert read.config["number"] == number
        assert read.run.display_name == f"job-{number}"
        names = {name for row in read.history for name in row if name.startswith("train/")}
        assert names == {f"train/only_{number}"}
        assert read.exit_code == (1 if number == 1 else 0)


def test_no_key_reaches_the_run_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cases: ModuleType
) -> None:
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    monkeypatch.setenv("SOME_PASSWORD", "s3cret-" + KEY)
    (tmp_path / "home" / "netrc").write_text(f"machine api.wandb.ai\n login user\n password {KEY}\n")
    folder = tmp_path / "run"
    tracker = offline(folder)
    tracker.start(cases.CONFIG)
    tracker.evaluation(cases.evaluation(0), cases.prompt_set())
    tracker.finish("completed", {})
    wandb.teardown()
    files = [path for path in folder.rglob("*") if path.is_file()]
    assert any(path.suffix == ".wandb" for path in files)
    for path in files:
        content = path.read_bytes()
        assert KEY.encode() not in content, path
        assert b"s3cret" not in content, path
        if len(socket.gethostname()) > 3:
            assert socket.gethostname().encode() not in content, path


def test_training_draws_the_same_numbers_with_and_without(tmp_path: Path, cases: ModuleType) -> None:
    def drawn(with_tracker: bool) -> list[Any]:
        random.seed(1)
        np.random.seed(1)  # noqa: NPY002
        torch.manual_seed(1)
        if with_tracker:
            tracker = offline(tmp_path)
            tracker.start({})
            tracker.evaluation(cases.evaluation(0), cases.prompt_set())
            tracker.finish("completed", {})
        return [random.random(), np.random.rand(), torch.rand(1).item()]  # noqa: NPY002

    assert drawn(True) == drawn(False)


def test_nothing_is_printed_and_nothing_asked(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("asked"))
    tracker = Fanout(build_trackers(config.Tracking(), tmp_path))  # auto, nobody is logged in
    tracker.start({})
    tracker.scalars(1, {"train/loss": 1.0})
    tracker.finish("completed", {})
    assert capfd.readouterr() == ("", "")
    assert Read(tmp_path).curve("train/loss") == [(1, 1.0)]


# --- which mode ---------------------------------------------------------------------------------------


def test_auto_is_offline_without_credentials() -> None:
    assert wandb_mode.resolve_mode("auto") == "offline"


def sessions(
    folder: Path, cases: ModuleType, *parts: tuple[int | None, list[int], str | None], **changes: Any
) -> None:
    """Sessions of one run: (resumed after, steps, status or None for one that is killed)."""
    for after, steps, status in parts:
        tracking = config.Tracking(wandb="offline", **changes)
        tracker = Fanout(build_trackers(tracking, folder, resume_step=after))
        tracker.start(cases.CONFIG)
        for step in steps:
            if step:
                # images_per_second is another one each time, and at the first log not a number
                speed = float("nan") if step == 10 else time.perf_counter()
                tracker.scalars(step, {"train/loss": 1 / step, "train/images_per_second": speed})
            if step % 20 == 0:
                tracker.evaluation(cases.evaluation(step), cases.prompt_set())
        if status is not None:
            tracker.finish(status, {})  # type: ignore[arg-type]
        wandb.teardown()


def logs(folder: Path) -> list[Path]:
    """What `wandb sync` would upload."""
    from wandb.cli.beta_sync import _find_wandb_files

    return sorted(_find_wandb_files([folder / "wandb"], skip_synced=True, skip_online=True, verbose=False))


def history(path: Path) -> list[dict[str, Any]]:
    """The rows of a log; a table, whose parts may come one by one, is one dict."""
    found: list[dict[str, Any]] = []
    for record in records(path):
        if record.WhichOneof("record_type") == "history":
            found.append({})
            for item in record.history.item:
                first, *rest = [item.key] if item.key else item.nested_key
                if rest:
                    found[-1].setdefault(first, {})[rest[0]] = json.loads(item.value_json)
                else:
                    found[-1][first] = json.loads(item.value_json)
    return found


@pytest.mark.parametrize("killed", [False, True])
def test_a_resumed_run_has_one_log_with_all_of_its_history(
    tmp_path: Path, cases: ModuleType, killed: bool
) -> None:
    """The second session begins behind a checkpoint at 20; the first one came to 30, the third begins anew."""
    status = None if killed else "interrupted"
    sessions(tmp_path / "whole", cases, (None, [0, 10, 20, 30, 40], "completed"), images=2)
    sessions(
        tmp_path / "run", cases, (None, [0, 10, 20, 30], status), (20, [30], status), (20, [30, 40], "completed"),
        images=2,
    )  # fmt: skip
    whole, run = logs(tmp_path / "whole"), logs(tmp_path / "run")
    assert len(whole) == len(run) == 1
    ours, theirs = history(run[0]), history(whole[0])
    assert [row["_step"] for row in ours] == list(range(len(ours))), "each step of W&B's once, in order"
    changing = ("_runtime", "_timestamp", "train/images_per_second", "eval/samples")
    assert [{k: v for k, v in row.items() if k not in changing} for row in ours] == [
        {k: v for k, v in row.items() if k not in changing} for row in theirs
    ]
    shown = []
    for rows, path in ((ours, run[0]), (theirs, whole[0])):
        tables = [row["eval/samples"] for row in rows if "eval/samples" in row]
        files = [path.parent / "files" / table["path"] for table in tables]
        shown.append([json.loads(file.read_text())["data"] for file in files])
    assert shown[0] == shown[1]
    assert [(len(table), table[0][0]) for table in shown[0]] == [(2, 0), (2, 20), (2, 40)]
    kept = [np.asarray(Image.open(path)) for path in sorted((tmp_path / "run").rglob("step-000020/*.png"))]
    assert len(kept) == 2  # the pictures that the second log's tables were made of
    assert all(np.array_equal(a, b) for a, b in zip(kept, cases.evaluation(20).images, strict=False))
    aside = sorted((tmp_path / "run" / "wandb" / "superseded").glob("offline-run-*/*.wandb"))
    assert len(aside) == 2
    ids = {record.run.run_id for p in [*aside, *run] for record in records(p) if record.HasField("run")}
    assert ids == {(tmp_path / "run" / "wandb" / "run-id.txt").read_text().strip()}


def test_a_run_whose_record_was_lost_begins_its_log_anew(tmp_path: Path, cases: ModuleType) -> None:
    sessions(tmp_path, cases, (None, [0, 10], "interrupted"), (-1, [0, 10, 20], "completed"))
    (log,) = logs(tmp_path)
    assert [row["step"] for row in history(log) if "train/loss" in row] == [10, 20]


def test_the_earlier_log_stays_where_a_new_one_cannot_be_begun(
    tmp_path: Path, cases: ModuleType, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    sessions(tmp_path, cases, (None, [0, 10, 20], "interrupted"))
    before = logs(tmp_path)
    monkeypatch.setattr(wandb, "init", lambda **_: (_ for _ in ()).throw(OSError(28, "no space\nleft")))
    sessions(tmp_path, cases, (10, [20], "completed"))
    assert logs(tmp_path) == before
    assert json.loads((tmp_path / "result.json").read_text())["status"] == "completed"
    (told,) = [line for line in caplog.messages if "continues without it" in line]
    assert "Weights & Biases stopped" in told
    assert "\n" not in told


# --- names --------------------------------------------------------------------------------------------

REFUSED = [
    *({"project": f"a{letter}b"} for letter in "/\\#?%:"),
    {"project": "a/b:c"}, {"project": "x" * 129}, {"project": " a"}, {"project": "a\nb"},
    {"entity": "my team"}, {"entity": "a/b"}, {"entity": ""}, {"entity": "x" * 129},
    {"group": "x" * 129}, {"group": ""}, {"group": "a\tb"},
    {"run_name": "x" * 129}, {"run_name": " "}, {"run_name": "a\u0000b"},
    {"tags": ["x" * 65]}, {"tags": ["good", " "]}, {"tags": ["a\nb"]},
]  # fmt: skip
TAKEN = [
    {"project": "diffusion_lab"}, {"project": "ä b.c-d,(e)[f]'g'&h=i;j"}, {"project": "x" * 128}, {"entity": "my-team_1"},
    {"group": "study: rank/alpha"}, {"run_name": "cache/anna #3 100%"}, {"tags": ["x" * 64, "n=4", "a/b:c"]},
]  # fmt: skip


@pytest.mark.parametrize("given", REFUSED)
def test_names_that_wandb_refuses_are_refused_first(given: dict[str, Any]) -> None:
    (key,) = given
    with pytest.raises(UserError, match=rf"tracker\.{key}="):
        config.Tracking(**given)


@pytest.mark.parametrize("given", TAKEN)
def test_names_that_wandb_takes(given: dict[str, Any], tmp_path: Path) -> None:
    tracking = config.Tracking(wandb="offline", **given)
    names = {"project": tracking.project, "run_tags": tracking.tags, "run_group": tracking.group}
    wandb.Settings(**names, run_name=tracking.run_name)  # raises where it does not


def test_the_librarys_own_checks_refuse_nothing_that_passes_ours() -> None:
    for letter in map(chr, range(1, 256)):
        given = f"a{letter}b"
        try:
            config.Tracking(project=given, tags=[given])
        except UserError:
            continue
        wandb.Settings(project=given, run_tags=[given])


def test_a_refused_project_names_one_that_would_do() -> None:
    with pytest.raises(
        UserError, match=r"use tracker\.project=a-b-c \(a team's name goes to tracker\.entity\)"
    ):
        config.Tracking(project="a/b:c")


def test_online_without_credentials_is_refused() -> None:
    with pytest.raises(UserError, match=r"tracker\.wandb=online needs credentials.*wandb login"):
        wandb_mode.resolve_mode("online")


def test_an_unknown_mode_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"tracker\.wandb='on'.*auto, online, offline, disabled"):
        view.WandbTracker(tmp_path, mode="on")


def test_disabled_is_files_alone(tmp_path: Path) -> None:
    tracker = Fanout(build_trackers(config.Tracking(wandb="disabled"), tmp_path))
    tracker.start({})
    tracker.finish("completed", {})
    assert len(tracker.trackers) == 1
    assert not (tmp_path / "wandb").exists()


@pytest.mark.parametrize("where", ["environment", "netrc"])
def test_credentials_are_found_and_the_server_asked_first(
    where: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        url = f"http://127.0.0.1:{server.getsockname()[1]}"
        monkeypatch.setenv("WANDB_BASE_URL", url)
        if where == "environment":
            monkeypatch.setenv("WANDB_API_KEY", KEY)
        else:
            netloc = url.removeprefix("http://")
            (tmp_path / "home" / "netrc").write_text(f"machine {netloc}\n login user\n password {KEY}\n")
        assert wandb_mode.resolve_mode("auto") == "online"
        assert wandb_mode.resolve_mode("online") == "online"
        monkeypatch.setenv("WANDB_MODE", "offline")
        wandb.teardown()
        assert wandb_mode.resolve_mode("auto") == "offline"
        monkeypatch.delenv("WANDB_MODE")
        wandb.teardown()
    with caplog.at_level(logging.WARNING):
        assert wandb_mode.resolve_mode("auto") == "offline"  # the server is gone
    assert "does not answer" in caplog.text
    assert KEY not in caplog.text


def test_a_netrc_entry_for_somebody_else_is_none(tmp_path: Path) -> None:
    (tmp_path / "home" / "netrc").write_text(f"machine example.org\n login user\n password {KEY}\n")
    assert not wandb_mode.has_credentials()


def test_a_proxy_is_asked_in_the_servers_place(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as proxy:
        monkeypatch.setenv("https_proxy", f"http://127.0.0.1:{proxy.getsockname()[1]}")
        assert wandb_mode.reachable("https://api.example.invalid")
    assert not wandb_mode.reachable("https://api.example.invalid")


class Refusing(http.server.BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        self.rfile.read(int(self.headers.get("content-length", 0)))
        self.send_response(401)
        self.end_headers()
        self.wfile.write(b"{}")

    do_GET = do_POST

    def log_message(self, *_: object) -> None: ...


def test_a_server_that_refuses_the_key_stops_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Refusing)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("WANDB_BASE_URL", f"http://127.0.0.1:{server.server_address[1]}")
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    try:
        with caplog.at_level(logging.WARNING):
            tracker = Fanout(build_trackers(config.Tracking(), tmp_path))
            tracker.start({"seed": 1})
        tracker.scalars(5, {"train/loss": 0.5})
        tracker.finish("completed", {})
    finally:
        server.shutdown()
        server.server_close()
    assert "kept offline" in caplog.text
    assert Read(tmp_path).curve("train/loss") == [(5, 0.5)]
    assert json.loads((tmp_path / "result.json").read_text())["status"] == "completed"
