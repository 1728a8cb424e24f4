"""The operations on GPUs, in Triton. Importing this package imports nothing; its files import Triton."""
