"""What makes code that caches pleasant to test."""

from asynccache.testing.clock import TravellingClock
from asynccache.testing.sandboxes import Sandbox, sandbox

__all__ = ["Sandbox", "TravellingClock", "sandbox"]
