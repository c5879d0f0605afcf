"""The Triton programs behind `kernels.gpu`, which launches them and says what they compute.

Values are compared through the integer image of their bits: for positive floats it is monotone, and for all others it
is 0 or negative. Inputs are assumed free of NaN: a positive NaN would count as the largest value.

No floating-point atomics anywhere: partial sums are stored and added up by a second pass in a fixed order, so a step
gives the same bits each time. `tl.atomic_add` counts integers only, where order does not matter.
Trade-off: a selection reads its row 15 times (bfloat16), which a GPU's first-level cache serves, and so takes rows of
any width without holding them in registers.

`no_type_check` keeps the test suite's shape checker off functions that Triton compiles.
"""

from typing import no_type_check

import triton
import triton.language as tl

__all__ = [
    "activate_program",
    "centre_program",
    "histogram_program",
    "mask_program",
    "pick_program",
    "residual_program",
    "select_program",
    "update_program",
]


@triton.jit
@no_type_check
def _image(values, BITS: tl.constexpr):
    """int32 that orders positive values as they are; not positive for the others. BITS: 15 (bfloat16) or 31 (float32)."""
    return values.to(tl.int16, bitcast=True).to(tl.int32) if BITS == 15 else values.to(tl.int32, bitcast=True)


@triton.jit
@no_type_check
def select_program(pre_ptr, F, k, BITS: tl.constexpr, BLOCK: tl.constexpr):
    """One row: finds the image of the k-th largest value bit by bit, then keeps those above and the first ties."""
    row_ptr = pre_ptr + tl.program_id(0).to(tl.int64) * F
    kth = 0
    for bit in range(BITS):
        candidate = kth | (1 << (BITS - 1 - bit))
        reaching = tl.zeros([BLOCK], tl.int32)
        for start in range(0, F, BLOCK):
            columns = start + tl.arange(0, BLOCK)
            values = tl.load(row_ptr + columns, mask=columns < F, other=0.0)
            reaching += (_image(values, BITS) >= candidate).to(tl.int32)
        kth = tl.where(tl.sum(reaching, 0) >= k, candidate, kth)
    larger = tl.zeros([BLOCK], tl.int32)
    for start in range(0, F, BLOCK):
        columns = start + tl.arange(0, BLOCK)
        values = tl.load(row_ptr + columns, mask=columns < F, other=0.0)
        larger += (_image(values, BITS) > kth).to(tl.int32)
    ties_left = k - tl.sum(larger, 0)
    for start in range(0, F, BLOCK):
        columns = start + tl.arange(0, BLOCK)
        values = tl.load(row_ptr + columns, mask=columns < F, other=0.0)
        image = _image(values, BITS)
        tied = ((image == kth) & (image > 0)).to(tl.int32)
        kept = (image > kth) | ((tied > 0) & (tl.cumsum(tied, 0) <= ties_left))
        tl.store(row_ptr + columns, tl.where(kept, values, 0.0).to(values.dtype), mask=columns < F)
        ties_left -= tl.sum(tied, 0)


