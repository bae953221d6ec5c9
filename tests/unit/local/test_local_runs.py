"""Processes as runs: they keep the contract of Jobs, and end as pods do."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
from collections import Counter
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psutil
import pytest
from tuning_operator.kube.plan.work import Refit, Trial, Work, Worker
from tuning_operator.local.gpus import Gpus
from tuning_operator.local.home import StudyFolder
from tuning_operator.local.pods import Machine
from tuning_operator.local.processes import marked
from tuning_operator.local.runs import LocalRuns, problems
from tuning_operator.protocol import StudyKey
from tuning_operator.resource.study import RefitSpec, TuningStudy

from tests.support.small_disk import SmallDisk
from tests.unit.kube.builders import body, study
from tests.unit.kube.runs_contract import FIRST, SECONDS, RunsContract

KEY = StudyKey("ml", "mnist")
PROGRAM = """#!/bin/sh
attempt=0
while [ -e "$PIPES/$TUNING_ROLE-$TUNING_TRIAL_NUMBER-$attempt.done" ]; do attempt=$((attempt + 1)); done
pipe="$PIPES/$TUNING_ROLE-$TUNING_TRIAL_NUMBER-$attempt"
mkfifo "$pipe" 2>/dev/null
read -r line < "$pipe"
touch "$pipe.done"
eval "$line"
"""
"""In place of Python: a program that runs the line of shell that the test sends to its attempt."""


class Server:
    """What runs need to know of a study server that none of them calls."""

    url = "http://127.0.0.1:1"

    def run_token(self, run: str) -> str:
        return f"token of {run}"


class Place:
    """A machine whose programs the test ends, and whose GPUs it holds."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.pipes = StudyFolder(folder / "study"), folder / "pipes"
        self.pipes.mkdir()
        self.program = folder / "program"
        self.program.write_text(PROGRAM)
        self.program.chmod(0o755)
        self.locks = folder / "gpus"
        self.config_maps: dict[str, dict[str, str]] = {}
        self.volumes: dict[str, Path] = {}
        self.held: list[contextlib.AsyncExitStack] = []
        self.sent: Counter[Work] = Counter()

    def runs(self, gpus: int = 2, python: str | None = None, **environ: str) -> LocalRuns:
        devices = {str(number): f"here-{number}" for number in range(gpus)}
        runs = LocalRuns(
            self.folder, self.machine(gpus, **environ), Gpus(devices, self.locks),
            python or str(self.program), Server(), lambda: datetime.now(UTC), self.folder.new_mark(),
        )  # fmt: skip
        self.all_gpus = Gpus(devices, self.locks)
        return runs

    def machine(self, gpus: int, **environ: str) -> Machine:
        variables = {"PATH": os.environ["PATH"], "PIPES": str(self.pipes), **environ}
        return Machine(self.folder.path, self.config_maps, self.volumes, variables, gpus)

    async def hold_gpus(self) -> None:
        """Have all GPUs in use by someone else."""
        for _ in self.all_gpus.devices:
            stack = contextlib.AsyncExitStack()
            await stack.enter_async_context(self.all_gpus.lend(1))
            self.held.append(stack)

    async def free_gpu(self) -> None:
        await self.held.pop().aclose()

    async def send(self, work: Work, line: str) -> None:
        """Have the work's program run a line of shell."""
        attempt = self.sent[work]
        self.sent[work] += 1
        number = "" if isinstance(work, Worker) else work.trial
        pipe = self.pipes / f"{work.role}-{number}-{attempt}"
        with contextlib.suppress(FileExistsError):
            os.mkfifo(pipe)
        await asyncio.to_thread(pipe.write_text, f"{line}\n")

    def processes(self) -> list[psutil.Process]:
        return list(marked(self.folder.mark))


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


def scratch(**container: Any) -> dict[str, Any]:
    """Return a trial's template with a temporary folder."""
    template = body()["spec"]["trial"]["template"]
    template["spec"]["volumes"] = [{"name": "scratch", "emptyDir": {}}]
    container["volumeMounts"] = [{"name": "scratch", "mountPath": "/scratch"}]
    template["spec"]["containers"][0] |= container
    return {"template": template}


class TestLocalRuns(RunsContract):
    @pytest.fixture
    async def runs(self, place: Place) -> AsyncIterator[LocalRuns]:
        self._place, runs = place, place.runs()
        await place.hold_gpus()
        yield runs
        await runs.close()
        assert place.processes() == []

    @pytest.fixture
    def study(self) -> TuningStudy:
        return study(refit={})

    async def begin(self, study: TuningStudy, work: Work) -> None:
        """Runs get GPUs in the order in which they were started."""
        await self._place.free_gpu()

    async def end(self, study: TuningStudy, work: Work, exit_code: int) -> None:
        await self._place.send(work, f"exit {exit_code}")


