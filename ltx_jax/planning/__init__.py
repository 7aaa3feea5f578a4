"""Predicts memory and time of a training step for accelerators that this machine does not have.

- `plan`: the plan that `--plan` prints.
- `hlo`: operations and collectives of a compiled program.
- `accelerators`: memory, speed and bandwidth of the known accelerators.
"""
