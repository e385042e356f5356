"""fastfeat: a feature server that answers in microseconds and never lies about time."""

from __future__ import annotations

__version__ = "0.1.0"
