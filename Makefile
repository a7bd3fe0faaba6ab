# Short names for dev.py, which needs no make. `make` prints this list.
.DEFAULT_GOAL := help
.PHONY: help demo test check fix bench deep lock clean changelog

help:  ## print this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  %-10s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

demo:  ## run real jobs on SQLite and watch them
	@python3 dev.py demo

test:  ## check and test everything
	@python3 dev.py test

check:  ## format, lint, floors and types; no tests
	@python3 dev.py check

fix: .venv  ## format, and repair what the linter can
	@.venv/bin/ruff format . && .venv/bin/ruff check --fix .

bench:  ## measure speed
	@python3 dev.py bench

deep:  ## every test, the long ones too
	@python3 dev.py deep

lock:  ## renew the locked requirements
	@python3 dev.py lock --upgrade

clean:  ## remove .venv, caches and build output
	@python3 dev.py clean

changelog: .venv  ## show what the next release will say
	@.venv/bin/towncrier build --draft

.venv:
	@python3 dev.py check
