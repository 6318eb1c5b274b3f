"""`orchestrator submit`: run a spec as a job of a cluster."""

from __future__ import annotations

import time
from typing import Annotated

import typer

from orchestrator.cli.options import (
    AddressOption,
    Output,
    OutputOption,
    OverridesArgument,
    SpecArgument,
    print_json,
)


def submit(
    spec: SpecArgument,
    overrides: OverridesArgument = None,
    address: AddressOption = None,
    no_follow: Annotated[bool, typer.Option("--no-follow", help="Submit and leave.")] = False,
    submission_id: Annotated[
        str | None,
        typer.Option("--submission-id", help="By default NAME-DATE-TIME-xxxx.", show_default=False),
    ] = None,
    output: OutputOption = Output.text,
) -> None:
    """Submit a spec with its working directory as a Ray job, follow its log, and exit as the job does.

    Ctrl-C leaves the job running. With `-o json` the job's state is printed, and its log is not.

    Example: orchestrator submit jobs/digits.yaml train.max_epochs=3 --address http://HEAD:8265
    """
    from orchestrator.runners.submission import jobs
    from orchestrator.runners.submission.client import job_address
    from orchestrator.spec import load_spec

    target = job_address(address)
    settings = overrides or []
    loaded = load_spec(spec, settings)
    job_id = jobs.submit_job(
        loaded, spec_argument=spec, overrides=settings, address=target, submission_id=submission_id
    )
    quiet = output is Output.json
    typer.echo(f"submitted {job_id} to {target}", err=quiet)
    if not no_follow:
        try:
            code = _follow(target, job_id, quiet=quiet)
        except KeyboardInterrupt:
            typer.echo(
                f"\n{job_id} goes on; stop it with: orchestrator stop {job_id} --address {target}", err=True
            )
            raise typer.Exit(130) from None
    if quiet:
        print_json(jobs.job_status(target, job_id))
    if not no_follow:
        raise typer.Exit(code)


def _follow(address: str, job_id: str, *, quiet: bool) -> int:
    from orchestrator.runners.submission import jobs

    told = end = ""
    while not quiet and (status := jobs.job_status(address, job_id))["state"] == "PENDING":
        if status["reason"] != told:
            told = status["reason"]
            typer.echo(f"PENDING: {told}", err=True)
        time.sleep(1)
    if not quiet:
        for text in jobs.follow_logs(address, job_id, follow=True):
            typer.echo(text, nl=False)
            end = (end + text)[-2000:]
    code = jobs.wait_job(address, job_id, timeout_s=None)
    if code and not quiet and (reason := jobs.job_status(address, job_id)["reason"]) not in end:
        typer.echo(reason, err=True)  # what the log could not tell: the command never ran
    return code
