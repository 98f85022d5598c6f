.PHONY: check fmt test bench bench-gate bench-picture bench-veth bench-ledger bench-survival bench-behind bench-idle demo build wheel

check: ; scripts/check
fmt:   ; scripts/bootstrap dev && .venv/bin/ruff check --fix && .venv/bin/ruff format
test:  ; scripts/bootstrap dev && .venv/bin/pytest $(ARGS)
bench: ; scripts/bootstrap && .venv/bin/python bench/run.py $(ARGS)
bench-gate:     ; scripts/bootstrap && .venv/bin/python bench/run.py --gate $(ARGS)
bench-picture:  ; scripts/bootstrap bench && .venv/bin/python bench/run.py --picture bench/results $(ARGS)
bench-veth:     ; scripts/bootstrap && .venv/bin/python bench/run.py --veth $(ARGS)
bench-ledger:   ; scripts/bootstrap && .venv/bin/python bench/ledger.py
bench-survival: ; scripts/bootstrap && .venv/bin/python bench/survival.py
bench-behind:   ; scripts/bootstrap && .venv/bin/python bench/behind.py
bench-idle:     ; scripts/bootstrap && .venv/bin/python bench/idle.py
build: ; scripts/bootstrap
wheel: ; scripts/bootstrap && .venv/bin/pip wheel --quiet --no-build-isolation --no-deps --wheel-dir dist .
demo:  ; scripts/demo
