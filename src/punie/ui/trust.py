"""Trusting a directory: `punie trust`, and the question in the terminal before anything of a project is read."""

import os
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Literal

from punie.config import home_of, trust_store
from punie.errors import UsageError
from punie.trust import project_root
from punie.ui._clean import visible
from punie.ui._setup import Setup

Action = Literal["add", "remove", "list"]


def run(action: Action, directory: Path, *, env: Mapping[str, str]) -> int:
    """Do one action of `punie trust` and return the exit code."""
    store = trust_store(env)
    if action == "list":
        for path in store.paths():
            _print(path if Path(path) in store else f"{path}  (gone, or another directory by now: not trusted)")
        return 0
    root = project_root(directory, home=home_of(env))
    if action == "add":
        store.add(root)
        _print(f"Trusted: {root}")
        return 0
    if not store.remove(root):
        raise UsageError(f"{root} is not among the trusted directories.", "`punie trust --list` names them.")
    _print(f"No longer trusted: {root}")
    return 0


def offer(setup: Setup, *, env: Mapping[str, str], ask: Callable[[str], str]) -> bool:
    """Ask whether to trust the project if something of it waits for that; whether it is trusted from now on.

    `ask` shows a question and returns what was typed.
    """
    if setup.trusted or not setup.waiting:
        return False
    store, root = trust_store(env), project_root(setup.root, home=home_of(env))
    _print(f"{visible(str(root))} is not trusted yet. If you trust it, Punie reads from it:")
    for path in setup.waiting:
        _print(f"  {visible(os.path.relpath(path, root))}")
    _print("It can shape what the model is told and which rules apply, so trust only what you have looked at.")
    if ask("Trust this directory? [y/N] ").strip().lower() not in {"y", "yes"}:
        return False
    store.add(root)
    return True


def ask_at_terminal(question: str) -> str:
    """What the user types after the question is shown; nothing at the end of input."""
    from prompt_toolkit import PromptSession

    from punie.ui._keyboard import forget_typed

    forget_typed()
    try:
        return PromptSession[str]().prompt(question)
    except EOFError:
        return ""


def _print(text: str) -> None:
    sys.stdout.write(visible(text) + "\n")
    sys.stdout.flush()
