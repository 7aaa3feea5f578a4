"""The camera's motion changes the videos of networks that were trained with it, and no others."""

import numpy as np

old = np.load("old_None.npy")
for run in ("shapes_tiny_transformer", "encoded", "unchanged"):
    left, right = (np.load(f"{run}_{camera}.npy") for camera in ("left", "right"))
    if run == "unchanged":
        np.testing.assert_array_equal(left, right)
        np.testing.assert_array_equal(left, old)
    else:
        assert np.abs(left - right).max() > 1e-6, run
