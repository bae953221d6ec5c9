.DEFAULT_GOAL := help
.PHONY: help sync lint unit

help: ## Show the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  %-16s %s\n", $$1, $$2}'

sync: ## Install the workspace from the lock file
	@command -v uv >/dev/null || python3 -m pip install --quiet --user --break-system-packages uv || python3 -m pip install --quiet uv
	@uv sync --locked --quiet

lint: sync ## Format check, lint, types, layers
	uv run ruff format --check .
	uv run ruff check .
	uv run mypy
	uv run lint-imports

unit: sync ## Unit tests
	uv run pytest tests/unit