async def until(runs: LocalRuns, study: TuningStudy, work: Work, state: str) -> Any:
    async with asyncio.timeout(SECONDS):
        while True:
            found = (await runs.list_runs(study, {work})).get(work)
            if (found.state if found else "gone") == state:
                return found
            await asyncio.sleep(0.02)


async def until_logged(place: Place, text: str) -> None:
    """Wait until the first trial has written a text."""
    log = place.folder.runs / "mnist-0" / "log"
    async with asyncio.timeout(SECONDS):
        while not (log.exists() and text in log.read_text()):  # noqa: ASYNC110  another process writes it
            await asyncio.sleep(0.02)


@pytest.fixture
async def runs(place: Place) -> AsyncIterator[LocalRuns]:
    runs = place.runs()
    yield runs
    await runs.close()
    assert place.processes() == []


async def test_the_last_lines_of_output_explain_an_exit_code(place: Place, runs: LocalRuns) -> None:
    await runs.start(study(), FIRST)
    await place.send(FIRST, "echo one; echo libcuda.so.1: cannot open >&2; exit 3")
    failure = (await until(runs, study(), FIRST, "ended")).diagnosis.failure
    assert failure.category == "ExitCode"
    assert "exited with code 3: one\nlibcuda.so.1: cannot open" in failure.message
    log = place.folder.runs / "mnist-0" / "log"
    assert failure.remedy.startswith("The trial sees no GPU")
    assert failure.remedy.endswith(f" See {log}.")
    assert "libcuda" in log.read_text()


