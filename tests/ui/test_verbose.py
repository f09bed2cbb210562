"""What `--verbose` tells on standard error; what was asked for stays alone on standard output."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from tests.ui.scripted_server import Call, ScriptedServer

PUNIE = Path(sys.executable).with_name("punie")
PASSWORD = "hunt3r-Tw0-in-Url"


@pytest.mark.parametrize("output_format", ["text", "stream-json"])
def test_settings_model_requests_and_calls_are_told(
    project: Path, tmp_path: Path, server: ScriptedServer, output_format: str
) -> None:
    file = tmp_path / "config" / "punie" / "config.toml"
    file.parent.mkdir(parents=True)
    spec = server.spec.replace("http://", f"http://me:{PASSWORD}@")
    file.write_text(f'model = "{spec}"\nseed = 4\n')
    (project / ".punie").mkdir()
    (project / ".punie" / "config.toml").write_text("seed = 5\n")
    server.script = [[Call("read_file", {"path": "a.py"})], ["A class."]]
    env = {"PATH": os.environ["PATH"], "HOME": str(tmp_path), "XDG_CONFIG_HOME": str(tmp_path / "config")}
    env |= {"XDG_STATE_HOME": str(tmp_path / "state"), "PUNIE_MAX_TOKENS": "64"}
    command = [str(PUNIE), "-v", "-p", "what is in a.py?", "--output-format", output_format]
    done = subprocess.run(command, cwd=project, env=env, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert f"punie: settings: {file} sets model, seed\n" in done.stderr
    assert "punie: settings: PUNIE_MAX_TOKENS sets max_tokens\n" in done.stderr
    assert f"{project / '.punie' / 'config.toml'} is not read" in done.stderr
    assert re.search(r"punie: model: openai:\S+ is scripted\n", done.stderr)
    assert re.search(r"punie: session: [0-9a-f]{32}\n", done.stderr)
    assert re.search(r"request 1: reused 0 / prefilled 100 tokens, wrote 10 in \d+", done.stderr)
    assert re.search(r"request 2: reused 0 / prefilled 100 tokens, wrote 10 in \d+", done.stderr)
    assert done.stderr.count("• read_file(path='a.py') → ") == 1
    assert re.search(r"read_file: ok, \d+ lines, \d+ characters", done.stderr)
    assert "200 tokens in, 20 out" in done.stderr
    assert PASSWORD not in done.stdout + done.stderr
    if output_format == "text":
        assert done.stdout == "A class.\n"
    else:
        assert json.loads(done.stdout.splitlines()[-1])["stop_reason"] == "done"
