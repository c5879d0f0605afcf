/* Products of two dictionaries' active latents, summed over tokens: products[a][b] += x y for every pair active on one token.

   a, x: [n, m_ours] latents and values of one dictionary; b, y: [n, m_theirs] of the other; products: [n_ours, n_theirs] float32. Each thread
   owns a range of rows of `products` and reads all tokens in order, so the sums do not depend on the number of threads. */

#include <omp.h>
#include <stdint.h>

void add_pairs(int64_t n, int64_t m_ours, int64_t m_theirs, int64_t n_ours, int64_t n_theirs, const int64_t *a, const float *x,
               const int64_t *b, const float *y, float *products)
{
#pragma omp parallel
    {
        const int64_t threads = omp_get_num_threads(), thread = omp_get_thread_num();
        const int64_t first = n_ours * thread / threads, last = n_ours * (thread + 1) / threads;
        for (int64_t i = 0; i < n; i++) {
            const int64_t *theirs = b + i * m_theirs;
            const float *values = y + i * m_theirs;
            for (int64_t j = 0; j < m_ours; j++) {
                const int64_t row = a[i * m_ours + j];
                const float value = x[i * m_ours + j];
                if (row < first || row >= last || value == 0.0f)
                    continue;
                float *sums = products + row * n_theirs;
                for (int64_t l = 0; l < m_theirs; l++)
                    sums[theirs[l]] += value * values[l];
            }
        }
    }
}
