"""What every test needs."""

from __future__ import annotations

import asyncio

# pytest-asyncio asks for the main thread's loop before it sets its own. Unless told that there is none, Python
# 3.11 makes one for that question, and nobody closes it.
asyncio.set_event_loop(None)
