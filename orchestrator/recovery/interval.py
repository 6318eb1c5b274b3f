"""How long to train between two checkpoints: the time lost to saving against the time lost to faults.

Imports: the standard library only.
"""

from __future__ import annotations

import math


def best_interval_s(save_s: float, mtbf_s: float) -> float:
    """Seconds of training between the end of one checkpoint and the start of the next that lose the least time.

    `save_s` is what one checkpoint costs the training: all of a blocking save, of an asynchronous one only the time
    that steps stand still. `mtbf_s` is the mean time between failures, infinite where none are expected. How long a
    restart takes does not matter: it is paid once per failure, whatever the interval.

    Young's first order √(2·save·mtbf) (J. W. Young, "A first order approximation to the optimum checkpoint
    interval", CACM 17(9), 1974) with Daly's higher-order correction (J. T. Daly, "A higher order estimate of the
    optimum checkpoint interval for restart dumps", FGCS 22, 2006, eq. 37), which also holds where saving takes a
    good part of the time between failures; from save ≥ 2·mtbf on it is mtbf. Raises ValueError unless save_s ≥ 0
    and mtbf_s > 0. A free checkpoint has an interval of 0.
    """
    if not (save_s >= 0 and mtbf_s > 0):
        raise ValueError(f"save_s must be zero or more and mtbf_s positive, not {save_s} and {mtbf_s}")
    if save_s == 0 or math.isinf(mtbf_s):
        return mtbf_s if save_s > 0 else 0.0
    ratio = save_s / (2 * mtbf_s)
    if ratio >= 1:
        return mtbf_s
    return math.sqrt(2 * save_s * mtbf_s) * (1 + math.sqrt(ratio) / 3 + ratio / 9) - save_s


def least_interval_s(stall_s: float, max_stall: float) -> float:
    """Seconds of training between checkpoints so that stalls of `stall_s` take at most the share `max_stall` (in
    (0, 1]) of all time. Raises ValueError for another share."""
    if not 0 < max_stall <= 1:
        raise ValueError(f"max_stall must be a share above 0 and at most 1, not {max_stall}")
    return stall_s * (1 / max_stall - 1)


def auto_interval_s(stall_s: float, save_s: float, mtbf_s: float, max_stall: float = 0.035) -> float:
    """The interval for `checkpoint.every: auto`: the one that loses the least time, unless it stalls the training for
    more than `max_stall` of the time, or the next checkpoint would begin before the last one is written.

    `stall_s`: how long steps stand still for a checkpoint; `save_s`: how long until it is committed, that included.
    Raises ValueError as the functions above do.
    """
    return max(best_interval_s(stall_s, mtbf_s), least_interval_s(stall_s, max_stall), save_s - stall_s)
