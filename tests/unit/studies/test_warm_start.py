"""A study that continues from another's trials: they are copied once, learned from, counted separately."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import optuna
import pytest
from optuna.trial import FrozenTrial, TrialState, create_trial
from tuning_operator.studies.storage import PostgresStore
from tuning_operator.studies.study import warm_start
from tuning_operator.studies.study.records import COPIED_FROM

from tests.support.http_trial import run_study, run_trial
from tests.support.study_server import RunningServer, running_server

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    import httpx

OLD, NEW = "/v1/studies/ml/old", "/v1/studies/ml/new"
SPACE = [
    {"name": "x", "type": "float", "low": -3, "high": 3},
    {"name": "kind", "type": "categorical", "choices": ["a", "b", True]},
]
DEFINITION: dict[str, Any] = {
    "objectives": [{"metric": "loss", "direction": "minimize"}],
    "searchSpace": SPACE,
    "sampler": {"name": "TPESampler", "args": {"seed": 1, "n_startup_trials": 5}},
    "pruner": {"name": "MedianPruner", "args": {"n_startup_trials": 2}},
}
CONTINUED = DEFINITION | {"warmStart": "old"}


def objective(trial: Any) -> float:
    """Trials 3 and 5 fail; in a study that continues, these numbers are copies."""
    x, kind = trial.suggest_float("x", -3, 3), trial.suggest_categorical("kind", ["a", "b", True])
    loss: float = x * x + {"a": 0, "b": 1}.get(kind, 0.5)
    if trial.number in (3, 5):
        raise RuntimeError("out of luck")
    for step in range(4):
        trial.report(loss + 3 / (1 + step), step)
        if trial.should_prune():
            raise optuna.TrialPruned
    trial.set_user_attr("epochs", step)
    return loss


@pytest.fixture
def server() -> Iterator[RunningServer]:
    """A server with a study of twelve trials."""
    with running_server() as server:
        run_study(server, "ml/old", DEFINITION, objective, 12)
        yield server


def recorded(server: RunningServer, name: str = "ml/new") -> optuna.Study:
    return optuna.load_study(study_name=name, storage=server.server.service._store.storage)


def put(client: httpx.Client, definition: dict[str, Any], path: str = NEW) -> Any:
    reply = client.put(path, json=definition)
    assert reply.status_code == 200, reply.text
    return reply.json()


def essence(trial: FrozenTrial) -> Any:
    return (
        trial.state,
        trial.params,
        trial.distributions,
        trial.values,
        trial.intermediate_values,
        trial.user_attrs,
        trial.datetime_start,
        trial.datetime_complete,
    )


def test_finished_trials_are_copied_and_counted_apart(server: RunningServer) -> None:
    theirs = [trial for trial in recorded(server, "ml/old").trials if trial.state != TrialState.FAIL]
    assert {trial.state.name for trial in theirs} == {"COMPLETE", "PRUNED"}
    summary = put(server.operator(), CONTINUED)
    counts = dict.fromkeys(("waiting", "running", "complete", "pruned", "fail"), 0) | {"copied": len(theirs)}
    assert summary["counts"] == counts
    copies = recorded(server).trials
    assert [essence(trial) for trial in copies] == [essence(trial) for trial in theirs]
    marks = [{"study": "ml/old", "trial": trial.number} for trial in theirs]
    assert [trial.system_attrs for trial in copies] == [{COPIED_FROM: mark} for mark in marks]
    assert summary["best"]["number"] == recorded(server).best_trial.number
    assert summary["best"]["values"] == [recorded(server, "ml/old").best_value]
    assert summary["trialsSinceBest"] == 0


def test_copies_do_not_count_towards_max_trials(server: RunningServer) -> None:
    operator = server.operator()
    copied = put(operator, CONTINUED)["counts"]["copied"]
    asked = operator.post(f"{NEW}/ask", json={"parallelism": 9, "maxTrials": 2}).json()
    assert [trial["number"] for trial in asked["running"]] == [copied, copied + 1], "the numbers continue"
    ended = server.pod("ml", "new", copied).post("/result", json={"state": "COMPLETE", "values": [99]})
    assert ended.json()["state"] == "COMPLETE"
    asked = operator.post(f"{NEW}/ask", json={"parallelism": 9, "maxTrials": 2}).json()
    assert [trial["number"] for trial in asked["running"]] == [copied + 1]
    assert (asked["counts"]["complete"], asked["counts"]["copied"], asked["trialsSinceBest"]) == (
        1,
        copied,
        1,
    )
    assert (
        f'tuning_trials{{namespace="ml",state="copied",study="new"}} {copied}'
        in operator.get("/metrics").text
    )


def test_the_study_continues_as_optunas_own_would(server: RunningServer) -> None:
    """The same trials, added by `study.add_trials`, and the same seed."""
    theirs = optuna.create_study(
        sampler=optuna.samplers.TPESampler(**DEFINITION["sampler"]["args"]),
        pruner=optuna.pruners.MedianPruner(**DEFINITION["pruner"]["args"]),
    )
    theirs.add_trials([t for t in recorded(server, "ml/old").trials if t.state != TrialState.FAIL])
    copied = len(theirs.trials)
    theirs.optimize(objective, n_trials=10)
    run_study(server, "ml/new", CONTINUED, objective, 10)
    ours = recorded(server).trials
    assert [t.params for t in ours] == [t.params for t in theirs.trials]
    assert [(t.state, t.values, t.intermediate_values) for t in ours] == [
        (t.state, t.values, t.intermediate_values) for t in theirs.trials
    ]
    assert TrialState.PRUNED in {trial.state for trial in ours[copied:]}


def test_the_first_trial_is_pruned_by_the_copies_values(server: RunningServer) -> None:
    operator = server.operator()
    copied = put(operator, CONTINUED)["counts"]["copied"]
    operator.post(f"{NEW}/ask", json={"parallelism": 1, "maxTrials": 9})
    reply = server.pod("ml", "new", copied).post("/report", json={"values": [[0, 1e9]]})
    assert reply.json()["prune"] is True


def test_copied_once(server: RunningServer) -> None:
    operator = server.operator()
    before = put(operator, CONTINUED)
    run_study(server, "ml/old", DEFINITION, objective, 14)
    assert put(operator, CONTINUED) == before
    changed = CONTINUED | {"pruner": {"name": "NopPruner"}}
    assert put(operator, changed) == before
    assert operator.delete(OLD).status_code == 204
    optuna.delete_study(study_name="ml/old", storage=server.server.service._store.storage)
    assert put(operator, CONTINUED) == before, "the study to continue from may go"


def test_an_initial_trial_is_tried_even_if_a_copy_has_its_parameters(server: RunningServer) -> None:
    operator, known = server.operator(), recorded(server, "ml/old").best_params
    continued = CONTINUED | {"initialTrials": [known, {"x": 0.5}]}
    copied = put(operator, continued)["counts"]["copied"]
    assert put(operator, continued)["counts"]["waiting"] == 2
    asked = operator.post(f"{NEW}/ask", json={"parallelism": 1, "maxTrials": 9}).json()
    assert [(t["number"], t["parameters"]) for t in asked["running"]] == [(copied, known)]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"warmStart": "odl"}, "there is no study ml/odl on record"),
        ({"warmStart": "new"}, "ml/new cannot continue from itself"),
        (
            {"objectives": [{"metric": "acc", "direction": "maximize"}]},
            "ml/old has the directions minimize, this study maximize",
        ),
        (
            {"objectives": [{"metric": m, "direction": "minimize"} for m in "ab"], "pruner": None},
            "ml/old has the directions minimize, this study minimize, minimize",
        ),
    ],
)
def test_studies_that_cannot_be_continued_from(
    server: RunningServer, changes: dict[str, Any], message: str
) -> None:
    reply = server.operator().put(NEW, json=CONTINUED | changes)
    assert (reply.status_code, reply.json()["problems"][0]["field"]) == (422, "warmStart.study")
    assert message in reply.json()["detail"]
    assert server.operator().get(NEW).status_code == 404
    with pytest.raises(KeyError):
        recorded(server)


def test_it_starts_once_the_other_study_exists() -> None:
    with running_server() as server:
        assert server.operator().put(NEW, json=CONTINUED).status_code == 422
        run_study(server, "ml/old", DEFINITION, objective, 2)
        assert put(server.operator(), CONTINUED)["counts"]["copied"] == 2


def test_a_server_killed_between_the_steps_of_copying(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(warm_start, "BATCH", 3)
    with running_server(PostgresStore(database_url)) as first:
        run_study(first, "ml/old", DEFINITION, objective, 12)
    killed_at: list[int] = []
    for batches in range(4):  # each server dies one batch later than the one before it got to
        store = PostgresStore(database_url)
        with running_server(store) as server:
            die_after(store, batches)
            reply = server.operator().put(NEW, json=CONTINUED)
            if reply.status_code == 200:
                break
            assert server.operator().get(NEW).status_code == 404, "no trials of half a study can be asked for"
            killed_at.append(len(recorded(server).trials))
    assert killed_at == [0, 3, 9]
    with running_server(PostgresStore(database_url)) as last:
        summary = put(last.operator(), CONTINUED)
        assert summary == reply.json()
        old = optuna.load_study(study_name="ml/old", storage=database_url)
        finished = [t for t in old.trials if t.state != TrialState.FAIL]
        copies = optuna.load_study(study_name="ml/new", storage=database_url).trials
        assert [t.system_attrs[COPIED_FROM]["trial"] for t in copies] == [t.number for t in finished]
        assert [t.number for t in copies] == list(range(len(finished)))
        assert [essence(t) for t in copies] == [essence(t) for t in finished]
        assert summary["counts"]["copied"] == len(finished) == 10
        asked = last.operator().post(f"{NEW}/ask", json={"parallelism": 1, "maxTrials": 1}).json()
        assert run_trial(last, "ml/new", asked["running"][0]["number"], objective)["number"] == 10
        summary_before = last.operator().get(NEW).json()
    with running_server(PostgresStore(database_url)) as again:
        assert again.operator().get(NEW).json() == summary_before


def die_after(store: PostgresStore, batches: int) -> None:
    """Make the database unreachable after this many batches."""
    add_trials, left = store.add_trials, iter(range(batches))

    def add(study_id: int, trials: Sequence[FrozenTrial]) -> None:
        if next(left, None) is None:
            raise TimeoutError
        add_trials(study_id, trials)

    store.add_trials = add  # type: ignore[method-assign]


def test_several_objectives(server: RunningServer) -> None:
    several = {
        "objectives": [{"metric": "a", "direction": "minimize"}, {"metric": "b", "direction": "maximize"}],
        "searchSpace": SPACE[:1],
    }

    def both(trial: Any) -> tuple[float, float]:
        x = trial.suggest_float("x", -3, 3)
        return x, x

    run_study(server, "ml/front", several, both, 4)
    summary = put(server.operator(), several | {"warmStart": "front"})
    assert [trial["number"] for trial in summary["paretoFront"]] == [0, 1, 2, 3]
    assert (summary["counts"]["complete"], summary["counts"]["copied"]) == (0, 4)


# What a study can take of another's trials


def copied(server: RunningServer, definition: dict[str, Any], *trials: FrozenTrial) -> list[FrozenTrial]:
    """Return the trials of a new study that continues from one of these trials."""
    source = optuna.create_study(
        study_name="ml/source", storage=server.server.service._store.storage, load_if_exists=True
    )
    source.add_trials(trials)
    put(server.operator(), definition | {"warmStart": "source"})
    return recorded(server).trials


@pytest.fixture(scope="module")
def shared() -> Iterator[RunningServer]:
    with running_server() as server:
        yield server


@pytest.fixture
def empty(shared: RunningServer) -> Iterator[RunningServer]:
    """A server without studies."""
    yield shared
    storage = shared.server.service._store.storage
    for study in storage.get_all_studies():
        shared.operator().delete(f"/v1/studies/{study.study_name}")
    for study in storage.get_all_studies():
        storage.delete_study(study._study_id)


def trial_of(params: dict[str, Any], **more: Any) -> FrozenTrial:
    """Return a complete trial, from wide ranges."""
    wide = {
        bool: lambda v: optuna.distributions.CategoricalDistribution((v, "other")),
        str: lambda v: optuna.distributions.CategoricalDistribution((v, "other")),
        int: lambda _: optuna.distributions.IntDistribution(-100, 100),
        float: lambda _: optuna.distributions.FloatDistribution(-100, 100),
    }
    distributions = {name: wide[type(value)](value) for name, value in params.items()}
    return create_trial(params=params, distributions=distributions, **{"values": [1.0]} | more)


def parameter(kind: str, **more: Any) -> dict[str, Any]:
    return {"name": "p", "type": kind, **more}


FLOAT = parameter("float", low=0, high=1)
STEPS = parameter("float", low=0, high=1, step=0.1)
LOG = parameter("float", low=1e-3, high=1, log=True)
INT = parameter("int", low=2, high=8, step=2)
CHOICE = parameter("categorical", choices=["a", 1, None])
FLAG = parameter("categorical", choices=[True, False])


@pytest.mark.parametrize(
    ("declared", "value", "taken"),
    [
        (FLOAT, 0.5, 0.5),
        (FLOAT, 1, 1.0),
        (FLOAT, 1.5, None),
        (FLOAT, True, None),
        (FLOAT, "0.5", None),
        (STEPS, 0.1 + 0.2, 0.1 + 0.2),
        (STEPS, 0.25, None),
        (LOG, 0.5, 0.5),
        (LOG, 0.0, None),
        (INT, 4, 4),
        (INT, 4.0, 4),
        (INT, 3, None),
        (INT, 4.5, None),
        (INT, True, None),
        (CHOICE, "a", "a"),
        (CHOICE, 1, 1),
        (CHOICE, 1.0, 1),
        (CHOICE, True, None),
        (CHOICE, "1", None),
        (CHOICE, "c", None),
        (FLAG, True, True),
        (FLAG, 1, None),
    ],
)
def test_values_that_the_search_space_has(
    empty: RunningServer, declared: dict[str, Any], value: Any, taken: Any
) -> None:
    found = copied(empty, DEFINITION | {"searchSpace": [declared]}, trial_of({"p": value}))
    assert [trial.params for trial in found] == ([] if taken is None else [{"p": taken}])
    for trial in found:
        assert type(trial.params["p"]) is type(taken)
        asked = empty.operator().post(f"{NEW}/ask", json={"parallelism": 1, "maxTrials": 1})
        assert asked.status_code == 200, asked.text
        proposed = recorded(empty).trials[-1]
        assert trial.distributions == proposed.distributions, "Optuna's samplers want them the same"


def test_parameters_that_the_search_space_has(empty: RunningServer) -> None:
    space = [
        {"name": "n", "type": "int", "low": 1, "high": 3},
        {"name": "u", "type": "int", "low": 1, "high": 9, "when": {"parameter": "n", "atLeast": 2}},
    ]
    good: list[dict[str, Any]] = [{"n": 1}, {"u": 5, "n": 2}]
    bad: list[dict[str, Any]] = [{}, {"u": 5}, {"n": 2}, {"n": 1, "u": 5}, {"n": 1, "x": 0.5}]
    found = copied(empty, DEFINITION | {"searchSpace": space}, *map(trial_of, good + bad))
    assert [trial.params for trial in found] == good


def test_a_study_that_continues_from_a_second_study_has_the_trials_of_both(empty: RunningServer) -> None:
    """Though their numbers are the same."""
    definition = DEFINITION | {"searchSpace": [FLOAT]}
    copied(empty, definition, trial_of({"p": 0.25}))
    second = optuna.create_study(study_name="ml/second", storage=empty.server.service._store.storage)
    second.add_trials([trial_of({"p": 0.5}), trial_of({"p": 0.75})])
    put(empty.operator(), definition | {"warmStart": "second"})
    assert [trial.params["p"] for trial in recorded(empty).trials] == [0.25, 0.5, 0.75]


def test_without_a_search_space_the_first_trial_defines_a_parameter(empty: RunningServer) -> None:
    definition = {key: value for key, value in DEFINITION.items() if key != "searchSpace"}
    points: list[dict[str, Any]] = [{"p": 0.5}, {"p": 0.5, "q": "a"}, {"p": 1}, {"p": "x"}, {"q": "b"}, {}]
    found = copied(empty, definition, *map(trial_of, points))
    assert [trial.params for trial in found] == [{"p": 0.5}, {"p": 0.5, "q": "a"}, {}]


def test_states_and_values(empty: RunningServer) -> None:
    point = {"p": 0.5}
    trials = [
        trial_of(point, values=None, state=TrialState.RUNNING),
        trial_of(point, values=None, state=TrialState.FAIL),
        trial_of(point, values=None, state=TrialState.PRUNED),
        trial_of(point, values=[3.0], state=TrialState.PRUNED, intermediate_values={0: math.nan, 7: 3.0}),
        trial_of(point, values=[math.inf]),
    ]
    found = copied(empty, DEFINITION | {"searchSpace": [FLOAT]}, *trials)
    assert [(trial.state.name, trial.values) for trial in found] == [
        ("PRUNED", None),
        ("PRUNED", [3.0]),
        ("COMPLETE", [math.inf]),
    ]
    assert str(found[1].intermediate_values) == "{0: nan, 7: 3.0}"


def test_constraints_are_copied_and_attributes_of_samplers_and_pruners_are_not(
    empty: RunningServer,
) -> None:
    attributes = {
        "grid_id": 0,
        "completed_rung_0": 0.5,
        "cma:n": 3,
        "tuning:copied_from": {"study": "a", "trial": 1},
    }
    constraints = {"constraints:size": 1.0, "constraints": [0.5]}
    trial = trial_of({"p": 0.5}, system_attrs=attributes | constraints)
    (copy,) = copied(empty, DEFINITION | {"searchSpace": [FLOAT]}, trial)
    assert copy.system_attrs == constraints | {COPIED_FROM: {"study": "ml/source", "trial": 0}}
    assert empty.operator().get(NEW).json()["best"] is None, "it is not feasible"


def test_a_grid_is_run_whole_and_brute_force_tries_nothing_twice(empty: RunningServer) -> None:
    space = [{"name": "p", "type": "int", "low": 1, "high": 3}]
    empty.operator().put("/v1/studies/ml/source", json=DEFINITION | {"searchSpace": space})
    source = recorded(empty, "ml/source")
    source.add_trial(trial_of({"p": 2}, system_attrs={"grid_id": 1, "search_space": {"p": [1, 2, 3]}}))
    for sampler, tried in (("GridSampler", [1, 2, 3]), ("BruteForceSampler", [1, 3])):
        name = sampler.lower()
        definition = DEFINITION | {"searchSpace": space, "warmStart": "source", "sampler": {"name": sampler}}
        summary = run_study(empty, f"ml/{name}", definition, lambda trial: trial.suggest_int("p", 1, 3), 9)
        own = [trial.params["p"] for trial in recorded(empty, f"ml/{name}").trials[1:]]
        assert sorted(own) == tried
        assert summary["exhausted"]


def test_a_genetic_sampler_breeds_from_copies(empty: RunningServer) -> None:
    trials = [trial_of({"p": number / 10}, values=[float(number)]) for number in range(4)]
    sampler = {"name": "NSGAIISampler", "args": {"seed": 1, "population_size": 4}}
    found = copied(empty, DEFINITION | {"searchSpace": [FLOAT], "sampler": sampler}, *trials)
    assert [trial.system_attrs["NSGAIISampler:generation"] for trial in found] == [0] * 4
    empty.operator().post(f"{NEW}/ask", json={"parallelism": 1, "maxTrials": 1})
    assert recorded(empty).trials[4].system_attrs["NSGAIISampler:generation"] == 1


def test_rungs_go_along_to_the_same_pruner(empty: RunningServer) -> None:
    halving = {"name": "SuccessiveHalvingPruner", "args": {"min_resource": 2}}
    definition = DEFINITION | {"searchSpace": [FLOAT], "pruner": halving}
    put(empty.operator(), definition, "/v1/studies/ml/source")
    (copy,) = copied(empty, definition, trial_of({"p": 0.5}, system_attrs={"completed_rung_0": 0.25}))
    assert copy.system_attrs["completed_rung_0"] == 0.25
    other = definition | {"pruner": halving | {"args": {"min_resource": 4}}, "warmStart": "source"}
    put(empty.operator(), other, "/v1/studies/ml/other")
    assert "completed_rung_0" not in recorded(empty, "ml/other").trials[0].system_attrs
