.DEFAULT_GOAL := help
.PHONY: help try demo demo-down kubeconfig test lint unit api e2e faults bench bench-scale bench-gpu gp gpu mutants audit sbom generate format sync uv
UV := $(shell command -v uv || echo $(HOME)/.local/bin/uv)
RUN = $(UV) run --frozen
# Only unit tests use schemathesis, and each process of pytest takes 0.4 s of CPU time to import it.
WITHOUT_PLUGINS := -p no:schemathesis
export PYTHONDONTWRITEBYTECODE =  # many short processes are started, which should not compile the same modules again

help: ## List the targets
	@grep -hE '^[a-z0-9-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  %-13s %s\n", $$1, $$2}'

try: uv ## Run examples/digits on this machine, without a cluster (installs only what that needs)
	@UV_PROJECT_ENVIRONMENT=.venv-try $(RUN) --quiet --only-group try tuning run examples/digits

demo: sync ## Start a kind cluster, install the operator and run examples/mnist
	@$(RUN) python -m dev.demo

demo-down: sync ## Remove the cluster of the demo and the tests (the cache is kept)
	@$(RUN) python -m dev.cluster down

kubeconfig: sync ## Print the path of the cluster's kubeconfig
	@$(RUN) python -m dev.cluster kubeconfig

# Two at a time: while the end-to-end tests wait for their pods, the others compute. All of them run even if one fails.
test: sync ## Run all tests
	@$(MAKE) --no-print-directory --keep-going --jobs=2 e2e-prefixed lint-prefixed unit-prefixed api-prefixed

%-prefixed:
	@bash -o pipefail -c '$(MAKE) --no-print-directory $* 2>&1 | while IFS= read -r line; do echo "$*: $$line"; done'

lint: sync ## Check format, style, types, layers and spelling
	$(RUN) ruff format --check .
	$(RUN) ruff check .
	$(RUN) mypy
	$(RUN) lint-imports
	$(RUN) codespell

unit: sync ## Run the tests that need no Kubernetes
	$(RUN) pytest tests/unit -n 2

api: sync ## Run the tests that need an API server but no pods
	$(RUN) pytest tests/api -n 2 --dist loadfile $(WITHOUT_PLUGINS)

e2e: sync ## Run the tests with real pods, on a kind cluster
	$(RUN) pytest tests/e2e tests/faults --timeout=1800 -n 4 --maxschedchunk=1 $(WITHOUT_PLUGINS)

faults: sync ## Inject faults into studies on the kind cluster, and write docs/reliability.md (not part of test)
	$(RUN) pytest tests/faults tests/unit/local/test_local_faults.py tests/unit/studies/test_disk_full.py \
	  tests/api/test_api_server_faults.py -m "matrix or not matrix" --write-page

gp: sync ## Build the study server's image with PyTorch, and run the tests of GPSampler in it (not part of test)
	$(RUN) python -m dev.gp

gpu: uv ## Run the tests that need an NVIDIA GPU, with PyTorch: 5 GB in .venv-gpu (not part of test)
	UV_PROJECT_ENVIRONMENT=.venv-gpu $(RUN) --group gpu pytest tests/gpu

bench: sync ## Run the benchmarks that take minutes, and write docs/benchmarks.md (not part of test)
	$(RUN) --group bench python -m tests.bench

bench-scale: sync ## Run the benchmarks of many trials and studies (30 minutes), and write docs/benchmarks.md (not part of test)
	$(RUN) --group bench python -m tests.bench --scale

bench-gpu: uv ## Run the benchmarks that need an NVIDIA GPU (5 minutes), and write docs/benchmarks.md (not part of test)
	UV_PROJECT_ENVIRONMENT=.venv-gpu $(RUN) --group gpu python -m tests.bench --gpu

mutants: sync ## Plant 100 small faults, one at a time: the unit tests must notice 95 (not part of test)
	$(RUN) --group mutants python -m dev.mutants

audit: uv ## Check all locked dependencies for known vulnerabilities (needs pypi.org; not part of test)
	@$(UV) export --quiet --frozen --all-packages --all-extras --all-groups --no-emit-workspace --no-header | \
	  $(UV) tool run pip-audit==2.10.1 --strict --disable-pip --require-hashes --requirement /dev/stdin

sbom: uv ## Write an SBOM of the dependencies of the images and packages to dist/sbom.cdx.json (CycloneDX)
	@mkdir -p dist
	@$(UV) export --quiet --frozen --all-packages --all-extras --no-dev --preview-features sbom-export \
	  --format cyclonedx1.5 --output-file dist/sbom.cdx.json
	@echo dist/sbom.cdx.json

generate: sync ## Generate crds/, the chart's copy and docs/reference from the models
	$(RUN) python -m tuning_operator.resource.crdgen > crds/tuningstudies.tuning.dev.yaml
	cp crds/tuningstudies.tuning.dev.yaml charts/tuning-operator/files/
	$(RUN) python -m tuning_operator.resource.reference > docs/reference/tuningstudy.md

format: sync ## Format the code and apply the linter's fixes
	$(RUN) ruff format .
	$(RUN) ruff check --fix .

sync: uv # Install the workspace from the lock file
	@$(UV) sync --locked --quiet

uv: # Install uv if it is missing
	@test -x "$(UV)" || python3 -m venv $(HOME)/.cache/tuning-operator/uv && test -x "$(UV)" || \
	  { $(HOME)/.cache/tuning-operator/uv/bin/pip install --quiet uv && mkdir -p $(HOME)/.local/bin && \
	    ln -sf $(HOME)/.cache/tuning-operator/uv/bin/uv $(HOME)/.local/bin/uv; }
