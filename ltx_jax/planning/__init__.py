"""Plans a training run without its devices: memory and time of a step, from compiled programs.

- `plan`: the plan that `--plan` prints.
- `hlo`: operations and collectives of a compiled program.
- `accelerators`: memory, speed and bandwidth of the known accelerators.
"""
