"""What matrix products leave over of a training step, once per kind of device; `sae/fused.py` puts the parts together.

cpu.py, cpu.c    compiled by the machine's C compiler on first use
"""
