"""Adamas on CPUs, compiled by numba. Importing this package imports numba; `adamas_kernels` does not."""

from adamas_kernels.cpu.backend import CpuBackend

__all__ = ["CpuBackend"]
