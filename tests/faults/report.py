"""The page on reliability, generated from runs of the faults and of the soak."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

PAGE = Path(__file__).parents[2] / "docs" / "reliability.md"
HEAD = """\
# Reliability

What happens to a study when something fails. Each line is a test: the fault is injected into a running
study, and afterwards the record in Postgres, the Jobs and the status are compared:

- exactly `maxTrials` trials, numbered from 0, all COMPLETE (or PRUNED where the line says so), none RUNNING;
- each reported value is recorded once, with the right parameters;
- no trial had two Jobs at a time;
- the status counts what the record has, and the best trial is the best;
- after the study was deleted, no Job, Pod, ConfigMap or Secret is left.

`make faults` updates this page. The lines of `test_cluster` are from the kind cluster of the tests, those of
`test_cloudnativepg` from the same one with [a database of CloudNativePG](production.md#cloudnativepg), and
those of `test_nodes` from one with a control plane and two workers. So that these take less time, Kubernetes
notices there after 20 s that a node is lost, and deletes its pods 10 s later. Its defaults are 50 s and 5
minutes. The API server's faults are injected by a proxy between the operator and a real API server, whose
node is simulated. The lines of full disks are from a real Postgres, without a cluster.

"Recovery" is the time from the end of the fault until the next trial finished; a trial takes 4 s plus its
pod's start. It is empty if it was not measured, or if the study ended while the fault lasted.

Faults between any two calls of the operator, before and after their effect, are in
`tests/unit/kube/test_convergence.py`; those between the study server and Postgres in `tests/unit/studies`.

| fault | promise | test | result | recovery |
|---|---|---|---|---|
"""
CLUSTERS = ("test_cluster[", "test_cloudnativepg[", "test_nodes[")


@dataclass(frozen=True)
class Result:
    """What one fault did to its study."""

    what: str
    promise: str
    test: str
    violations: tuple[str, ...]
    recovery: float | None
    """Seconds."""

    @property
    def line(self) -> str:
        outcome = "; ".join(self.violations) or "clean"
        recovery = "" if self.recovery is None else f"{self.recovery:.0f} s"
        return f"| {self.what} | {self.promise} | `{self.test}` | {outcome} | {recovery} |\n"


RESULTS: list[Result] = []
"""Of this run."""

SOAK = """
## Soak

Short trials while the operator, the study server or Postgres is killed at random, a few seconds after the
last one was back. `python -m tests.faults.soak` updates this section. The control plane and the database are
real; the node and the trainers are simulated. At the end, each trial must be COMPLETE, with the parameters
and values that its trainer had, each value once, and with one Job. Nothing is killed in the second half,
where memory is measured.

"""


def write(results: Sequence[Result], cluster: Sequence[str]) -> None:
    """Write these results, and earlier ones of faults that were not injected now.

    Args:
        results: of this run.
        cluster: the names of all tests on the kind clusters, in the order of the page; other tests follow.
    """
    known = PAGE.read_text() if PAGE.exists() else ""
    _, heading, soak = known.partition("\n## Soak\n")
    lines = {
        line.split("`")[1]: line
        for line in known.splitlines(keepends=True)
        if line.startswith("| ") and "| `" in line
    }
    lines |= {result.test: result.line for result in results}
    others = [test for test in lines if not test.startswith(CLUSTERS)]
    table = "".join(lines[test] for test in (*cluster, *others) if test in lines)
    PAGE.write_text(HEAD + table + heading + soak)


def write_soak(summary: str, memory: Sequence[tuple[int, int, int]]) -> None:
    """Write the result of the soak, and the memory: trials finished, MiB of the operator, of the server."""
    rows = [f"| {done:,} | {operator} MiB | {server} MiB |" for done, operator, server in memory]
    table = "\n".join(["| trials finished | operator | study server |", "|---|---|---|", *rows])
    before = PAGE.read_text().partition(SOAK.partition("\n\n")[0])[0]
    PAGE.write_text(f"{before}{SOAK}{summary}\n\n{table}\n")
