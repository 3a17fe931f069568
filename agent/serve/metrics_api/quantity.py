"""Numbers as quantities of Kubernetes: integers where they are exact, else thousandths, rounded up.

Rounded up, because a small number that becomes 0 is an order to scale to zero. A number that is not finite, negative or
too large has no quantity: HPA arithmetic is in 64-bit thousandths.
"""

from __future__ import annotations

from math import ceil
from typing import Final

MAX_QUANTITY: Final = 9.2e15  # 2^63 thousandths


def quantity(value: float) -> str | None:
    """`3.5` -> `3500m`, `42.0` -> `42`; None where there is no quantity."""
    if not 0 <= value <= MAX_QUANTITY:  # NaN is in no range
        return None
    whole = int(value)
    if whole == value:
        return str(whole)
    thousandths = ceil(value * 1000)
    # The product may be rounded past an integer: 0.57 * 1000 is below 570, other products are above.
    while (thousandths - 1) / 1000 >= value:
        thousandths -= 1
    while thousandths / 1000 < value:
        thousandths += 1
    return f"{thousandths}m" if thousandths % 1000 else str(thousandths // 1000)
