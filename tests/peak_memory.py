"""The peak memory of a program that a test starts."""

# Defines `peak()`, in bytes. `ru_maxrss` would not do: a new program inherits that of the process
# that started it, here a test worker that may have used gigabytes before.
PEAK = """
import pathlib, re

def peak():
    status = pathlib.Path("/proc/self/status").read_text()
    return int(re.search(r"VmHWM:\\s*([0-9]+)", status)[1]) * 1024
"""
