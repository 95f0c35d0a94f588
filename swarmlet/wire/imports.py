"""One import on many nodes: what the manager adds to the Engine API's call, so that all make the same image of it."""

from __future__ import annotations

#: Request header: the image's time of creation, RFC 3339. It is part of what an image's id is made of.
CREATED_AT = "Swarmlet-Created-At"
