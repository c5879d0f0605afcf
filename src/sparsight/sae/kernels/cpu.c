/* The parts of an SAE's training step that matrix products leave over, on a CPU. cpu.py states shapes and formulas.

   Types: bfloat16 is uint16_t, read by a shift and written with rounding to nearest even; sums are float32, the
   squared error over a batch float64. Matrices are contiguous rows. A selection is in compressed rows: the active
   latents of row i are entries starts[i] .. starts[i + 1] of `latents` and (bfloat16) `values`, in rising order.

   Every result is independent of the number of threads. Positive bfloat16 values have the order of their bits as
   integers, and negative ones are negative integers: selections compare integers. Loops are written so that gcc's
   vectoriser finds them; where it does not (conversion, comparison to a mask, reciprocals) AVX-512 has intrinsics. */

#include "cpu_vectors.h"

#include "cpu_select.h"

#include "cpu_rows.h"

#include "cpu_update.h"
