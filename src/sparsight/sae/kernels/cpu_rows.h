/* Batches of rows: centring, decode and error, gradients by latent; included by cpu.c. */

typedef struct { /* cpu.py, _Rows: rows as they came, in bfloat16 or float32, which are read as x * factor */
    const void *x;
    int64_t is_bf16;
    float factor;
} rows_t;

/* row[c] = base[c] - x[at + c] * factor. */
static inline void subtract_from(float *restrict row, const float *restrict base, const rows_t *rows, int64_t at, int64_t d) {
    if (rows->is_bf16)
        for (int64_t c = 0; c < d; c++) row[c] = base[c] - wide(((const bf16 *)rows->x)[at + c]) * rows->factor;
    else
        for (int64_t c = 0; c < d; c++) row[c] = base[c] - ((const float *)rows->x)[at + c] * rows->factor;
}

/* centred = bf16(x * factor - centre). What it has beyond d columns is 1, 1, 0, ...: the product with weights beside the two
   halves of a bias then adds the bias. */
void centre_rows(const rows_t *x, int64_t n, int64_t d, int64_t stride, const float *centre, bf16 *centred) {
#pragma omp parallel for schedule(static)
    for (int64_t i = 0; i < n; i++) {
        float row[d];
        subtract_from(row, centre, x, i * d, d);
        for (int64_t c = 0; c < d; c++) centred[i * stride + c] = narrow(-row[c]);
        for (int64_t c = d; c < stride; c++) centred[i * stride + c] = narrow(c < d + 2 ? 1 : 0);
    }
}

enum { CHUNK = 128 }; /* rows whose share of a sum over all rows is added up on its own, whoever does it */

/* What a row's error gives: its gradient, and that gradient's share in its sum over rows. */
static double finish_row(const float *row, int64_t d, float factor, bf16 *d_x_hat, float *d_bias) {
    for (int64_t c = 0; c < d; c++) {
        d_x_hat[c] = narrow(row[c] * factor);
        d_bias[c] += row[c] * factor;
    }
    return dot(row, row, d);
}

/* Error of x_hat + z W_dec + b_dec, and its gradients. x_hat comes from a product and z are active latents; the absent one is 0, a null
   pointer (`starts` of z). A row at a time, so that its decoder rows are fetched once for x_hat and the gradients of its latents. */
void decode_rows(int64_t n, int64_t d, const bf16 *x_hat, const int64_t *starts, const int32_t *latents, const bf16 *values,
                 const bf16 *W_dec, const float *b_dec, const rows_t *target, float factor, const float *penalty,
                 bf16 *d_x_hat, float *d_bias, float *d_values, double *squares) {
    int64_t n_chunks = (n + CHUNK - 1) / CHUNK;
    float *parts = calloc(n_chunks * d, sizeof(float));
#pragma omp parallel
    {
        float *row = scratch(d);
#pragma omp for schedule(static)
        for (int64_t chunk = 0; chunk < n_chunks; chunk++)
            for (int64_t i = chunk * CHUNK; i < n && i < (chunk + 1) * CHUNK; i++) {
                int64_t first = starts ? starts[i] : 0, m = starts ? starts[i + 1] - first : 0;
                bf16 *slope = d_x_hat + i * d;
                subtract_from(row, b_dec, target, i * d, d);
                if (x_hat)
                    for (int64_t c = 0; c < d; c++) row[c] += wide(x_hat[i * d + c]);
                if (m) add_rows(row, d, d, m, latents + first, values + first, W_dec);
                squares[i] = finish_row(row, d, factor, slope, parts + chunk * d);
                if (m) dots(d_values + first, slope, d, m, latents + first, W_dec);
                for (int64_t e = first; e < first + m; e++)
                    d_values[e] = values[e] ? d_values[e] + (penalty ? penalty[latents[e]] : 0) : 0;
            }
        free(row);
    }
    add_parts(n_chunks, d, parts, d_bias);
    free(parts);
}

/* Compressed rows to compressed columns: entry order[p] is active in latent j for column_starts[j] <= p < column_starts[j + 1].
   Each thread counts and then places the entries of its rows, behind those of the threads before it. */
