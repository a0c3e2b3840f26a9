/* Adds a dense update to MXFP4 blocks and rounds to their own scales, with AVX2; rounding.py has
 * the definition and the reference. All blocks, counts and the largest error have its bits.
 *
 * Most blocks of a usual update stay as they are, and a look at its largest entry tells which.
 */
#include <immintrin.h>
#include <stdint.h>
#include <string.h>

#define AVX2 __attribute__((target("avx2")))

/* What a row's rounding did; the order of numbers_of in rounding.py. */
enum { CHANGED, SATURATED, MAX_ERROR, DELTA, WEIGHT, ERROR_, NUMBERS };

/* 2 ** exponent as a float, for exponents from -127 (subnormal) to 127. */
static inline float power(int exponent) {
    const uint32_t bits = exponent == -127 ? 0x00400000u : (uint32_t)(exponent + 127) << 23;
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

/* Lane codes 0..15 as values; the sign from bit 3. */
AVX2 static inline __m256 values(__m256i codes) {
    const __m256 magnitudes = _mm256_setr_ps(0.0f, 0.5f, 1.0f, 1.5f, 2.0f, 3.0f, 4.0f, 6.0f);
    const __m256i sign = _mm256_and_si256(_mm256_slli_epi32(codes, 28),
                                          _mm256_set1_epi32((int32_t)0x80000000u));
    return _mm256_or_ps(_mm256_permutevar8x32_ps(magnitudes, codes), _mm256_castsi256_ps(sign));
}

/* Codes of the nearest values, ties to even. Adding 1.5 * 2 ** 22 in units of the local spacing
 * leaves the rounded multiple in the low bits of the sum. */
AVX2 static inline __m256i nearest(__m256 wanted) {
    const __m256 magnitude = _mm256_andnot_ps(_mm256_set1_ps(-0.0f), wanted);
    const __m256 capped = _mm256_min_ps(magnitude, _mm256_set1_ps(6.0f));
    const __m256i exponent =
        _mm256_and_si256(_mm256_castps_si256(_mm256_max_ps(capped, _mm256_set1_ps(1.0f))),
                         _mm256_set1_epi32(0x7f800000));
    const __m256i magic = _mm256_or_si256(
        _mm256_add_epi32(exponent, _mm256_set1_epi32(22 << 23)), _mm256_set1_epi32(0x400000));
    const __m256 sum = _mm256_add_ps(capped, _mm256_castsi256_ps(magic));
    const __m256i multiple = _mm256_sub_epi32(_mm256_castps_si256(sum), magic);
    const __m256i doubled = _mm256_sub_epi32(_mm256_srli_epi32(exponent, 22), _mm256_set1_epi32(254));
    const __m256i sign = _mm256_and_si256(_mm256_srli_epi32(_mm256_castps_si256(wanted), 28),
                                          _mm256_set1_epi32(8));
    return _mm256_or_si256(_mm256_add_epi32(multiple, doubled), sign);
}

AVX2 static inline double sum(__m256 lanes) {
    float parts[8];
    _mm256_storeu_ps(parts, lanes);
    double total = 0;
    for (int i = 0; i < 8; i++) total += parts[i];
    return total;
}

AVX2 static inline float largest(__m256 lanes) {
    float parts[8], found = 0;
    _mm256_storeu_ps(parts, lanes);
    for (int i = 0; i < 8; i++) found = parts[i] > found ? parts[i] : found;
    return found;
}

/* Sum of the squares of a block's values in units of its scale, times 4: an integer. */
AVX2 static inline int64_t squares(__m128i pairs) {
    const __m128i table = _mm_setr_epi8(0, 1, 4, 9, 16, 36, 64, (char)144, 0, 1, 4, 9, 16, 36, 64,
                                        (char)144);
    const __m128i nibble = _mm_set1_epi8(15), zero = _mm_setzero_si128();
    const __m128i low = _mm_shuffle_epi8(table, _mm_and_si128(pairs, nibble));
    const __m128i high =
        _mm_shuffle_epi8(table, _mm_and_si128(_mm_srli_epi16(pairs, 4), nibble));
    const __m128i both = _mm_add_epi64(_mm_sad_epu8(low, zero), _mm_sad_epu8(high, zero));
    return _mm_cvtsi128_si64(both) + _mm_extract_epi64(both, 1);
}

/* The sums of a row, as vectors. */
typedef struct {
    __m256 delta, error, largest;
    __m256i saturated;
} Sums;

/* Rounds a block that may change; returns its new bytes. */
AVX2 static __m128i round_block(__m128i pairs, const float *delta, int exponent, Sums *sums) {
    const __m128i nibble = _mm_set1_epi8(15);
    const __m128i first = _mm_and_si128(pairs, nibble);
    const __m128i second = _mm_and_si128(_mm_srli_epi16(pairs, 4), nibble);
    const __m128i halves[2] = {_mm_unpacklo_epi8(first, second), _mm_unpackhi_epi8(first, second)};
    const __m256 inverse = _mm256_set1_ps(power(-exponent)), scale = _mm256_set1_ps(power(exponent));
    const __m256 sign = _mm256_set1_ps(-0.0f);
    __m256i codes[4];
    for (int i = 0; i < 4; i++) {
        const __m128i eight = i % 2 ? _mm_srli_si128(halves[i / 2], 8) : halves[i / 2];
        const __m256i before = _mm256_cvtepu8_epi32(eight);
        const __m256 old = values(before), d = _mm256_loadu_ps(delta + 8 * i);
        const __m256 scaled = _mm256_mul_ps(d, inverse), wanted = _mm256_add_ps(old, scaled);
        const __m256i after = nearest(wanted);
        /* Where both magnitudes are zero the old code stays. */
        const __m256i both = _mm256_and_si256(_mm256_or_si256(before, after), _mm256_set1_epi32(7));
        const __m256i zero = _mm256_cmpeq_epi32(both, _mm256_setzero_si256());
        codes[i] = _mm256_blendv_epi8(after, before, zero);
        const __m256 moved = _mm256_sub_ps(values(codes[i]), old);
        const __m256 error = _mm256_mul_ps(_mm256_sub_ps(moved, scaled), scale);
        sums->error = _mm256_add_ps(sums->error, _mm256_mul_ps(error, error));
        sums->delta = _mm256_add_ps(sums->delta, _mm256_mul_ps(d, d));
        sums->largest = _mm256_max_ps(sums->largest, _mm256_andnot_ps(sign, error));
        const __m256 beyond = _mm256_cmp_ps(_mm256_andnot_ps(sign, wanted), _mm256_set1_ps(7.0f),
                                            _CMP_GE_OQ);
        sums->saturated = _mm256_sub_epi32(sums->saturated, _mm256_castps_si256(beyond));
    }
    /* 32 lanes to 32 bytes in order, then neighbours to one byte. */
    const __m256i ab = _mm256_packus_epi32(codes[0], codes[1]);
    const __m256i cd = _mm256_packus_epi32(codes[2], codes[3]);
    const __m256i mixed = _mm256_packus_epi16(ab, cd);
    const __m256i order = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);
    const __m256i bytes = _mm256_permutevar8x32_epi32(mixed, order);
    const __m256i joined = _mm256_or_si256(bytes, _mm256_srli_epi16(bytes, 4));
    const __m256i low = _mm256_and_si256(joined, _mm256_set1_epi16(0x00ff));
    const __m256i packed = _mm256_packus_epi16(low, low);
    return _mm256_castsi256_si128(_mm256_permute4x64_epi64(packed, 0x08));
}

