"""What every program of the package runs on: devices, compiled programs and files.

- `sharding`: the device mesh, and the table from logical to mesh axes.
- `platforms`: CPU, GPU or TPU, and the settings that each needs.
- `compiled`, `compiled_store`: programs that are compiled once and stored on disk.
- `files`: files and folders of results.
"""
