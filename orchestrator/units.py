"""Durations and sizes with units, to seconds and bytes. Imports: the standard library only."""

from __future__ import annotations

import math
import re

_SECONDS = {"ms": 0.001, "s": 1, "m": 60, "min": 60, "h": 3600, "d": 86400}
_BYTES = {
    "": 1, "b": 1,
    "kb": 10**3, "mb": 10**6, "gb": 10**9, "tb": 10**12,
    "kib": 2**10, "mib": 2**20, "gib": 2**30, "tib": 2**40,
}  # fmt: skip
_LONGEST_S = 100 * 365 * 86400
_LARGEST_BYTES = 2**63 - 1
_DURATION_PART = re.compile(r"(\d+(?:\.\d+)?)\s*(ms|min|s|m|h|d)\s*", re.ASCII)
_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([a-z]*)", re.ASCII)


def parse_duration(value: object) -> float:
    """Seconds of `90`, `"90s"`, `"10m"` or `"1h30m"`.

    Raises ValueError for anything else, for negative values and for more than 100 years.
    """
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        raise ValueError("must be a duration such as 90, '90s', '10m' or '1h30m'")
    if isinstance(value, str):
        text = value.strip().lower()
        parts = list(_DURATION_PART.finditer(text))
        if not parts or "".join(part.group(0) for part in parts) != text:
            raise ValueError(f"'{value}' is not a duration; write 90, '90s', '10m', '1h30m' or '2d'")
        value = sum(float(part.group(1)) * _SECONDS[part.group(2)] for part in parts)
    if not 0 <= value <= _LONGEST_S:
        raise ValueError("must be a duration of zero or more, and at most 100 years")
    return float(value)


def parse_size(value: object) -> int:
    """Bytes of `1024`, `"64GB"` (decimal) or `"2GiB"` (binary).

    Raises ValueError for anything else, for negative values and from 2⁶³ bytes on.
    """
    if isinstance(value, bool) or not isinstance(value, int | str):
        raise ValueError("must be a size such as 1048576, '512MB', '64GB' or '2GiB'")
    if isinstance(value, str):
        match = _SIZE.fullmatch(value.strip().lower())
        if not match or match.group(2) not in _BYTES:
            raise ValueError(f"'{value}' is not a size; write a number of bytes, '512MB', '64GB' or '2GiB'")
        number = float(match.group(1)) * _BYTES[match.group(2)]
        value = round(number) if math.isfinite(number) else _LARGEST_BYTES + 1
    if not 0 <= value <= _LARGEST_BYTES:
        raise ValueError("must be a size of zero or more, and below 8 EiB")
    return value
