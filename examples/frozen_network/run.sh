$PYTHON -c "
import numpy as np
rng = np.random.default_rng(0)
np.savez('features.npz', a=rng.normal(0, 0.3, (3, 3, 3, 8)).astype('f'), b=rng.normal(0, 0.2, (3, 3, 8, 16)).astype('f'))
"
train="$PYTHON train.py configs/shapes_tiny_vae.py --loss.feature_weight 0.5 --loss.features features.npz"
$train --run.steps 2
$train --run.steps 4 | grep "feature 0"
$PYTHON -m ltx_jax.export runs/shapes_tiny_vae exported
