"""Latency that can be believed: from the encoded picture to the typed answer, stage by stage."""
