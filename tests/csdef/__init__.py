"""Tests of `relay import`."""

from hypothesis import HealthCheck, settings

# A slow machine is no mistake of the importer's, and neither is it one that examples take long to make there.
PATIENT = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