AVX2 static void round_row(const uint8_t *blocks, const uint8_t *scales, int64_t groups,
                           const float *delta, uint8_t *out, double *numbers) {
    const __m256 sign = _mm256_set1_ps(-0.0f);
    Sums sums = {_mm256_setzero_ps(), _mm256_setzero_ps(), _mm256_setzero_ps(),
                 _mm256_setzero_si256()};
    double weight = 0;
    int64_t changed = 0;
    for (int64_t g = 0; g < groups; g++, delta += 32) {
        const __m128i pairs = _mm_loadu_si128((const __m128i *)(blocks + 16 * g));
        const int exponent = scales[g] - 127;
        const double scale = power(exponent);
        weight += 0.25 * (double)squares(pairs) * scale * scale;
        __m256 peak = _mm256_setzero_ps(), square = _mm256_setzero_ps();
        for (int i = 0; i < 4; i++) {
            const __m256 d = _mm256_loadu_ps(delta + 8 * i);
            peak = _mm256_max_ps(peak, _mm256_andnot_ps(sign, d));
            square = _mm256_add_ps(square, _mm256_mul_ps(d, d));
        }
        /* A quarter of the scale is half of the smallest spacing; a little less, as the sum of
         * value and update is rounded. At these exponents update * scale / scale is exact. */
        const __m256 limit = _mm256_set1_ps(0.2499f * power(exponent));
        const int stays = exponent > -64 && exponent < 64 &&
                          _mm256_movemask_ps(_mm256_cmp_ps(peak, limit, _CMP_NLT_UQ)) == 0;
        __m128i after = pairs;
        if (stays) {
            sums.largest = _mm256_max_ps(sums.largest, peak);
            sums.delta = _mm256_add_ps(sums.delta, square);
            sums.error = _mm256_add_ps(sums.error, square);
        } else {
            after = round_block(pairs, delta, exponent, &sums);
            changed += _mm_movemask_epi8(_mm_cmpeq_epi8(after, pairs)) != 0xffff;
        }
        _mm_storeu_si128((__m128i *)(out + 16 * g), after);
    }
    int32_t saturated[8];
    _mm256_storeu_si256((__m256i *)saturated, sums.saturated);
    numbers[CHANGED] = (double)changed;
    numbers[SATURATED] = 0;
    for (int i = 0; i < 8; i++) numbers[SATURATED] += saturated[i];
    numbers[MAX_ERROR] = largest(sums.largest);
    numbers[DELTA] = sum(sums.delta);
    numbers[WEIGHT] = weight;
    numbers[ERROR_] = sum(sums.error);
}

/* Strides in bytes; delta, out and numbers are contiguous. */
void gptoss_ft_round(const uint8_t *blocks, int64_t block_stride, const uint8_t *scales,
                     int64_t scale_stride, int64_t rows, int64_t groups, const float *delta,
                     uint8_t *out, double *numbers, int threads) {
    (void)threads; /* without OpenMP */
#if defined(_OPENMP)
#pragma omp parallel for num_threads(threads) if (threads > 1) schedule(static)
#endif
    for (int64_t r = 0; r < rows; r++)
        round_row(blocks + r * block_stride, scales + r * scale_stride, groups,
                  delta + r * groups * 32, out + r * groups * 16, numbers + r * NUMBERS);
}
