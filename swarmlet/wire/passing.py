"""What managers say to each other about a client's request that one passes on to the leader, as headers."""

from __future__ import annotations

#: In a request: it was passed on, and must not be again. The value is the client's IP address, "-" for a unix socket's.
PASSED_ON_FOR = "Swarmlet-Passed-On-For"
#: In an answer: nothing was done, since this manager does not lead.
NOT_TAKEN = "Swarmlet-Not-Taken"
