"""Which release this is; the distribution's version is read from here (pyproject.toml).

Asked of importlib.metadata it would cost each daemon nearly a megabyte.
"""

from __future__ import annotations

RELEASE = "0.1.0"
