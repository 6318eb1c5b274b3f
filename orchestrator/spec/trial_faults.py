"""Trials of a search made to see whether they fit: at the ends of each domain, and at each value of a choice."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from pydantic import ValidationError

from orchestrator.errors import Fault, SpecError
from orchestrator.spec.anatomy import fields_of_kind
from orchestrator.spec.document import Document, FieldPath
from orchestrator.spec.environment import Substituted
from orchestrator.spec.faults import explain
from orchestrator.spec.space import NoValue, SearchSpace
from orchestrator.spec.trials import lay_params, related
from orchestrator.spec.validation import validate

Found = Iterator[tuple[FieldPath, str, str]]
"""Faults as they are found: where below `tune`, the reason, the mend."""


@dataclass
class TriedTrials:
    """Trials at the ends of the domains, tried one after the other."""

    space: SearchSpace
    substituted: Substituted
    plain: Mapping[str, Any]

    def faults(self) -> Found:
        """At most one for each parameter."""
        told: set[str] = set()
        base, last = self.space.ends()
        known = self._tried(base)
        if known and not self._tried(last):
            base, known = last, []
        for fault in known:
            home = (related(fault, list(self.space.params)) or list(self.space.params))[0]
            if home not in told:
                told.add(home)
                yield self._told(fault, home, "", base)
        for path, sampled in self.space.around(base):
            for fault in self._tried(sampled):
                own = related(fault, list(self.space.params))
                home = own[0] if own and _inside(fault.field, own[0]) else path
                if fault not in known and home not in told:
                    told.add(home)
                    yield self._told(fault, home, path, sampled)

    def _tried(self, sampled: Mapping[str, Any]) -> list[Fault]:
        """The faults of the trial, in the fields of the job."""
        try:
            params = self.space.resolve(sampled)
            laid = lay_params(self.substituted.document, params, self.plain)
            spec = validate(replace(self.substituted, document=Document(laid.values, {})))
        except NoValue as error:
            return [Fault(error.path, error.reason)]
        except SpecError as error:
            return list(error.faults)
        except ValidationError as error:
            return explain(error, Document(laid.values, {}))
        searched = any(path.startswith("resources") for path in params)
        if searched and isinstance(spec.resources.num_workers, tuple):
            reason = "needs a fixed number of workers per trial, not [min, max]"
            return [Fault("resources.num_workers", reason)]
        return []

    def _told(
        self, fault: Fault, home: str, varied: str, sampled: Mapping[str, Any]
    ) -> tuple[FieldPath, str, str]:
        """A trial's fault as one of the parameter `home`; `varied` is the one whose value made it."""
        where = ("param_space", home)
        reason, mend = fault.reason, fault.mend
        if fault.field == home and self.space.params[home].expr is not None:
            value = self._computed(home, sampled)
            reason = f"comes to {shown(value)} and does not fit: {reason}" if value is not None else reason
        elif "known key" in reason:
            reason = f"{fault.field} {reason}" if fault.field != home else reason
        elif fault.field == home:
            reason = f"{shown(sampled.get(home))} does not fit: {reason}"
        else:
            reason = f"{shown(sampled.get(home))} does not fit: {fault.field}: {reason}"
        if varied and varied != home:
            reason += f" (where {varied} is {shown(sampled[varied])})"
            section, _, name = home.rpartition(".")
            if varied == f"{section}.kind":
                kinds = self.space.params[varied].values
                fitting = [kind for kind in kinds if name in fields_of_kind(section.split("."), str(kind))]
                wanted = fitting[0] if len(fitting) == 1 else f"[{', '.join(map(str, fitting))}]"
                mend = f"Add when: {{{varied}: {wanted}}}" if fitting else mend
        return where, reason, mend

    def _computed(self, path: str, sampled: Mapping[str, Any]) -> Any:
        try:
            return self.space.resolve(sampled).get(path)
        except NoValue:
            return None


def _inside(field: str, path: str) -> bool:
    return f"{field}.".startswith(f"{path}.")


def shown(value: Any) -> str:
    """As YAML would show it on a line, cut short."""
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= 60 else text[:57] + "…"
