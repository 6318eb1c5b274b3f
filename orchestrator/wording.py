"""How numbers and times read in what people are told. Imports: the standard library only."""

from __future__ import annotations


def counted(count: int, noun: str) -> str:
    """`1 trial`, `1,000 trials`."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def one_line(text: str) -> str:
    return " ".join(text.split())


def rounded(value: float) -> str:
    """Four decimals, or four figures where the number is tiny or large."""
    return f"{value:.4f}" if 0.001 <= abs(value) < 1000 or value == 0 else f"{value:.4g}"


def time_taken(seconds: float) -> str:
    """`4.2 s`, `3 min 20 s`, `5 h 0 min`."""
    whole = round(seconds)
    if whole < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(whole, 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"
