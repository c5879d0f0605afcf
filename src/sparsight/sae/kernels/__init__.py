"""What matrix products leave over of a training step, once per kind of device.

cpu.py, cpu.c             compiled by the machine's C compiler on first use; `sae/fused.py` puts the parts together
gpu.py, gpu_programs.py   Triton, for CUDA; `sae/dense.py` puts the parts together
eager.py                  the same functions as gpu.py in plain torch: what they are tested against
"""
