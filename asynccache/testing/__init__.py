"""What makes code that caches pleasant to test."""

from asynccache.testing.clock import TravellingClock
from asynccache.testing.conformance import BackendConformance
from asynccache.testing.faulty import FaultyBackend
from asynccache.testing.sandboxes import Sandbox, sandbox

__all__ = ["BackendConformance", "FaultyBackend", "Sandbox", "TravellingClock", "sandbox"]
