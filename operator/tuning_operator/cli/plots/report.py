"""A study as one HTML page that needs no other file and no network."""

import html
import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import optuna
from plotly.offline import get_plotlyjs

from tuning_operator.cli.plots.html import figure_of
from tuning_operator.cli.plots.kinds import Missing, drawings, failed
from tuning_operator.cli.studies import metrics_of
from tuning_operator.cli.text import status_text
from tuning_operator.cli.text.values import shown, span
from tuning_operator.cli.text.yaml_text import yaml_of
from tuning_operator.cli.trials import Trial
from tuning_operator.protocol import FinishedStudy

STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; color: #1c2733; max-width: 1200px; margin: 2rem auto;
  padding: 0 1rem }
h1 { margin-bottom: 0 }
h2 { margin-top: 2.5rem; border-bottom: 1px solid #d5dce3 }
table { border-collapse: collapse; font-variant-numeric: tabular-nums }
.wide { overflow-x: auto }
th, td { text-align: left; padding: .25rem .75rem .25rem 0; vertical-align: top; white-space: nowrap }
th { border-bottom: 1px solid #d5dce3 }
td.text { white-space: normal; min-width: 20rem }
tr.best td { font-weight: 600; background: #eaf6ec }
tr.pruned td { color: #7a6a3a }
tr.failed td { color: #a3262b }
pre { background: #f4f6f8; padding: 1rem; overflow-x: auto }
.note { color: #5b6875 }
"""


def page(
    study: Mapping[str, Any], record: FinishedStudy, trials: Sequence[Trial], plots: Sequence[str]
) -> str:
    """Return the page: the result, the plots with these names, a table of all trials and the manifest."""
    name = html.escape(study["metadata"]["name"])
    parts = [
        f"<!doctype html><html lang=en><head><meta charset=utf-8><title>{name}</title>",
        f"<style>{STYLE}</style><script>{get_plotlyjs()}</script></head><body>",
        f"<h1>{name}</h1><p class=note>{html.escape(status_text.headline(study))}</p>",
        *_result(study),
        "<h2>Plots</h2>",
        *_plots(study, record, plots),
        "<h2>Trials</h2>",
        *_table(study, trials),
        "<h2>Manifest</h2>",
        f"<pre>{html.escape(_manifest(study))}</pre></body></html>",
    ]
    return "\n".join(parts)


def _result(study: Mapping[str, Any]) -> Iterator[str]:
    best = status_text.best_of(study)
    if best is None:
        yield f"<p>{html.escape(status_text.missing_best(study))}</p>"
    else:
        front = best if isinstance(best, list) else [best]
        yield f"<h2>{'Pareto front' if isinstance(best, list) else 'Best trial'}</h2><div class=wide><table>"
        names = list(dict.fromkeys(name for trial in front for name in trial["parameters"]))
        yield _row("th", ["trial", *front[0]["values"], *names])
        for trial in front:
            parameters = [trial["parameters"].get(name) for name in names]
            yield _row("td", [trial["number"], *trial["values"].values(), *parameters])
        yield "</table></div>"
    refit = study.get("status", {}).get("refit") or {}
    if failed := status_text.failed_refit(study):
        yield f"<p>{html.escape(failed)}</p>"
    elif refit.get("phase"):
        model = f", model {refit['model']}" if refit.get("model") else ""
        yield f"<p>Refit: {html.escape(refit['phase'] + model)}</p>"
    for condition in status_text.blocking_conditions(study):
        yield f"<p>{html.escape(condition)}</p>"


def _plots(study: Mapping[str, Any], record: FinishedStudy, plots: Sequence[str]) -> Iterator[str]:
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for drawing in drawings(record, study["metadata"]["name"], metrics_of(study), plots):
            if isinstance(drawing, Missing):
                continue
            try:
                figure = figure_of(drawing).to_html(full_html=False, include_plotlyjs=False)
            except Exception as error:  # noqa: BLE001  whatever Optuna raises; the others are still drawn
                missing = failed(drawing.name, error)
                yield f"<p class=note>No {html.escape(f'{missing.name}: {missing.reason}')}</p>"
                continue
            yield f"<div class=wide>{figure}</div>"
            yield f"<p class=note>{html.escape(drawing.remark)}</p>" if drawing.remark else ""


def _table(study: Mapping[str, Any], trials: Sequence[Trial]) -> Iterator[str]:
    best = status_text.best_of(study) or []
    winners = {trial["number"] for trial in (best if isinstance(best, list) else [best])}
    metrics = metrics_of(study)
    names = list(dict.fromkeys(name for trial in trials for name in trial.record.parameters))
    yield "<div class=wide><table>"
    yield _row("th", ["trial", "state", *metrics, *names, "duration", "last step", "reason"])
    for trial in trials:
        cells = [trial.number, trial.state, *(trial.values.get(metric) for metric in metrics)]
        cells += [trial.record.parameters.get(name, "") for name in names]
        cells += ["" if trial.seconds is None else span(trial.seconds), trial.last_step]
        kind = "best" if trial.number in winners else trial.state
        yield _row("td", cells, kind, trial.reason)
    yield "</table></div>"


def _row(tag: str, cells: Sequence[Any], kind: str = "", text: str | None = None) -> str:
    written = "".join(f"<{tag}>{html.escape(_cell(cell))}</{tag}>" for cell in cells)
    last = "" if text is None else f"<{tag} class=text>{html.escape(text)}</{tag}>"
    return f'<tr class="{kind}">{written}{last}</tr>'


def _cell(value: Any) -> str:
    if value is None or isinstance(value, str):
        return value or ""
    return shown(value)


def _manifest(study: Mapping[str, Any]) -> str:
    metadata = {name: study["metadata"][name] for name in ("name", "namespace") if name in study["metadata"]}
    kept = {name: study[name] for name in ("apiVersion", "kind") if name in study}
    manifest = {**kept, "metadata": metadata, "spec": study["spec"]}
    return yaml_of(manifest)