async def test_an_interpreter_relative_to_the_users_folder(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(place.program.parent)
    runs = place.runs(python=f"./{place.program.name}")
    template = body()["spec"]["trial"]["template"]
    template["spec"]["containers"][0]["workingDir"] = str(place.pipes)
    given = study(trial={"template": template})
    await runs.start(given, FIRST)
    await until(runs, given, FIRST, "running")
    await place.send(FIRST, "pwd; exit 3")
    failure = (await until(runs, given, FIRST, "ended")).diagnosis.failure
    assert f"code 3: {place.pipes}" in failure.message
    await runs.close()


async def test_what_the_trainer_wrote_explains_it_better(place: Place, runs: LocalRuns) -> None:
    await runs.start(study(), FIRST)
    failure = '{"category": "Exception", "message": "ValueError: boom", "remedy": null, "traceback": null}'
    await place.send(FIRST, f"echo '{failure}' > $TUNING_TERMINATION_LOG; exit 1")
    found = (await until(runs, study(), FIRST, "ended")).diagnosis.failure
    assert (found.category, found.message) == ("Exception", "ValueError: boom")


async def test_a_signal_from_elsewhere_is_named(place: Place, runs: LocalRuns) -> None:
    await runs.start(study(), FIRST)
    await place.send(FIRST, "kill -9 $$")
    failure = (await until(runs, study(), FIRST, "ended")).diagnosis.failure
    assert "code 137 (SIGKILL)" in failure.message
    assert "memory" in failure.remedy


async def test_a_trial_that_was_terminated_is_started_again(place: Place, runs: LocalRuns) -> None:
    await runs.start(study(), FIRST)
    await place.send(FIRST, "exit 143")
    await place.send(FIRST, "echo again; exit 3")
    assert "code 3: again" in (await until(runs, study(), FIRST, "ended")).diagnosis.failure.message


async def test_a_run_waits_for_space_on_a_full_disk(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tuning_operator.local.runs.FULL_SECONDS", 0.1)
    with SmallDisk(2) as disk:
        place.folder = StudyFolder(disk.path / "study")
        place.folder.path.mkdir()
        runs = place.runs()
        disk.fill()
        await runs.start(study(), FIRST)
        async with asyncio.timeout(SECONDS):
            while (found := await until(runs, study(), FIRST, "starting")).diagnosis is None:  # noqa: ASYNC110  a task
                await asyncio.sleep(0.02)
        assert found.diagnosis.failure.category == "DiskFull"
        assert "No space left on device" in found.diagnosis.failure.message
        disk.make_room()
        await place.send(FIRST, "echo started; exit 3")
        ended = await until(runs, study(), FIRST, "ended")
        assert "code 3: started" in ended.diagnosis.failure.message
        await runs.close()


async def test_a_refit_is_attempted_again(place: Place, runs: LocalRuns) -> None:
    refit = Refit.of(RefitSpec(retries=1), 0)
    given = study(refit={"retries": 1})
    await runs.start(given, refit)
    await place.send(refit, "exit 1")
    await place.send(refit, "exit 2")
    assert "code 2" in (await until(runs, given, refit, "ended")).diagnosis.failure.message


async def test_what_a_program_leaves_behind_ends_with_it(place: Place, runs: LocalRuns) -> None:
    await runs.start(study(), FIRST)
    await place.send(FIRST, "setsid sleep 1000 & sleep 1000 & exit 0")
    await until(runs, study(), FIRST, "ended")
    assert place.processes() == []


async def test_stop_gives_time_and_then_none(place: Place, runs: LocalRuns) -> None:
    template = body()["spec"]["trial"]["template"]
    template["spec"]["terminationGracePeriodSeconds"] = 5
    given = study(trial={"template": template})
    await runs.start(given, FIRST)
    await place.send(FIRST, "trap 'echo stopping' TERM; echo ready; while :; do sleep 0.05; done")
    await until_logged(place, "ready")
    await runs.stop(KEY, FIRST)
    await until(runs, given, FIRST, "gone")
    assert "stopping" in (place.folder.runs / "mnist-0" / "log").read_text()
    assert place.processes() == []


async def test_each_run_has_its_own_gpus_and_waits_for_them(place: Place, runs: LocalRuns) -> None:
    waiting = Trial(2)
    for number in range(3):
        await runs.start(study(), Trial(number))
    for number in range(2):
        await until(runs, study(), Trial(number), "running")
    found = await until(runs, study(), waiting, "starting")
    assert found.diagnosis.failure.category == "Capacity"
    assert found.diagnosis.failure.message == "It waits for 1 of this machine's 2 GPUs; others use them."
    for number in range(2):
        await place.send(Trial(number), "echo GPUs $CUDA_VISIBLE_DEVICES; exit 0")
    await place.send(waiting, "echo GPUs $CUDA_VISIBLE_DEVICES; exit 0")
    await until(runs, study(), waiting, "ended")
    logs = [(place.folder.runs / f"mnist-{number}" / "log").read_text() for number in range(3)]
    assert sorted(logs[:2]) == ["GPUs 0\n", "GPUs 1\n"]
    assert logs[2] in logs[:2]


async def test_a_stopped_run_keeps_its_gpu_until_its_program_has_ended(place: Place) -> None:
    given, waiting, runs = study(trial=scratch()), Trial(1), place.runs(gpus=1)
    for work in (FIRST, waiting):
        await runs.start(given, work)
    stopping = "echo stopping; cat $PIPES/end; exit 0"
    line = f"trap '{stopping}' TERM; mkfifo $PIPES/end; echo ready; while :; do sleep 0.05; done"
    await place.send(FIRST, line)
    await until_logged(place, "ready")
    await runs.stop(KEY, FIRST)
    await until_logged(place, "stopping")
    with pytest.raises(TimeoutError):  # at once, without waiting for others to free it
        async with asyncio.timeout(0), place.all_gpus.lend(1):
            pass
    found = await runs.list_runs(given, {FIRST, waiting})
    assert {work: run.state for work, run in found.items()} == {FIRST: "stopping", waiting: "starting"}
    await asyncio.to_thread((place.pipes / "end").write_text, "")
    await until(runs, given, FIRST, "gone")
    assert not (place.folder.runs / "mnist-0" / "volumes").exists()
    await until(runs, given, waiting, "running")
    await runs.close()


async def test_a_program_that_is_stopped_while_it_starts_gets_time(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may run, and have processes of its own, before asyncio has noted that it was started."""
    noted, create = asyncio.Event(), asyncio.create_subprocess_exec

    async def create_and_note(*command: str, **fields: Any) -> asyncio.subprocess.Process:
        process = await create(*command, **fields)
        await noted.wait()
        return process

    monkeypatch.setattr(asyncio, "create_subprocess_exec", create_and_note)
    given, runs = study(), place.runs()
    await runs.start(given, FIRST)
    await place.send(FIRST, "trap 'echo stopping; exit 0' TERM; echo ready; while :; do sleep 0.05; done")
    await until_logged(place, "ready")
    await runs.stop(KEY, FIRST)
    await asyncio.sleep(0)  # the run's task takes note of it
    noted.set()
    await until_logged(place, "stopping")
    await until(runs, given, FIRST, "gone")
    await runs.close()


async def test_files_of_volumes(place: Place, runs: LocalRuns) -> None:
    place.config_maps["settings"] = {"app.yaml": "size: 3", "b": "unused"}
    place.volumes["data"] = place.pipes
    (place.pipes / "labels.csv").write_text("cat,dog")
    template = body()["spec"]["trial"]["template"]
    pod = template["spec"]
    items = [{"key": "app.yaml", "path": "etc/app.yaml"}]
    pod["volumes"] = [
        {"name": "all", "configMap": {"name": "settings"}},
        {"name": "some", "configMap": {"name": "settings", "items": items}},
        {"name": "data", "hostPath": {"path": "/data"}},
    ]
    pod["containers"][0]["volumeMounts"] = [
        {"name": "all", "mountPath": "/app/all.yaml", "subPath": "app.yaml"},
        {"name": "some", "mountPath": "/some"},
        {"name": "data", "mountPath": "/labels.csv", "subPath": "labels.csv"},
    ]
    pod["containers"][0]["env"] = [{"name": "FILES", "value": "/app/all.yaml /some/etc/app.yaml /labels.csv"}]
    given = study(trial={"template": template})
    await runs.start(given, FIRST)
    await until(runs, given, FIRST, "running")
    await place.send(FIRST, "tail -n +1 -q $FILES; exit 3")
    failure = (await until(runs, given, FIRST, "ended")).diagnosis.failure
    assert "code 3: size: 3size: 3cat,dog" in failure.message


def test_an_unknown_field_of_the_pod_is_refused_before_anything_starts(place: Place) -> None:
    template = body()["spec"]["trial"]["template"]
    variables = [("NAME", "metadata.name"), ("TEAM", "metadata.labels['team']")]
    template["spec"]["containers"][0]["env"] = [
        {"name": name, "valueFrom": {"fieldRef": {"fieldPath": path}}} for name, path in variables
    ]
    found = problems(study(trial={"template": template}), place.machine(2), str(place.program))
    assert [(p.field, p.message) for p in found] == [
        ("trial.template.spec.containers[0].env[1].valueFrom.fieldRef",
         "metadata.labels['team'] is not known on this machine: give the variable TEAM a value.")
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("file", "trial", "parallelism", "refused"),
    [
        ("/tmp/m.jsonl", {}, 2, True),
        ("/tmp/m.jsonl", {}, 1, False),
        ("/scratch/m.jsonl", {}, 2, False),
        ("m.jsonl", {}, 2, True),
        ("m.jsonl", {"source": {"configMap": "code"}}, 2, False),
        ("../../m.jsonl", {"source": {"configMap": "code"}}, 2, True),
    ],
)
def test_a_file_with_metrics_is_read_by_one_trial(
    place: Place, file: str, trial: dict[str, Any], parallelism: int, refused: bool
) -> None:
    place.config_maps["code"] = {}
    trial = {**scratch(), "objective": None, "command": ["train"], "metrics": {"file": file}, **trial}
    given = study(trial=trial, parallelism=parallelism)
    found = problems(given, place.machine(2), str(place.program))
    assert [p.field for p in found] == ["trial.metrics.file"] * refused


async def test_paths_and_variables_in_arguments_and_metrics(place: Place, runs: LocalRuns) -> None:
    command = ["train", "$(OUT)/$(TUNING_TRIAL_NUMBER)", "$(date)"]
    metrics = {"file": "/scratch/metrics"}
    env = [{"name": "OUT", "value": "/scratch"}]
    given = study(trial={**scratch(env=env), "objective": None, "command": command, "metrics": metrics})
    await runs.start(given, FIRST)
    await until(runs, given, FIRST, "running")
    await place.send(FIRST, 'echo "$*"; echo "$TUNING_CONFIG"; exit 0')
    await until(runs, given, FIRST, "ended")
    folder = place.folder.runs / "mnist-0"
    arguments, config = (folder / "log").read_text().splitlines()
    assert arguments.endswith(f"train {folder}/volumes/scratch/0 $(date)")
    assert json.loads(config)["metrics"] == {"file": f"{folder}/volumes/scratch/metrics"}


async def test_a_run_gets_what_its_pod_would(place: Place, runs: LocalRuns) -> None:
    await runs.start(study(), FIRST)
    await place.send(FIRST, "env; pwd; cat $TUNING_TOKEN_FILE; exit 0")
    await until(runs, study(), FIRST, "ended")
    log = (place.folder.runs / "mnist-0" / "log").read_text()
    assert "TUNING_TRIAL_URL=http://127.0.0.1:1/v1/studies/ml/mnist/trials/0\n" in log
    assert "TUNING_ROLE=trial\n" in log
    assert log.endswith("token of mnist-0")
