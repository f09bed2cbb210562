#!/bin/sh
# One answer as JSON, in a script: `sh examples/script.sh DIRECTORY`. Prints the places that were found, one a line.
# The exit code is Punie's: 0 answered, 3 a permission was needed, 4 a limit was reached, ...
set -eu

answer=$(punie -p "Find all classes that inherit from Protocol" --cwd "$1" --output-format json --no-session)

# With jq: printf '%s' "$answer" | jq -r '.tool_calls[] | select(.outcome == "ok") | .output'
printf '%s' "$answer" | python3 -c '
import json, sys

found = json.load(sys.stdin)
for call in found["tool_calls"]:
    if call["outcome"] == "ok":
        print("\n".join(line for line in call["output"].splitlines() if ":" in line))
print(found["stop_reason"], "after", found["turns"], "turns", file=sys.stderr)
'
