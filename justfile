# Every recipe runs the tools of this repository's own environment.
bin := justfile_directory() / ".venv" / "bin"

# List the recipes.
default:
    @just --list

# Install everything that development needs into .venv.
setup:
    python3 -m venv .venv
    {{bin}}/python -m pip install --quiet --upgrade "pip>=25.1"
    {{bin}}/python -m pip install --quiet --editable '.[dev]'

# Format and mend what can be mended.
fmt:
    {{bin}}/ruff format .
    {{bin}}/ruff check --fix .

# Formatting, lint and import contracts.
check:
    {{bin}}/ruff format --check .
    {{bin}}/ruff check .
    {{bin}}/lint-imports

# Static types.
types:
    {{bin}}/pyright

# The test suite: two processes, then by itself what types at terminals. Arguments go to pytest in place of that.
test *args:
    {{bin}}/python -m pytest {{ if args == "" { "-n 2 --dist loadfile --ignore=tests/ui" } else { args } }}
    {{ if args == "" { bin / "python -m pytest tests/ui" } else { "" } }}

# Everything CI demands.
all: check types test

# Time the standard queries, the engines and start-up on this machine.
bench *args:
    {{bin}}/python -m punie_training.bench {{args}}

# Run the contract of the backends and write its table into the docs; arguments go to pytest.
conformance *args:
    {{bin}}/python -m tests.backends.conformance {{args}}

# Inject faults for as long as it takes: a program of tests/faults by its name, and its arguments.
faults name *args:
    {{bin}}/python -m tests.faults.{{name}} {{args}}

# Write the table of settings into the docs.
settings:
    {{bin}}/python -m tests.docs.settings

# Record what README.md shows: the embedded model, asked in a real terminal.
record *args:
    {{bin}}/python -m tests.docs.record {{args}}
