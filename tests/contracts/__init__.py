"""One conformance suite a seam, run against every implementation."""
