"""A spec as YAML with every default filled in and every secret masked, and secrets masked in any text."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from typing import Any

import yaml

from orchestrator.spec.document import SCALARS
from orchestrator.spec.environment import escape_all
from orchestrator.spec.job import MASK, JobSpec


def to_plain(spec: JobSpec, *, with_secrets: bool = False) -> dict[str, Any]:
    """The spec as values that JSON can hold, keys in the order of the models; secrets read `***`."""
    plain = spec.model_dump(mode="json")
    plain["secrets"] = secret_values(spec) if with_secrets else dict.fromkeys(spec.secrets, MASK)
    return plain


def secret_values(spec: JobSpec) -> dict[str, str]:
    """The secrets in the clear, for the environment of the processes that need them."""
    return {name: secret.get_secret_value() for name, secret in spec.secrets.items()}


def render(spec: JobSpec) -> str:
    """YAML that loads again to an equal spec (but for the secrets)."""
    plain = escape_all(to_plain(spec))
    text: str = yaml.dump(plain, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=110)
    return text


def redact(text: str, secrets: Iterable[str]) -> str:
    """Mask each of the values in the text, also as JSON or a Python string would write them."""
    forms = {form for secret in secrets for form in (secret, json.dumps(secret)[1:-1], repr(secret)[1:-1])}
    for form in sorted(forms - {"", MASK}, key=len, reverse=True):
        text = text.replace(form, MASK)
    return text


class _Dumper(yaml.SafeDumper):
    """Quotes what either YAML 1.1 or our loader would not read as text; short lists stand on one line."""

    yaml_implicit_resolvers = {  # noqa: RUF012
        **yaml.SafeDumper.yaml_implicit_resolvers,
        None: [(f"tag:yaml.org,2002:{kind}", pattern) for kind, pattern in SCALARS.items()],
    }

    def ignore_aliases(self, data: Any) -> bool:  # noqa: ARG002 - yaml's signature
        return True


def _represent_mapping(dumper: _Dumper, value: dict[str, Any]) -> yaml.Node:
    return dumper.represent_mapping("tag:yaml.org,2002:map", value, flow_style=not value)


def _represent_list(dumper: _Dumper, value: list[Any]) -> yaml.Node:
    flat = not any(isinstance(item, dict | list) for item in value)
    return dumper.represent_sequence("tag:yaml.org,2002:seq", value, flow_style=flat)


def _represent_str(dumper: _Dumper, value: str) -> yaml.Node:
    # PyYAML would write these line breaks as they are, and then read them back as spaces.
    style = '"' if re.search("[\x85\u2028\u2029]", value) else None
    return dumper.represent_scalar("tag:yaml.org,2002:str", value, style=style)


_Dumper.add_representer(str, _represent_str)
_Dumper.add_representer(dict, _represent_mapping)
_Dumper.add_representer(list, _represent_list)
