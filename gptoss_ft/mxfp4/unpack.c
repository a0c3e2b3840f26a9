/* Expands MXFP4 blocks to float32 or bfloat16 with AVX2; codec.py describes the format.
 *
 * Rows are strided, so that every second row of a matrix (the gate of gate_up) can be read on its
 * own; the result is written contiguously. All products are exact.
 */
#include <immintrin.h>
#include <stdint.h>
#include <string.h>

#define AVX2 __attribute__((target("avx2")))

/* 2 ** (scale - 127): scale 0 is subnormal, 255 is NaN. */
static inline float power(uint8_t scale) {
    const uint32_t bits = scale == 0     ? 0x00400000u
                          : scale == 255 ? 0x7fc00000u
                                         : (uint32_t)scale << 23;
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

/* The eight low bytes as codes: the magnitude from a table in a register, the sign from bit 3. */
AVX2 static inline __m256 eight(__m128i codes, __m256 factor) {
    const __m256 magnitudes = _mm256_setr_ps(0.0f, 0.5f, 1.0f, 1.5f, 2.0f, 3.0f, 4.0f, 6.0f);
    const __m256i lanes = _mm256_cvtepu8_epi32(codes);
    const __m256i sign = _mm256_and_si256(_mm256_slli_epi32(lanes, 28),
                                          _mm256_set1_epi32((int32_t)0x80000000u));
    const __m256 magnitude = _mm256_permutevar8x32_ps(magnitudes, lanes);
    return _mm256_mul_ps(_mm256_or_ps(magnitude, _mm256_castsi256_ps(sign)), factor);
}

/* The upper halves of 16 floats: their bfloat16 values, as none has bits below. */
AVX2 static inline __m256i upper_halves(__m256 low, __m256 high) {
    const __m256i packed = _mm256_packus_epi32(_mm256_srli_epi32(_mm256_castps_si256(low), 16),
                                               _mm256_srli_epi32(_mm256_castps_si256(high), 16));
    return _mm256_permute4x64_epi64(packed, 0xd8);
}

/* One block; the first code of a byte is its low nibble. One of values and halves is null. */
AVX2 static inline void expand(const uint8_t *bytes, float factor, float *values,
                               uint16_t *halves) {
    const __m128i nibble = _mm_set1_epi8(15);
    const __m128i pairs = _mm_loadu_si128((const __m128i *)bytes);
    const __m128i first = _mm_and_si128(pairs, nibble);
    const __m128i second = _mm_and_si128(_mm_srli_epi16(pairs, 4), nibble);
    const __m128i left = _mm_unpacklo_epi8(first, second);
    const __m128i right = _mm_unpackhi_epi8(first, second);
    const __m256 factors = _mm256_set1_ps(factor);
    const __m256 a = eight(left, factors), b = eight(_mm_srli_si128(left, 8), factors);
    const __m256 c = eight(right, factors), d = eight(_mm_srli_si128(right, 8), factors);
    if (values) {
        _mm256_storeu_ps(values, a);
        _mm256_storeu_ps(values + 8, b);
        _mm256_storeu_ps(values + 16, c);
        _mm256_storeu_ps(values + 24, d);
    } else {
        _mm256_storeu_si256((__m256i *)halves, upper_halves(a, b));
        _mm256_storeu_si256((__m256i *)(halves + 16), upper_halves(c, d));
    }
}

AVX2 static void expand_row(const uint8_t *blocks, const uint8_t *scales, int64_t groups,
                            float *values, uint16_t *halves) {
    for (int64_t g = 0; g < groups; g++)
        expand(blocks + 16 * g, power(scales[g]), values ? values + 32 * g : 0,
               halves ? halves + 32 * g : 0);
}

int gptoss_ft_supported(void) { return __builtin_cpu_supports("avx2") ? 1 : 0; }

/* Strides in bytes; half: write bfloat16 instead of float32. */
void gptoss_ft_unpack(const uint8_t *blocks, int64_t block_stride, const uint8_t *scales,
                      int64_t scale_stride, int64_t rows, int64_t groups, void *out, int half,
                      int threads) {
    (void)threads; /* without OpenMP */
#if defined(_OPENMP)
#pragma omp parallel for num_threads(threads) if (threads > 1) schedule(static)
#endif
    for (int64_t r = 0; r < rows; r++)
        expand_row(blocks + r * block_stride, scales + r * scale_stride, groups,
                   half ? 0 : (float *)out + r * groups * 32,
                   half ? (uint16_t *)out + r * groups * 32 : 0);
}
