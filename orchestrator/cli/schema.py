"""`orchestrator schema`: the JSON schema of job specs."""

from __future__ import annotations

from orchestrator.cli.options import print_json


def schema() -> None:
    """Print the JSON schema of a job spec, for editors that complete and check YAML.

    Example: orchestrator schema > job.schema.json; then the first line of a spec can be
    # yaml-language-server: $schema=job.schema.json
    """
    from orchestrator.spec import json_schema

    print_json(json_schema())
