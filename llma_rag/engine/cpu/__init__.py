"""What runs on a CPU only: layouts of weights, products, and kernels that numba compiles."""
