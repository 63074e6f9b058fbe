"""What runs on CUDA only: steps captured in graphs, and Triton kernels."""