@triton.jit
@no_type_check
def histogram_program(
    pre_ptr, state_ptr, counts_ptr, n_values, SHIFT: tl.constexpr, FIRST: tl.constexpr, BITS: tl.constexpr,
    TILES: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Counts the 8 bits above SHIFT of the positive values whose higher bits equal state[0]."""
    prefix = tl.load(state_ptr)
    counts = tl.zeros([256], tl.int32)
    for tile in range(TILES):
        places = (tl.program_id(0).to(tl.int64) * TILES + tile) * BLOCK + tl.arange(0, BLOCK)
        image = _image(tl.load(pre_ptr + places, mask=places < n_values, other=0.0), BITS)
        counted = image > 0
        if not FIRST:
            counted = counted & ((image >> (SHIFT + 8)) == prefix)
        counts += tl.histogram((image >> SHIFT) & 255, 256, mask=counted)
    tl.atomic_add(counts_ptr + tl.arange(0, 256), counts)


@triton.jit
@no_type_check
def pick_program(
    state_ptr, counts_ptr, threshold_ptr, n_wanted, tiny, FIRST: tl.constexpr, LAST: tl.constexpr, BITS: tl.constexpr
):
    """Appends to state[0] the digit in which the state[1]-th largest value lies; LAST writes it out as a float."""
    bins = tl.arange(0, 256)
    counts = tl.load(counts_ptr + bins)
    prefix = 0
    missing = n_wanted
    if not FIRST:
        prefix = tl.load(state_ptr)
        missing = tl.load(state_ptr + 1)
    reaching = tl.sum(counts, 0) - tl.cumsum(counts, 0) + counts
    digit = tl.max(tl.where(reaching >= missing, bins, 0), 0)  # 0 also when there are too few positive values
    prefix = (prefix << 8) | digit
    tl.store(state_ptr, prefix)
    tl.store(state_ptr + 1, missing - tl.sum(tl.where(bins > digit, counts, 0), 0))
    if LAST:
        if BITS == 15:
            prefix = prefix << 16
        tl.store(threshold_ptr, tl.maximum(prefix.to(tl.float32, bitcast=True), tiny))


@triton.jit
@no_type_check
def activate_program(
    pre_ptr, threshold_ptr, sums_ptr, fired_ptr, n, F, rows_each, HAS_THRESHOLD: tl.constexpr, WRITE: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_F: tl.constexpr,
):  # fmt: skip
    """A block of columns over `rows_each` rows: zeroes what is not kept, sums and counts what is."""
    columns = tl.program_id(0) * BLOCK_F + tl.arange(0, BLOCK_F)
    first = tl.program_id(1) * rows_each
    sums = tl.zeros([BLOCK_F], tl.float32)
    fired = tl.zeros([BLOCK_F], tl.float32)
    for start in range(first, tl.minimum(first + rows_each, n), BLOCK_N):
        rows = start + tl.arange(0, BLOCK_N)
        places = rows[:, None].to(tl.int64) * F + columns[None, :]
        inside = (rows[:, None] < n) & (columns[None, :] < F)
        values = tl.load(pre_ptr + places, mask=inside, other=0.0).to(tl.float32)
        kept = values > 0
        if HAS_THRESHOLD:
            kept = kept & (values >= tl.load(threshold_ptr))
        values = tl.where(kept, values, 0.0)
        if WRITE:
            tl.store(pre_ptr + places, values.to(pre_ptr.dtype.element_ty), mask=inside)
        sums += tl.sum(values, 0)
        fired += tl.sum(kept.to(tl.float32), 0)
    partial = tl.program_id(1) * F + columns
    tl.store(sums_ptr + partial, sums, mask=columns < F)
    tl.store(fired_ptr + partial, fired, mask=columns < F)


@triton.jit
@no_type_check
def mask_program(
    dz_ptr, z_ptr, shift_ptr, sums_ptr, n, F, rows_each, HAS_SHIFT: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_F: tl.constexpr,
):  # fmt: skip
    """A block of columns over `rows_each` rows: adds the column's shift where z > 0, zeroes the rest, sums."""
    columns = tl.program_id(0) * BLOCK_F + tl.arange(0, BLOCK_F)
    first = tl.program_id(1) * rows_each
    sums = tl.zeros([BLOCK_F], tl.float32)
    for start in range(first, tl.minimum(first + rows_each, n), BLOCK_N):
        rows = start + tl.arange(0, BLOCK_N)
        places = rows[:, None].to(tl.int64) * F + columns[None, :]
        inside = (rows[:, None] < n) & (columns[None, :] < F)
        gradient = tl.load(dz_ptr + places, mask=inside, other=0.0).to(tl.float32)
        if HAS_SHIFT:
            gradient += tl.load(shift_ptr + columns, mask=columns < F, other=0.0)[None, :]
        active = tl.load(z_ptr + places, mask=inside, other=0.0).to(tl.float32) > 0
        gradient = tl.where(active, gradient, 0.0).to(dz_ptr.dtype.element_ty)
        tl.store(dz_ptr + places, gradient, mask=inside)
        sums += tl.sum(gradient.to(tl.float32), 0)
    tl.store(sums_ptr + tl.program_id(1) * F + columns, sums, mask=columns < F)


@triton.jit
@no_type_check
def centre_program(x_ptr, scale_ptr, centre_ptr, out_ptr, d, BLOCK: tl.constexpr):
    """One row: x / scale - centre."""
    row = tl.program_id(0).to(tl.int64) * d
    scale = tl.load(scale_ptr)
    for start in range(0, d, BLOCK):
        columns = start + tl.arange(0, BLOCK)
        inside = columns < d
        x = tl.load(x_ptr + row + columns, mask=inside, other=0.0).to(tl.float32)
        centred = x / scale - tl.load(centre_ptr + columns, mask=inside, other=0.0)
        tl.store(out_ptr + row + columns, centred.to(out_ptr.dtype.element_ty), mask=inside)


@triton.jit
@no_type_check
def residual_program(
    x_hat_ptr, bias_ptr, target_ptr, scale_ptr, gradient_ptr, squares_ptr, d, factor, BLOCK: tl.constexpr
):
    """One row: e = x_hat + bias - target / scale in place of x_hat, factor * e, and the row's sum of e^2."""
    row = tl.program_id(0).to(tl.int64) * d
    scale = tl.load(scale_ptr)
    squares = tl.zeros([BLOCK], tl.float32)
    for start in range(0, d, BLOCK):
        columns = start + tl.arange(0, BLOCK)
        inside = columns < d
        x_hat = tl.load(x_hat_ptr + row + columns, mask=inside, other=0.0)
        x_hat += tl.load(bias_ptr + columns, mask=inside, other=0.0)
        e = x_hat - tl.load(target_ptr + row + columns, mask=inside, other=0.0).to(tl.float32) / scale
        tl.store(x_hat_ptr + row + columns, e, mask=inside)
        tl.store(gradient_ptr + row + columns, (factor * e).to(gradient_ptr.dtype.element_ty), mask=inside)
        squares += tl.where(inside, e * e, 0.0)
    tl.store(squares_ptr + tl.program_id(0), tl.sum(squares, 0))


@triton.jit
@no_type_check
def update_program(
    W_ptr, gradient_ptr, mean_ptr, square_ptr, shadow_ptr, norms_ptr, pull_ptr, rates_ptr, d,
    BETA1: tl.constexpr, BETA2: tl.constexpr, EPS: tl.constexpr, UNIT_NORM: tl.constexpr,
    HAS_SHADOW: tl.constexpr, HAS_NORMS: tl.constexpr, HAS_PULL: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """One row, held in registers: pull, factor, projection, Adam, norm 1, bfloat16 copy, norm."""
    columns = tl.arange(0, BLOCK)
    inside = columns < d
    places = tl.program_id(0).to(tl.int64) * d + columns
    W = tl.load(W_ptr + places, mask=inside, other=0.0)
    gradient = tl.load(gradient_ptr + places, mask=inside, other=0.0)
    if HAS_PULL:
        gradient += tl.load(pull_ptr + tl.program_id(0)) * W
    gradient *= tl.load(rates_ptr + 2)
    if UNIT_NORM:
        gradient -= tl.sum(gradient * W, 0) * W
    mean = BETA1 * tl.load(mean_ptr + places, mask=inside, other=0.0) + (1 - BETA1) * gradient
    square = BETA2 * tl.load(square_ptr + places, mask=inside, other=0.0) + (1 - BETA2) * gradient * gradient
    W -= tl.load(rates_ptr) * mean / (tl.sqrt(square) * tl.load(rates_ptr + 1) + EPS)
    if UNIT_NORM or HAS_NORMS:
        norm = tl.sqrt(tl.sum(W * W, 0))
        if UNIT_NORM:
            W = W / norm
            norm = tl.sqrt(tl.sum(W * W, 0))
        if HAS_NORMS:
            tl.store(norms_ptr + tl.program_id(0), norm)
    tl.store(W_ptr + places, W, mask=inside)
    tl.store(mean_ptr + places, mean, mask=inside)
    tl.store(square_ptr + places, square, mask=inside)
    if HAS_SHADOW:
        tl.store(shadow_ptr + places, W.to(shadow_ptr.dtype.element_ty), mask=inside)
