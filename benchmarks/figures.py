"""How a benchmark tells what it found."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Figure:
    """One value, its floor or peer of the same run, and the most their ratio should be (None = no bound)."""

    name: str
    value: float
    unit: str
    floor: float | None = None
    floor_name: str = ""
    bound: float | None = None
    n: int = 1

    @property
    def ratio(self) -> float | None:
        return None if not self.floor else self.value / self.floor

    def as_dict(self) -> dict[str, Any]:
        return {
            "name": self.name, "value": self.value, "unit": self.unit, "floor": self.floor,
            "floor_name": self.floor_name, "ratio": self.ratio, "bound": self.bound, "n": self.n,
        }

    def __str__(self) -> str:
        text = f"{self.name:42} {self.value:12.2f} {self.unit}"
        if self.ratio is not None:
            text += f"   {self.ratio:6.2f} x {self.floor_name} ({self.floor:.2f})"
        measure = self.ratio if self.ratio is not None else self.value
        if self.bound is not None:
            text += f"   [at most {self.bound:g}: {'yes' if measure <= self.bound else 'NO'}]"
        return text


def median(values: Sequence[float]) -> float:
    return statistics.median(values)
