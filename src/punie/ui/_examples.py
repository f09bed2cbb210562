"""What `punie COMMAND --help` ends with: examples that work as they stand, and exit codes.

A module of text: importing it is a part of what `punie --help` takes.
"""

from collections.abc import Mapping

CHAT = """\
examples:
  punie                                    chat about this directory
  punie "where is Flask defined?"          chat, starting with a question
  punie --continue                         go on with the last conversation
  punie -p "which classes inherit from Protocol?"
  git diff | punie -p "review this" --output-format json

exit codes:
  0 answered   1 failed   2 usage or configuration   3 a permission was needed
  4 a limit was reached   130 interrupted

environment: PUNIE_MODEL, PUNIE_PERMISSION_MODE, ..., NO_COLOR
(`punie config show` names every setting)"""

COMMANDS: Mapping[str, str] = {
    "models": """\
examples:
  punie models                             what there is, and what is here
  punie models info qwen2.5-coder-7b       size, licence, memory it would take
  punie models pull qwen2.5-coder-7b       fetch its weights
  punie models test openai:qwen3@http://127.0.0.1:8080/v1

exit codes:
  0 done; `test`: answered right   1 failed   2 no such model   130 interrupted""",
    "config": """\
examples:
  punie config show                        every setting, and what set it
  punie config set model local:qwen2.5-coder-7b
  punie config set limits.max_turns 20
  punie config edit                        open your own file in $EDITOR

exit codes:
  0 done   1 the editor failed   2 an unknown setting, or a wrong value""",
    "init": """\
examples:
  punie init                               your own settings, for every project
  punie init --project                     those of the project around here

exit codes:
  0 written   2 there is a file already, or it cannot be written""",
    "completion": """\
examples:
  eval "$(punie completion bash)"          in ~/.bashrc
  eval "$(punie completion zsh)"           in ~/.zshrc, after compinit
  punie completion fish > ~/.config/fish/completions/punie.fish

exit codes:
  0 printed   2 no such shell""",
    "sessions": """\
examples:
  punie sessions list --all                those of every directory
  punie sessions export 3f2a -o talk.md    text for people
  punie sessions export 3f2a -o talk.json  one JSON document; .jsonl: JSON lines
  punie sessions import talk.json

exit codes:
  0 done   1 the store cannot be read or written   2 no such session""",
    "trust": """\
examples:
  punie trust                              trust the project around here
  punie trust ../other                     trust another one
  punie trust --list
  punie trust --remove ../other

exit codes:
  0 done   2 it cannot be trusted, or was not""",
    "doctor": """\
examples:
  punie doctor                             look at everything, ask the model
  punie doctor --quick                     without a question to the model
  punie doctor --json --model openai:qwen3@http://127.0.0.1:8080/v1
  punie doctor --bundle report.zip --session 3f2a

exit codes:
  0 the configured model can run   1 it cannot   2 usage   130 interrupted""",
    "mcp": """\
examples:
  punie mcp add issues --env 'TOKEN=${ISSUES_TOKEN}' -- issues-mcp --read-only
  punie mcp add docs https://docs.example.com/mcp -H 'X-Key: ${DOCS_KEY}'
  punie mcp add build --project -- ./tools/mcp.py    for all who work here
  punie mcp test docs                      start it, list its tools

Your own servers stand in mcp.json beside your config.toml, those of a project
in .mcp.json. Every call is asked about unless a rule allows it:
--allowed-tools 'mcp__docs__*'.

exit codes:
  0 done   1 the server does not start or answer   2 usage, or no such server""",
    "acp": """\
examples:
  punie acp                                what the editor starts
  punie acp --model claude --permission-mode acceptEdits

exit codes:
  0 the editor closed the connection   1 failed   2 usage or configuration""",
}
