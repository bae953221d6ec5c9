.DEFAULT_GOAL := help
.PHONY: help sync lint format generate unit api e2e test demo demo-down kubeconfig
UV := $(shell command -v uv || echo $(HOME)/.local/bin/uv)
RUN = $(UV) run --frozen

help: ## Show the targets
	@grep -hE '^[a-z0-9-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  %-12s %s\n", $$1, $$2}'

demo: sync ## A real Kubernetes, the images, the chart, examples/mnist, a live table of its trials
	@$(RUN) python -m dev.demo

demo-down: sync ## Remove the cluster of the demo and the tests; what was built stays in the cache
	@$(RUN) python -m dev.cluster down

kubeconfig: sync ## Print the path of that cluster's kubeconfig
	@$(RUN) python -m dev.cluster kubeconfig

test: lint unit api e2e ## Every test; each tier does its own set-up

lint: sync ## Format, lint, types, layers
	$(RUN) ruff format --check .
	$(RUN) ruff check .
	$(RUN) mypy
	$(RUN) lint-imports

unit: sync ## What needs no Kubernetes; Postgres and HTTP are real
	$(RUN) pytest tests/unit -n 2

api: sync ## The resource, the operator and the chart on a real API server
	$(RUN) pytest tests/api -n 2

e2e: sync ## Studies in real pods on a kind cluster
	$(RUN) pytest tests/e2e --timeout=900 -n 2 -m "not disruptive"
	$(RUN) pytest tests/e2e --timeout=900 -m disruptive

generate: sync ## Make crds/, the chart's copy and docs/reference from the models
	$(RUN) python -m tuning_operator.resource.crdgen > crds/tuningstudies.tuning.dev.yaml
	cp crds/tuningstudies.tuning.dev.yaml charts/tuning-operator/files/
	$(RUN) python -m tuning_operator.resource.reference > docs/reference/tuningstudy.md

format: sync ## Mend what the formatter and the linter can
	$(RUN) ruff format .
	$(RUN) ruff check --fix .

sync: # The workspace from the lock file; uv itself where it is missing
	@test -x "$(UV)" || python3 -m venv $(HOME)/.cache/tuning-operator/uv && test -x "$(UV)" || \
	  { $(HOME)/.cache/tuning-operator/uv/bin/pip install --quiet uv && mkdir -p $(HOME)/.local/bin && \
	    ln -sf $(HOME)/.cache/tuning-operator/uv/bin/uv $(HOME)/.local/bin/uv; }
	@$(UV) sync --locked --quiet