void transpose_rows(int64_t n, int64_t width, const int64_t *starts, const int32_t *latents, int64_t *column_starts,
                    int32_t *rows, int32_t *order) {
    int64_t n_parts = omp_get_max_threads();
    int64_t *next = calloc(n_parts * width, sizeof(int64_t));
#pragma omp parallel for schedule(static)
    for (int64_t part = 0; part < n_parts; part++)
        for (int64_t e = starts[part * n / n_parts]; e < starts[(part + 1) * n / n_parts]; e++)
            next[part * width + latents[e]]++;
    int64_t at = 0;
    for (int64_t j = 0; j < width; j++) {
        column_starts[j] = at;
        for (int64_t part = 0; part < n_parts; part++) {
            int64_t count = next[part * width + j];
            next[part * width + j] = at;
            at += count;
        }
    }
    column_starts[width] = at;
#pragma omp parallel for schedule(static)
    for (int64_t part = 0; part < n_parts; part++)
        for (int64_t i = part * n / n_parts; i < (part + 1) * n / n_parts; i++)
            for (int64_t e = starts[i]; e < starts[i + 1]; e++) {
                int64_t p = next[part * width + latents[e]]++;
                rows[p] = (int32_t)i;
                order[p] = (int32_t)e;
            }
    free(next);
}

/* Entries from the order of rows to that of latents, in bfloat16, and the sum of each latent's. */
void sort_entries(int64_t width, const int64_t *column_starts, const int32_t *order, const void *entries, int64_t is_bf16,
                  bf16 *sorted, float *sums) {
#pragma omp parallel for schedule(static)
    for (int64_t j = 0; j < width; j++) {
        float sum = 0;
        for (int64_t p = column_starts[j]; p < column_starts[j + 1]; p++) {
            float entry = is_bf16 ? wide(((const bf16 *)entries)[order[p]]) : ((const float *)entries)[order[p]];
            sum += entry;
            sorted[p] = narrow(entry);
        }
        sums[j] = sum;
    }
}

/* out[j] = bf16(sum over latent j's entries of sorted * other[row]), a block of columns at a time: with many rows, a block
   stays in a core's cache where whole rows would not. */
void gather_gradients(int64_t width, int64_t d, int64_t stride, int64_t block, const int64_t *column_starts,
                      const int32_t *rows, const bf16 *sorted, const bf16 *other, bf16 *out) {
    int64_t n_blocks = (d + block - 1) / block;
#pragma omp parallel
    {
        float *g = scratch(block);
#pragma omp for collapse(2) schedule(static)
        for (int64_t b = 0; b < n_blocks; b++)
            for (int64_t j = 0; j < width; j++) {
                int64_t at = b * block, n = at + block < d ? block : d - at, first = column_starts[j];
                memset(g, 0, n * sizeof(float));
                add_rows(g, n, stride, column_starts[j + 1] - first, rows + first, sorted + first, other + at);
                for (int64_t c = 0; c < n; c++) out[j * d + at + c] = narrow(g[c]);
            }
        free(g);
    }
}

/* d_z = [z > 0] (d_z + penalty) in place, with the column sums of z and d_z, and how many of each column's z are positive. */
void mask_columns(int64_t n, int64_t width, const bf16 *z, bf16 *d_z, const float *penalty, float *z_sums, float *d_sums,
                  float *counts) {
#pragma omp parallel for schedule(static)
    for (int64_t at = 0; at < width; at += 256) {
        int64_t m = at + 256 < width ? 256 : width - at;
        float sums[256] = {0}, slopes[256] = {0}, active[256] = {0};
        for (int64_t i = 0; i < n; i++) {
            const bf16 *value = z + i * width + at;
            bf16 *slope = d_z + i * width + at;
            for (int64_t c = 0; c < m; c++) {
                float on = value[c] ? 1.0f : 0.0f, masked = on * (wide(slope[c]) + penalty[at + c]);
                sums[c] += wide(value[c]);
                slopes[c] += masked;
                active[c] += on;
                slope[c] = narrow(masked);
            }
        }
        memcpy(z_sums + at, sums, m * sizeof(float));
        memcpy(d_sums + at, slopes, m * sizeof(float));
        memcpy(counts + at, active, m * sizeof(float));
    }
}

/* out[i, e] = x[i] . W[latents[i, e]] in float32, m latents a row: four at a time, which share the reads of x. */
void chosen_products(int64_t n, int64_t d, int64_t m, const float *x, const float *W, const int32_t *latents, float *out) {
#pragma omp parallel for schedule(static)
    for (int64_t i = 0; i < n; i++) {
        const float *row = x + i * d;
        for (int64_t e = 0; e < m; e += 4) {
            const float *w[4];
            floats s[4] = {{0}};
            int64_t few = e + 4 <= m ? 4 : m - e, c = 0;
            for (int64_t q = 0; q < 4; q++) w[q] = W + latents[i * m + e + (q < few ? q : 0)] * d;
            for (; c + LANES <= d; c += LANES)
                for (int q = 0; q < 4; q++) s[q] += *(const floats *)(row + c) * *(const floats *)(w[q] + c);
            for (int64_t q = 0; q < few; q++) {
                float sum = total(s[q]);
                for (int64_t l = c; l < d; l++) sum += row[l] * w[q][l];
                out[i * m + e + q] = sum;
            }
        }
    }
}
