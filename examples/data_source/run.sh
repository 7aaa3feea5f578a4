$PYTHON -c "
import pathlib
import numpy as np
pathlib.Path('clips').mkdir()
for i in range(4):
    frames = np.full((7, 20, 20, 3), 60 * i, np.uint8)
    np.savez(f'clips/{i}.npz', frames=frames, caption=f'grey {i}', frame_rate=8.0)
"
train="$PYTHON train.py configs/shapes_tiny_vae.py --data.source arrays:clips"
$train --run.steps 2
$train --run.steps 4
