"""Keys of services: from the environment, else from the system's keyring. Never from a file."""

from collections.abc import Mapping
from importlib import import_module
from importlib.util import find_spec
from urllib.parse import unquote

SERVICE = "punie"
NO_KEY = "not-needed"
"""Sent to servers that get no key: the SDK insists on one."""


def find(name: str, env: Mapping[str, str]) -> str:
    """The key under its variable's name; empty when there is none."""
    return env.get(name, "").strip() or _from_keyring(name)


def of_collector(env: Mapping[str, str]) -> Mapping[str, str]:
    """What a collector of telemetry is sent in headers, by what it is to be called; `Bearer KEY` is KEY as well."""
    found: dict[str, str] = {}
    for variable in ("OTEL_EXPORTER_OTLP_HEADERS", "OTEL_EXPORTER_OTLP_TRACES_HEADERS"):
        for pair in env.get(variable, "").split(","):
            name, _, value = pair.partition("=")
            value = unquote(value.strip())
            found |= {f"otlp-{name.strip()}": value, f"otlp-{name.strip()}-key": value.rpartition(" ")[2]}
    return found


def how_to_set(name: str) -> str:
    """What a person does about a missing key, in one line."""
    if find_spec("keyring"):
        return f"Set {name} in the environment, or store it: keyring set {SERVICE} {name}"
    return f"Set {name} in the environment, or: pip install 'punie[keyring]' && keyring set {SERVICE} {name}"


def _from_keyring(name: str) -> str:
    """Empty without the optional package, without a keyring on this system, or when it stays locked."""
    if find_spec("keyring") is None:
        return ""
    keyring = import_module("keyring")
    try:
        return (keyring.get_password(SERVICE, name) or "").strip()
    except import_module("keyring.errors").KeyringError:
        return ""
