import subprocess
import sys

import pytest

import punie

HEAVY = ("pydantic_ai", "mlx", "xllamacpp", "pydantic", "tokenizers")


def loaded_after(code: str) -> set[str]:
    script = f"import sys\n{code}\nprint(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    return set(done.stdout.split())


def test_import_punie_loads_no_heavy_library():
    assert not loaded_after("import punie; punie.__version__; dir(punie)") & {*HEAVY}


def test_config_loads_no_agent_library():
    assert "pydantic_ai" not in loaded_after("from punie import AgentConfig; AgentConfig()")


def test_everything_public_can_be_had():
    from punie import AgentConfig, Workspace, create_agent, run_turn
    from punie.agent.factory import create_agent as same

    assert create_agent is same
    assert {*punie.__all__} <= {*dir(punie)}
    assert all((AgentConfig, Workspace, run_turn))


def test_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        punie.nothing  # noqa: B018 # pyright: ignore[reportAttributeAccessIssue]
